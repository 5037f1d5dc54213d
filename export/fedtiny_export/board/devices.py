"""Board tables: one TOML file in `devices/` becomes one checked `Device`.

A board is described by memory regions, not totals, because an arena has to fit one region. Nothing here
plans or measures memory, and no number is invented: what no source gives is absent.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from fedtiny_export.assets import asset_root
from fedtiny_export.errors import FedtinyError, UsageError, nearest

from .lines import line_of

STATUSES = ("listed", "stub", "builds", "runs")
KINDS = ("flash", "ram")
CONTENTS = {"code": "flash", "model": "flash", "arena": "ram", "static": "ram", "stack": "ram"}

ADDRESS_LIMIT = 1 << 32
MAX_FILE_BYTES = 64 << 10
OWN_BOARD = "board.toml"  # in an export for a board of the user's own: its file
COMPILER_FLAG = r"-m[\w=.+-]+|--specs=[\w.]+"
EMULATOR_FLAG = r"-?[\w=,:.-]+"

_Value = TypeVar("_Value", bound="Memory | Platformio | Emulator | Reserve")


@dataclass(frozen=True, slots=True)
class Memory:
    """One contiguous region, and what of a firmware goes there."""

    name: str
    kind: str
    start: int
    size: int
    holds: tuple[str, ...] = ()
    note: str | None = None

    def __post_init__(self) -> None:
        plain = bool(self.name) and self.name.isprintable()
        _need(plain, "name", "is empty or more than one line", "name the region as its linker script does")
        _need(self.kind in KINDS, "kind", _unknown(self.kind, KINDS), _one_of(KINDS))
        _need(self.start >= 0, "start", f"{self.start} is negative", "write the first byte's address")
        _need(self.size > 0, "size", f"{self.size} is not above 0", "write the size in bytes")
        _need(self.end <= ADDRESS_LIMIT, "size", f"the region ends at {self.end:#x}", "end it in 32 bits")
        for what in self.holds:
            _need(what in CONTENTS, "holds", _unknown(what, CONTENTS), _one_of(CONTENTS))
            _need(CONTENTS[what] == self.kind, "holds", f"{what} cannot be in {self.kind}", "move it")

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Platformio:
    """What `platformio.ini` says for this board; the platform is pinned to one version.

    `options` are further lines for it, `board_upload.maximum_ram_size = 98304` for example.
    """

    platform: str
    board: str
    framework: str
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pinned = re.search(r"(@\d+\.\d+\.\d+|#[0-9a-f]{40}|/download/[^/]+/[^/]+)$", self.platform)
        _need(pinned is not None, "platform", f"'{self.platform}' is not pinned", "write name@1.2.3")
        _need(bool(self.board), "board", "is empty", "write PlatformIO's board id")
        for key in ("platform", "board", "framework"):
            value = getattr(self, key)
            _need(value.isprintable(), key, f"{value!r} is more than one line", "write one line")
        _need(bool(self.framework), "framework", "is empty", "write PlatformIO's framework id")
        for option in self.options:
            good = re.fullmatch(r"board_[a-z0-9_.]+ = [\w.-]+", option) is not None
            _need(good, "options", f"{option!r} sets nothing of the board", "write board_... = value")


@dataclass(frozen=True, slots=True)
class Emulator:
    """How firmware for this board is compiled and run on the host.

    An export carries its user's board file, and a check follows it: it can name QEMU and a gcc, nothing else.
    """

    program: str
    machine: str
    cpu: str
    toolchain: str
    cflags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        prefix = re.fullmatch(r"[a-z0-9_-]+-", self.toolchain) is not None
        _need(prefix, "toolchain", f"'{self.toolchain}' is no prefix", "end it in '-'; a name, no path")
        known = re.fullmatch(r"qemu-system-[a-z0-9]+", self.program) is not None
        _need(known, "program", f"'{self.program}' is not QEMU's", "write qemu-system-...")
        for key in ("machine", "cpu"):
            good = re.fullmatch(r"[\w.-]+", getattr(self, key)) is not None
            _need(good, key, "is empty or no name", "write it as qemu lists it")
        for key, pattern in (("cflags", COMPILER_FLAG), ("flags", EMULATOR_FLAG)):
            for flag in getattr(self, key):
                _need(re.fullmatch(pattern, flag) is not None, key, f"{flag!r} is not allowed", f"see {pattern}")

    def command(self, elf: str) -> list[str]:
        """The command line that runs an ELF file in the emulator."""
        return [self.program, "-M", self.machine, "-cpu", self.cpu, *self.flags, "-kernel", elf]


@dataclass(frozen=True, slots=True)
class Reserve:
    """Bytes that the SDK, its RTOS or the stack take; None where no source gives a number."""

    stack_bytes: int | None = None
    sdk_flash_bytes: int | None = None
    sdk_ram_bytes: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            _need(value is None or value >= 0, item.name, f"{value} is negative", "write a number of bytes")


@dataclass(frozen=True, slots=True)
class Device:
    """One board. `id` is the file name; `aliases` are other names for it, PlatformIO's first."""

    id: str
    name: str
    cpu: str
    clock_hz: int
    status: str
    sources: tuple[str, ...]
    memory: tuple[Memory, ...]
    aliases: tuple[str, ...] = ()
    platformio: Platformio | None = None
    emulator: Emulator | None = None
    reserve: Reserve = field(default_factory=Reserve)

    def __post_init__(self) -> None:
        good_id = re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.id) is not None
        _need(good_id, "id", f"the file name '{self.id}' is no id", "use a-z, 0-9, '-' and '_'")
        for key in ("name", "cpu"):
            value = getattr(self, key)
            _need(bool(value) and value.isprintable(), key, "is empty or more than one line", "fill it in")
        _need(self.clock_hz > 0, "clock_hz", f"{self.clock_hz} is not above 0", "write the clock in Hz")
        _need(self.status in STATUSES, "status", _unknown(self.status, STATUSES), _one_of(STATUSES))
        _need(len(self.sources) > 0, "sources", "is empty", "say where each number was read")
        runs = self.status != "runs" or self.emulator is not None
        _need(runs, "status", "'runs' needs an [emulator]", "add one, or lower the status")
        _check_regions(self.memory)

    @property
    def family(self) -> str:
        """PlatformIO's name of the platform, whatever its version; the emulated boards are a family of their own."""
        return re.split("[@#]", self.platformio.platform)[0] if self.platformio else "emulated"

    def region_for(self, what: str) -> Memory:
        """The region that holds `code`, `model`, `arena`, `static` or `stack`."""
        for region in self.memory:
            if what in region.holds:
                return region
        raise ValueError(f"no region of {self.id} holds {what!r}; known are {', '.join(CONTENTS)}")

    def to_json(self) -> dict[str, object]:
        """Plain lists and dicts, `id` first, for `--json`."""
        return cast(dict[str, object], json.loads(json.dumps(dataclasses.asdict(self))))


