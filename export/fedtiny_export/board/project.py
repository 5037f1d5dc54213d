"""A board and a model become a PlatformIO project: runtime sources, the model as C, and a main to start from.

A project is made of layers of files under `firmware/templates/platformio`; those ending in `.in` have names
filled in, the others are copied. Nothing is compiled here (emulator.py does), and no C is written but tables.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Template

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..assets import asset_root
from ..errors import FedtinyError
from ..ftm import abi
from ..ftm.abi import Kernel
from .devices import Device
from .selftest import Step, c_words, golden_names

PLATFORMIO, PLAIN = "platformio", "plain"
LIBRARY, PLAIN_LIBRARY = PurePosixPath("lib/fedtiny"), PurePosixPath("fedtiny")
USER_FILES = (  # written once, then the user's
    *("src", "platformio.ini", "zephyr", "app", "test"),
    *("CMakeLists.txt", "partitions.csv", "sdkconfig.defaults"),  # ESP-IDF's
)
GENERATED_FOLDERS = ("lib/fedtiny", "platforms/fedtiny_emulator", "fedtiny")
SUPPORT = "platforms/fedtiny_emulator/support"
WORD_FLASH_CPUS = ("xtensa-lx106",)  # constants in flash can only be read as aligned words
PROGMEM_FAMILIES = ("teensy",)  # constants are copied to RAM unless they are placed in .progmem

COMPILE_FLAGS = ("-Os", "-g", "-ffunction-sections", "-fdata-sections", "-Wall", "-Wextra")
C_FLAGS = ("-std=c99",)
CXX_FLAGS = ("-std=gnu++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics")
LINK_FLAGS = ("-nostartfiles", "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments")
LINKER_SCRIPT = "board.ld"
# The folders under firmware/boards with an emulated board's start-up code, by its compiler.
BOARD_FAMILIES = {
    "arm-none-eabi-": "cortex-m",
    "riscv64-unknown-elf-": "riscv",
    "xtensa-lx106-elf-": "xtensa",
}

_KERNEL_ROW = Template("    [FT_KERNEL_${upper}] = &ft_kernel_${lower},")


@dataclass(frozen=True, slots=True)
class Port:
    """The model's input or output: (height, width, channels) and how int8 stands for real numbers."""

    shape: tuple[int, int, int]
    scale: float
    zero_point: int

    @property
    def elements(self) -> int:
        """int8 values in one sample."""
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True, slots=True)
class Artifacts:
    """What an export hands to the firmware. Golden arrays hold one sample a row."""

    ftm: bytes
    tflite: bytes
    kernels: tuple[Kernel, ...]
    arena_bytes: int
    input: Port
    output: Port
    labels: tuple[str, ...]
    normalization: str
    golden_inputs: NDArray[np.int8]
    golden_outputs: NDArray[np.int8]
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        count = self.golden_inputs.shape[0]
        assert count > 0, "the self-test needs a golden vector"
        assert self.golden_inputs.shape == (count, self.input.elements), "golden inputs have another shape"
        assert self.golden_outputs.shape == (count, self.output.elements), "golden outputs have another shape"
        assert self.golden_inputs.dtype == self.golden_outputs.dtype == np.int8, "golden vectors are not int8"
        assert len(self.ftm) % 4 == 0, "a .ftm file is a whole number of words"


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How firmware for an emulated board is compiled and linked, whoever drives the compiler."""

    toolchain: str
    cflags: tuple[str, ...]
    compile_flags: tuple[str, ...]
    c_flags: tuple[str, ...]
    cxx_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    linker_script: str


def build_settings(device: Device) -> BuildSettings:
    """The one declaration of flags that `pio run` and the direct build share."""
    assert device.emulator is not None, f"{device.id} is not an emulated board"
    flash, ram = device.region_for("code"), device.region_for("arena")
    sizes = {
        "FT_FLASH_START": flash.start,
        "FT_FLASH_SIZE": flash.size,
        "FT_RAM_START": ram.start,
        "FT_RAM_SIZE": ram.size,
        "FT_STACK_SIZE": stack_bytes(device),
    }
    symbols = tuple(f"-Wl,--defsym={name}={value:#x}" for name, value in sizes.items())
    return BuildSettings(
        toolchain=device.emulator.toolchain,
        cflags=device.emulator.cflags,
        compile_flags=COMPILE_FLAGS + _word_flash_flags(device),
        c_flags=C_FLAGS,
        cxx_flags=CXX_FLAGS,
        link_flags=LINK_FLAGS + symbols,
        linker_script=LINKER_SCRIPT,
    )


def stack_bytes(device: Device) -> int:
    """The stack an emulated board's firmware is linked with."""
    if device.reserve.stack_bytes is None:
        raise FedtinyError(f"{device.id}: [reserve] stack_bytes is missing; an emulated board's stack needs a size")
    return device.reserve.stack_bytes


