"""Building a project for an emulated board with the system's compiler, and running it in QEMU.

The flags are those of `pio run` (project.py declares them once). What the firmware prints is read elsewhere
(check.py); this module only starts programs, limits their time, and says which package has them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..assets import asset_root
from ..errors import FedtinyError, OverBudgetError, ToolMissingError
from .devices import Device, Memory
from .elf import Image
from .project import SUPPORT, BuildSettings, build_settings

PACKAGES = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi and libnewlib-arm-none-eabi",
    "arm-none-eabi-g++": "gcc-arm-none-eabi and libnewlib-arm-none-eabi",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf and picolibc-riscv64-unknown-elf",
    "xtensa-lx106-elf-gcc": "gcc-xtensa-lx106 and picolibc-xtensa-lx106-elf",
    "qemu-system-arm": "qemu-system-arm",
    "qemu-system-riscv32": "qemu-system-misc",
    "qemu-system-xtensa": "qemu-system-misc",
}
TOO_LARGE = "firmware-too-large"
CACHE = ".fedtiny"  # inside the project: the last firmware that was built
BUILD_SECONDS = 300
RUN_SECONDS = 60
RUN_SECONDS_PER_SAMPLE = 2
COUNTED = "ft_invoke"
COUNTED_FROM = "ft_port_invoke"
MAX_TEXT_BYTES = 1 << 20
# What a linker's complaint is about; the lines beside these only say that it complained.
LINK_REASONS = ("undefined reference", "cannot find", "multiple definition", "will not fit", "overlaps")


@dataclass(frozen=True, slots=True)
class Firmware:
    """A linked firmware and its linker map."""

    elf: Path
    map: Path


@dataclass(frozen=True, slots=True)
class Run:
    """What an emulator left behind: the firmware's `text`, the emulator's own `complaint`, and the results.

    `counts` has one number of instructions a sample; without it, `uncounted` says why. `cycles`, as many, are those of
    a model of the Cortex-M4 (firmware/boards/qemu/count.c), since the emulator knows no time.
    """

    exit_code: int
    text: str
    complaint: str
    outputs: bytes
    counts: tuple[int, ...] | None
    cycles: tuple[int, ...] | None
    uncounted: str | None


def require_tools(device: Device) -> None:
    """Raise ToolMissingError unless this board's compiler and emulator are installed."""
    if device.emulator is None:
        raise ToolMissingError(f"{device.id} has no emulator: use the real board and --log with what it prints")
    find_tool(f"{device.emulator.toolchain}gcc")
    find_tool(device.emulator.program)


def find_tool(program: str) -> str:
    """The path of an installed program."""
    found = shutil.which(program)
    if found is None:
        package = PACKAGES.get(program)
        remedy = f"install the Debian package {package}" if package else "install it"
        raise ToolMissingError(f"{program} is not installed: {remedy}")
    return found


def build(folder: Path, device: Device, name: str = "firmware") -> Firmware:
    """Compile and link the project in `folder` with the board's compiler."""
    settings = build_settings(device)
    compiler = find_tool(f"{settings.toolchain}gcc")
    cache = folder / CACHE
    cache.mkdir(exist_ok=True)
    firmware = Firmware(cache / f"{name}.elf", cache / f"{name}.map")
    with tempfile.TemporaryDirectory(prefix="fedtiny-build-") as place:
        objects = _compile(folder, settings, Path(place))
        link = [
            *(compiler, *settings.cflags, *settings.link_flags),
            *("-T", str(folder / SUPPORT / settings.linker_script)),
            *("-Xlinker", f"-Map={firmware.map}"),  # -Wl would split the path at a comma
            *(*map(str, objects), "-o", str(firmware.elf)),
        ]
        _call(link, "the firmware does not link", folder)
    return firmware


