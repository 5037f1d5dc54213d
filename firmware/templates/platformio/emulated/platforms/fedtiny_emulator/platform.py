"""The PlatformIO platform of fedtiny's emulated boards."""

from platformio.public import PlatformBase


class Fedtiny_emulatorPlatform(PlatformBase):  # noqa: N801 - PlatformIO derives the name from the folder's
    """Nothing to install: the compiler and the emulator are the system's."""

    def is_embedded(self) -> bool:
        """There is no serial port to upload to."""
        return False