def board_folders(device: Device) -> tuple[Path, ...]:
    """The folders with an emulated board's start-up code: what all have in common, and its family's."""
    assert device.emulator is not None, f"{device.id} is not an emulated board"
    toolchain = device.emulator.toolchain
    if toolchain not in BOARD_FAMILIES:
        known = ", ".join(BOARD_FAMILIES)
        raise FedtinyError(f"{device.id}: no start-up code for toolchain {toolchain}; there is some for {known}")
    boards = asset_root() / "firmware" / "boards"
    return boards / "common", boards / BOARD_FAMILIES[toolchain]


def _word_flash_flags(device: Device) -> tuple[str, ...]:
    return ("-DFT_MODEL_WORDS_ONLY=1",) if device.cpu in WORD_FLASH_CPUS else ()


def label_bytes(labels: Iterable[str]) -> int:
    """Flash that the labels take: whole words, which is how the linker scripts place them."""
    return len(_label_text(labels))


def write_project(folder: Path, device: Device, artifacts: Artifacts, kind: str = PLATFORMIO) -> None:
    """Write a project into `folder`, which exists; in one that holds a project, renew what is generated."""
    keep = {name for name in USER_FILES if (folder / name).exists()}
    for name in GENERATED_FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    files = plain_files(device, artifacts) if kind == PLAIN else project_files(device, artifacts)
    write_files(folder, {path: content for path, content in files.items() if path.parts[0] not in keep})


def write_files(folder: Path, files: Mapping[PurePosixPath, bytes]) -> None:
    """Write files and the folders that they lie in."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def kind_of(folder: Path) -> str:
    """Which kind of project an export folder holds."""
    return PLAIN if (folder / PLAIN_LIBRARY).is_dir() else PLATFORMIO


def plain_files(device: Device, artifacts: Artifacts) -> dict[PurePosixPath, bytes]:
    """The runtime, the model and an application as C files for any build system."""
    names = {**_board_names(device), **_model_names(artifacts)}
    found = {path: fill(template, names) for path, template in _templates(("common", "plain"))}
    found.update(_runtime_files())
    return {
        PLAIN_LIBRARY / path.relative_to(LIBRARY) if path.is_relative_to(LIBRARY) else path: content
        for path, content in found.items()
        if path.parts[0] != "include"
    }


def _runtime_files() -> Iterator[tuple[PurePosixPath, bytes]]:
    for part in ("include", "src"):
        for path, content in _files(asset_root() / "firmware" / part):
            if path.name != "ft_kernels_all.c":
                yield LIBRARY / part / path, content


def project_files(device: Device, artifacts: Artifacts) -> dict[PurePosixPath, bytes]:
    """Every file of a PlatformIO project with its bytes; the same arguments give the same bytes."""
    names = {**_board_names(device), **_model_names(artifacts)}
    files = {path: fill(template, names) for path, template in _templates(_layers(device))}
    files.update(_runtime_files())
    files[LIBRARY / "library.json"] = _library_json(asset_root() / "firmware" / "library.json", device)
    files.update(_emulator_files(device) if device.emulator is not None else {})
    return files


def changed_user_files(folder: Path, device: Device) -> list[str]:
    """The user's files of a project that are no longer, or not yet, as an export writes them."""
    names = _board_names(device)
    every = _templates(_layers(device))
    ours = [name for name in USER_FILES if name != "test"]  # tests are a firmware of their own
    written = {path: fill(text, names) for path, text in every if path.parts[0] in ours}
    there = [p for name in ours for p in ((folder / name), *(folder / name).rglob("*")) if p.is_file()]
    found = {PurePosixPath(path.relative_to(folder).as_posix()): path.read_bytes() for path in there}
    return sorted(str(path) for path in written.keys() | found.keys() if written.get(path) != found.get(path))