def build_oversized(folder: Path, device: Device) -> tuple[Firmware, Device]:
    """Link what does not fit the board for one with four times the memory: to measure it, never to run it."""
    larger = {"flash": device.region_for("code").name, "ram": device.region_for("arena").name}
    regions = tuple(replace(r, size=4 * r.size) if larger[r.kind] == r.name else r for r in _spread(device))
    roomy = replace(device, memory=regions)
    return build(folder, roomy, TOO_LARGE), roomy


def _spread(device: Device) -> list[Memory]:
    """The regions with room between them, so that they can grow: none of their addresses is used."""
    step = max(4 * region.size for region in device.memory)
    step += -step % 0x1000_0000
    return [replace(region, start=index * step) for index, region in enumerate(device.memory)]


def _compile(folder: Path, settings: BuildSettings, target: Path) -> list[Path]:
    """Compile every source, several at once; the order of the objects is that of the sources."""
    flags = [*settings.cflags, *settings.compile_flags, f"-ffile-prefix-map={folder}=."]
    flags += [f"-I{folder / place}" for place in ("include", "src", "lib/fedtiny/include", "lib/fedtiny/src", SUPPORT)]
    sources = _sources(folder)

    def compile_one(numbered: tuple[int, Path]) -> Path:
        index, source = numbered
        built = target / _place(folder, source) / f"{index}-{source.stem}.o"
        built.parent.mkdir(exist_ok=True)
        plain_c = source.suffix == ".c"
        compiler = find_tool(f"{settings.toolchain}{'gcc' if plain_c else 'g++'}")
        language = settings.c_flags if plain_c else settings.cxx_flags
        _call([compiler, *flags, *language, "-c", str(source), "-o", str(built)], "it does not compile", folder)
        return built

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(compile_one, enumerate(sources)))


def _place(folder: Path, source: Path) -> str:
    """Whose a source is, as the linker's map shall show it: the names that PlatformIO uses."""
    return {"src": "src", "platforms": "support"}.get(source.relative_to(folder).parts[0], "fedtiny")


def _sources(folder: Path) -> list[Path]:
    found = []
    for place in ("src", SUPPORT, "lib/fedtiny/src"):
        found += sorted(p for p in (folder / place).rglob("*") if p.suffix in (".c", ".cpp", ".cc"))
    if not found:
        raise FedtinyError(f"{folder}: has no sources: is it a folder that fedtiny-export wrote?")
    return found


def build_with_pio(folder: Path, device: Device) -> Firmware:
    """Build the project with `pio run`."""
    pio = _pio_command()
    require_tools(device)
    _call([*pio, "run", "-d", str(folder), "-e", device.id], "pio run failed", folder)
    built = folder / ".pio" / "build" / device.id
    if not (built / "firmware.elf").is_file():
        raise FedtinyError(f"{folder}: pio run left no firmware.elf in .pio/build/{device.id}")
    return Firmware(built / "firmware.elf", built / "firmware.map")


def _pio_command() -> list[str]:
    beside = Path(sys.executable).with_name("pio")
    found = str(beside) if beside.is_file() else shutil.which("pio")
    if found is None:
        raise ToolMissingError("pio is not installed: pip install platformio")
    return [found]


def _call(command: Sequence[str], fault: str, folder: Path) -> None:
    """Run a build step; its first complaint becomes the error's text."""
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise FedtinyError(f"{folder}: {fault}: no end after {BUILD_SECONDS} s") from None
    if done.returncode == 0:
        return
    text = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace")
    if "cannot read spec file" in text or "string.h: No such file" in text:
        packages = PACKAGES.get(Path(command[0]).name, "of its C library")
        raise ToolMissingError(f"the compiler has no C library: install the Debian packages {packages}")
    overflows = dict(re.findall(r"region [`'](\w+)' overflowed by (\d+) bytes", text))
    if overflows:
        said = ", ".join(f"{int(size):,} bytes too many in {region}" for region, size in overflows.items())
        raise OverBudgetError(f"{folder}: the firmware does not fit the board: {said}")
    raise FedtinyError(f"{folder}: {fault}: {'; '.join(_telling_lines(text)[:3])[:600]}")


