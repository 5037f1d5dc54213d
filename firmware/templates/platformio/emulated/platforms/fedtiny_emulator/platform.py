"""The PlatformIO platform of fedtiny's emulated boards."""

from platformio.public import PlatformBase


class Fedtiny_emulatorPlatform(PlatformBase):
    """Nothing to install: compiler and emulator are the system's. PlatformIO derives this name from the folder's."""

    def is_embedded(self) -> bool:
        """There is no serial port to upload to."""
        return False