def _templates(layers: Iterable[str]) -> Iterator[tuple[PurePosixPath, str | bytes]]:
    """Every file of these layers: text to fill in, or bytes as they are; a later layer replaces an earlier."""
    for layer in layers:
        yield from templates_in(asset_root() / "firmware" / "templates" / "platformio" / layer)


def templates_in(folder: Path) -> Iterator[tuple[PurePosixPath, str | bytes]]:
    """Every file of a folder of templates: text to fill in for those ending in `.in`, which is left out, or bytes."""
    for path, content in _files(folder):
        yield (path.with_suffix(""), content.decode("utf-8")) if path.suffix == ".in" else (path, content)


def _layers(device: Device) -> tuple[str, ...]:
    if device.emulator is not None:
        return ("common", "emulated")
    if device.platformio is None:
        raise FedtinyError(f"{device.id}: the board table has no [platformio]; add platform, board and framework")
    framework = device.platformio.framework
    templates = asset_root() / "firmware" / "templates" / "platformio"
    known = sorted(path.parent.name for path in templates.glob("*/platformio.ini.in") if path.parent.name != "emulated")
    if framework not in known:
        raise FedtinyError(f"{device.id}: no template for framework {framework}; there are {', '.join(known)}")
    more = ["word_flash"] if device.cpu in WORD_FLASH_CPUS else []
    more += ["progmem"] if device.family in PROGMEM_FAMILIES else []
    more += ["esp32"] if framework == "arduino" and device.platformio.platform.startswith("espressif32") else []
    return ("common", framework, *more)