def _telling_lines(text: str) -> list[str]:
    """A failed build's output, the reasons before the verdicts."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if any(reason in line for reason in LINK_REASONS)]
    errors = [line for line in lines if "error" in line.lower() and line not in reasons]
    errors.sort(key=lambda line: line.startswith("collect2"))
    return reasons + errors or lines or ["no message"]


def run(firmware: Firmware, image: Image, device: Device, inputs: NDArray[np.int8], output_bytes: int) -> Run:
    """Run the firmware on every sample of `inputs`; `output_bytes` is the size of one result."""
    require_tools(device)
    with tempfile.TemporaryDirectory(prefix="fedtiny-run-") as name:
        place = Path(name)
        (place / "inputs.bin").write_bytes(np.ascontiguousarray(inputs).tobytes())
        plugin, uncounted = _plugin(image, place)
        seconds = RUN_SECONDS + RUN_SECONDS_PER_SAMPLE * inputs.shape[0]
        code, text, complaint = _emulate(_command(device, firmware.elf, plugin), place, seconds)
        if plugin and code != 0 and "plugin" in complaint:
            uncounted = f"the emulator takes no instruction counter: {complaint.strip().splitlines()[-1][:200]}"
            plugin = None
            code, text, complaint = _emulate(_command(device, firmware.elf, None), place, seconds)
        outputs = _read_limited(place / "outputs.bin", output_bytes * inputs.shape[0] + 1)
        counts, cycles = _read_counts(place / "counts.txt") if plugin else (None, None)
    return Run(code, text, complaint, outputs, counts, cycles, uncounted)


def _command(device: Device, elf: Path, plugin: str | None) -> list[str]:
    assert device.emulator is not None
    command = device.emulator.command(str(elf.resolve()))
    at = command.index("-semihosting-config") + 1
    command[at] += ",arg=firmware,arg=inputs=inputs.bin,arg=outputs=outputs.bin"
    return [*command, *(("-plugin", plugin) if plugin else ())]


def _emulate(command: list[str], place: Path, seconds: int) -> tuple[int, str, str]:
    """Run the emulator with its text in files, so that a firmware that never stops talking fills no memory."""
    out, err = place / "stdout.txt", place / "stderr.txt"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out_file, stderr=err_file, cwd=place)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise FedtinyError(f"the firmware did not end within {seconds} s in {command[0]}") from None
        finally:
            process.kill()
            process.wait()
    texts = [_read_limited(path, MAX_TEXT_BYTES).decode("utf-8", "replace") for path in (out, err)]
    return code, texts[0], texts[1]


def _read_limited(path: Path, limit: int) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(limit)


def _plugin(image: Image, place: Path) -> tuple[str | None, str | None]:
    """Compile the instruction counter for the host; return QEMU's -plugin argument, or why there is none."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        return None, "no C compiler for this machine is installed (Debian package gcc): instructions are not counted"
    counted, caller = image.symbol(COUNTED), image.symbol(COUNTED_FROM)
    if counted is None or caller is None:
        return None, "the firmware's main does not call ft_port_serve: instructions are not counted"
    source = asset_root() / "firmware" / "boards" / "qemu" / "count.c"
    command = [compiler, "-O2", "-shared", "-fPIC", "-fvisibility=hidden", str(source), "-o", str(place / "count.so")]
    try:
        _call(command, "the instruction counter does not compile", source.parent)
    except FedtinyError as error:
        return None, str(error)
    places = f"function={counted.address:x},caller={caller.address:x},caller_end={caller.address + caller.size:x}"
    return f"{place / 'count.so'},out={place / 'counts.txt'},{places}", None


def _read_counts(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    words = _read_limited(path, MAX_TEXT_BYTES).decode("ascii", "replace").split()
    if len(words) % 2 or not all(word.isdecimal() and len(word) < 20 for word in words):
        raise FedtinyError("the instruction counter wrote something that is no number")
    numbers = tuple(map(int, words))
    return numbers[::2], numbers[1::2]