def load_device(name_or_alias: str) -> Device:
    """Find a board by id or alias, whatever its case and whether written with '-' or '_'.

    A name that ends in `.toml` is a board file of the user's own.
    """
    if name_or_alias.endswith(".toml"):
        return load_device_file(Path(name_or_alias))
    devices = all_devices()
    by_name = _index(devices)
    found = by_name.get(_plain(name_or_alias))
    if found is None:
        names = [name for device in devices for name in (device.id, *device.aliases)]
        close = nearest(name_or_alias.lower(), names)
        raise UsageError(f"unknown board '{name_or_alias}'{close}; fedtiny-devices lists them")
    return found


def all_devices() -> list[Device]:
    """Every board in the `devices/` folder, by id."""
    return list(_devices_in(asset_root() / "devices"))


@functools.cache
def _devices_in(folder: Path) -> tuple[Device, ...]:
    return tuple(load_device_file(path) for path in sorted(folder.glob("*.toml")))


def load_device_file(path: Path, device_id: str | None = None) -> Device:
    """Read one board file; every fault names the file, the line and the key. The id is the file's name or the given."""
    text = _text(path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = re.sub(r" \(at line (\d+), column (\d+)\)$", "", str(error))
        line = re.search(r"\(at line (\d+)", str(error))
        raise FedtinyError(f"{path.name}:{line[1] if line else len(text.splitlines())}: not TOML: {said}") from error
    try:
        return _device(path.stem if device_id is None else device_id, table)
    except FedtinyError as error:
        where = str(error).partition(": ")[0]
        place = path.name if where == "id" else f"{path.name}:{line_of(text, where)}"
        raise FedtinyError(f"{place}: {error}") from error


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such board file") from error
    except OSError as error:
        raise UsageError(f"{path}: no readable board file: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise FedtinyError(f"{path.name}: {len(data):,} bytes; a board file has at most {MAX_FILE_BYTES:,}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FedtinyError(f"{path.name}:{line}: not TOML: no UTF-8 text") from error


def smallest(devices: Iterable[Device]) -> Device | None:
    """The board with the least RAM for an arena; of several, the one with the least flash."""
    sizes = {device: (device.region_for("arena").size, device.region_for("model").size) for device in devices}
    return min(sizes, key=lambda device: (*sizes[device], device.id), default=None)


def next_board_up(device: Device, fitting: Iterable[Device]) -> Device | None:
    """The smallest board of those a model fits, if there is one of the same family that; no board that is emulated."""
    real = [other for other in fitting if other.emulator is None]
    return smallest(other for other in real if other.family == device.family) or smallest(real)


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name.lower())


def _index(devices: Iterable[Device]) -> dict[str, Device]:
    by_name: dict[str, Device] = {}
    for device in devices:
        for name in (device.id, *device.aliases):
            other = by_name.setdefault(_plain(name), device)
            if other is not device:
                raise FedtinyError(f"{device.id}.toml: aliases: '{name}' also names {other.id}; remove one")
    return by_name


def _need(condition: bool, key: str, fault: str, remedy: str) -> None:
    if not condition:
        raise FedtinyError(f"{key}: {fault}; {remedy}")


def _unknown(word: str, known: Iterable[str]) -> str:
    return f"'{word}' is unknown{nearest(word, known)}"


def _one_of(known: Iterable[str]) -> str:
    return f"one of {', '.join(known)}"


def _check_regions(memory: tuple[Memory, ...]) -> None:
    """Regions have their own names and addresses, and each content has exactly one place."""
    names = [region.name for region in memory]
    for index, name in enumerate(names):
        _need(name not in names[:index], f"memory[{index}].name", f"two regions are named '{name}'", "rename one")
    ordered = sorted(range(len(memory)), key=lambda index: memory[index].start)
    for low, high in ((memory[below], index) for below, index in itertools.pairwise(ordered)):
        fault = f"'{low.name}' ends at {low.end:#x}, after '{memory[high].name}' starts at {memory[high].start:#x}"
        _need(low.end <= memory[high].start, f"memory[{high}].start", fault, "regions must not overlap")
    for what, kind in CONTENTS.items():
        count = sum(what in region.holds for region in memory)
        _need(count == 1, "memory", f"{count} regions hold '{what}'", f"give it to one {kind} region")


def _device(device_id: str, table: Mapping[str, Any]) -> Device:
    known = _keys(Device) - {"id"}
    values = _checked(Device, table, known)
    values["memory"] = tuple(
        _value(Memory, row, f"memory[{index}].") for index, row in enumerate(values.get("memory", ()))
    )
    for key, cls in (("platformio", Platformio), ("emulator", Emulator), ("reserve", Reserve)):
        if key in values:
            values[key] = _value(cls, values[key], f"{key}.")
    return Device(id=device_id, **values)


def _value(cls: type[_Value], table: Mapping[str, Any], where: str) -> _Value:
    """Make one value of a table; a fault in it is told with the table's place in the file."""
    try:
        return cls(**_checked(cls, table, _keys(cls)))
    except FedtinyError as error:
        raise FedtinyError(f"{where}{error}") from error


def _keys(cls: type[Any]) -> set[str]:
    return {item.name for item in fields(cls)}


def _checked(cls: type[Any], table: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The keys and types of a table, against the dataclass that declares them."""
    for key in table.keys() - known:
        _need(False, key, f"unknown key{nearest(key, sorted(known))}", _one_of(sorted(known)))
    values: dict[str, Any] = {}
    for item in fields(cls):
        if item.name in table:
            values[item.name] = _typed(item.name, str(item.type), table[item.name])
        elif item.name in known:
            optional = item.default is not MISSING or item.default_factory is not MISSING
            _need(optional, item.name, "is missing", "add it")
    return values


def _typed(key: str, annotation: str, value: object) -> object:
    """Check one TOML value against a field's annotation; lists become tuples."""
    if annotation.startswith("int"):
        _need(type(value) is int, key, f"{value!r} is no integer", "write a whole number")
    elif annotation.startswith("str"):
        _need(isinstance(value, str), key, f"{value!r} is no string", "put it in quotes")
    elif annotation.startswith("tuple"):
        strings = "str" in annotation
        good = isinstance(value, list) and all(isinstance(item, str if strings else dict) for item in value)
        fault = f"is no list of {'strings' if strings else 'tables'}"
        _need(good, key, fault, 'write ["..."]' if strings else f"write [[{key}]]")
        return tuple(cast(list[object], value))
    else:
        _need(isinstance(value, dict), key, "is no table", f"write [{key}]")
    return value