def _files(folder: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield PurePosixPath(path.relative_to(folder).as_posix()), path.read_bytes()


def fill(content: str | bytes, names: Mapping[str, str]) -> bytes:
    """Text with its names filled in; bytes as they are."""
    return content if isinstance(content, bytes) else Template(content).substitute(names).encode("utf-8")


def _board_names(device: Device) -> dict[str, str]:
    """What any template may name; the user's files name nothing else, so that they are the same for every model."""
    pio = device.platformio
    return {
        "exporter": __version__,
        "board": device.id,
        "platform": pio.platform if pio else "",
        "pio_board": pio.board if pio else "",
        "framework": pio.framework if pio else "",
        "emulator": "\n".join(f"  {part}" for part in device.emulator.command("")[:-1]) if device.emulator else "",
        "arena_room": str(_arena_room(device)),
        "options": "".join(f"\n{option}" for option in pio.options) if pio else "",
    }


def _arena_room(device: Device) -> int:
    """What the arena's region has beside stack and SDK: PlatformIO flashes a firmware that takes more than all RAM.

    On an emulated board the linker knows better.
    """
    if device.emulator is not None:
        return 0xFFFF_FFFF
    home, reserve = device.region_for("arena"), device.reserve
    stack = (reserve.stack_bytes or 0) if device.region_for("stack") == home else 0
    return max(0, home.size - stack - (reserve.sdk_ram_bytes or 0))


def _model_names(artifacts: Artifacts) -> dict[str, str]:
    return {
        **contract_names(artifacts.input, artifacts.output, artifacts.normalization),
        "format_version": str(abi.VERSION),
        "model_bytes": str(len(artifacts.ftm)),
        "model_crc32": f"{zlib.crc32(artifacts.ftm):#010x}",
        "arena_bytes": str(artifacts.arena_bytes),
        "label_count": str(len(artifacts.labels)),
        "model_words": c_words(artifacts.ftm),
        "label_text": label_rows(artifacts.labels),
        "kernel_rows": _kernel_rows(artifacts.kernels),
        **golden_names(artifacts.golden_inputs, artifacts.golden_outputs, artifacts.steps),
    }


def contract_names(given: Port, made: Port, normalization: str) -> dict[str, str]:
    """What templates name of the model's input and output."""
    return {
        "input_height": str(given.shape[0]),
        "input_width": str(given.shape[1]),
        "input_channels": str(given.shape[2]),
        "input_bytes": str(given.elements),
        "input_scale": _c_float(given.scale),
        "input_zero_point": str(given.zero_point),
        "normalization": _c_text(normalization),
        "output_bytes": str(made.elements),
        "output_scale": _c_float(made.scale),
        "output_zero_point": str(made.zero_point),
    }


def _c_float(value: float) -> str:
    text = f"{float(np.float32(value)):.9g}"
    return (text if set(text) & set(".en") else text + ".0") + "f"


def _c_text(text: str) -> str:
    """The inside of a C string: printable ASCII as it is, every other byte in octal."""
    plain = {byte: chr(byte) for byte in range(0x20, 0x7F) if chr(byte) not in '"\\?'}
    return "".join(plain.get(byte, f"\\{byte:03o}") for byte in text.encode("utf-8"))


def _label_text(labels: Iterable[str]) -> bytes:
    """Labels one after another, each ended by 0, up to a whole word."""
    text = b"".join(label.encode("utf-8").replace(b"\0", b" ") + b"\0" for label in labels)
    return text + bytes(-len(text) % 4) if text else bytes(4)


def label_rows(labels: Iterable[str]) -> str:
    """The labels' bytes as the inside of a C array, one label a line."""

    def character(byte: int) -> str:
        return f"'{chr(byte)}'" if 0x20 <= byte < 0x7F and chr(byte) not in "'\\" else str(byte)

    lines = [line + b"\0" for line in _label_text(labels).rstrip(b"\0").split(b"\0")]
    lines.append(bytes(len(_label_text(labels)) - sum(map(len, lines))))
    return "\n".join("    " + ", ".join(character(byte) for byte in line) + "," for line in lines if line)


def _kernel_rows(kernels: Iterable[Kernel]) -> str:
    rows = [_KERNEL_ROW.substitute(upper=kernel.name, lower=kernel.name.lower()) for kernel in sorted(set(kernels))]
    return "\n".join(rows)


def _library_json(manifest: Path, device: Device) -> bytes:
    """The runtime's manifest, with what this board's build needs to know."""
    library = json.loads(manifest.read_text(encoding="utf-8"))
    if device.emulator is not None:
        library["build"]["libArchive"] = False  # objects, as the direct build links them
    if device.cpu in WORD_FLASH_CPUS:
        library["build"]["flags"] = [*_word_flash_flags(device)]
    return _json_bytes(library)


def _emulator_files(device: Device) -> dict[PurePosixPath, bytes]:
    """The board's start-up code, and its JSON for PlatformIO."""
    found = [file for folder in board_folders(device) for file in _files(folder)]
    files = {PurePosixPath(SUPPORT) / path: content for path, content in found}
    files[PurePosixPath("platforms/fedtiny_emulator/boards") / f"{device.id}.json"] = _json_bytes(_board(device))
    return files


def _board(device: Device) -> dict[str, object]:
    assert device.emulator is not None
    settings = build_settings(device)
    return {
        "name": device.name,
        "vendor": "QEMU",
        "url": "https://www.qemu.org",
        "build": {
            "mcu": device.cpu,
            "cpu": device.emulator.cpu,
            "f_cpu": f"{device.clock_hz}L",
            "toolchain": settings.toolchain,
            "cflags": settings.cflags,
            "compile_flags": settings.compile_flags,
            "c_flags": settings.c_flags,
            "cxx_flags": settings.cxx_flags,
            "link_flags": settings.link_flags,
            "linker_script": settings.linker_script,
        },
        "debug": {"emulator": device.emulator.command("")[:-1]},
        "upload": {
            "maximum_size": device.region_for("code").size,
            "maximum_ram_size": device.region_for("arena").size,
        },
    }


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")
