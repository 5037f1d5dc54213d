"""Every byte of flash and RAM with its owner: planned from the model file, measured from the linker's map.

Rows add up exactly: those of `flash.model` to the .ftm file, those with a section to that section of the ELF file.
There is no row for a remainder; bytes that nobody owns are an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..assets import asset_root
from ..errors import FedtinyError
from ..untrusted import guarded
from .elf import PARTS, Image, Section

PLANNED, MEASURED_ELF = "planned", "measured-elf"
MODEL_AREA, MODEL_SECTION = "flash.model", ".ft_model"
YOURS, RUNTIME, TABLES, BOARD = "your src/", "runtime", "self-test and report", "start-up"
LIBRARY, ALIGNMENT, STACK = "compiler's library", "alignment", "stack"
# The figure of each part that elf.py tells apart.
_FLASH_AREAS = {part: f"flash.{part}" for part in ("code", "model", "selftest", "labels", "data")}
_RAM_AREAS = {"arena": "ram.arena", "stack": "ram.stack_reserved", "data": "ram.static", "bss": "ram.static"}

_OUTPUT = re.compile(r"(\.[\w.]+)(?:\s+0x([0-9a-f]+)\s+0x([0-9a-f]+).*)?$")
_PIECE = re.compile(r" (\.\S+|COMMON|\*fill\*)(?:\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(?:\s+(.*))?)?$")
_WRAPPED = re.compile(r"\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(?:\s+(.*))?$")
_PLACE = re.compile(r"(?:fedtiny-build-[^/]+|\.pio/build/[^/]+)/(?:lib[^/]*/)?(src|support|fedtiny)/(.+)\.o$")


@dataclass(frozen=True, slots=True)
class Row:
    """Bytes with one owner. `area` is the figure they are part of, `section` that of an ELF file they were found in."""

    area: str
    section: str | None
    owner: str
    part: str
    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class _Piece:
    address: int
    size: int
    origin: str


def planned_row(area: str, owner: str, part: str, size: int) -> Row:
    """A row that no compiler has confirmed yet."""
    return Row(area, None, owner, part, size, PLANNED)


def merged(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of the same owner and part as one, in the order of the first of each; empty ones left out."""
    found: dict[Row, int] = {}
    for row in rows:
        key = replace(row, bytes=0)
        found[key] = found.get(key, 0) + row.bytes
    return tuple(replace(key, bytes=size) for key, size in found.items() if size)


def model_rows(parts: Iterable[tuple[str, str, int]]) -> tuple[Row, ...]:
    """The planned rows of a model file."""
    return merged(planned_row(MODEL_AREA, owner, part, size) for owner, part, size in parts)


def measured_rows(image: Image, map_file: Path, model: bytes, planned: Sequence[Row]) -> tuple[Row, ...]:
    """Every byte of every section. The model's are its planned rows, if the section holds exactly that file."""
    pieces = read_map(guarded(map_file, "a readable linker map", lambda: map_file.read_text("utf-8", "replace")))
    rows: list[Row] = []
    for section in image.sections:
        areas = _areas(section)
        if planned and section.name == MODEL_SECTION and image.model == model:
            of_file = [row for row in planned if row.area == MODEL_AREA and row.source == PLANNED]
            if sum(row.bytes for row in of_file) != len(model):
                raise FedtinyError("the report's ledger does not add up to model.ftm: export again")
            rows += [replace(row, section=section.name, source=MEASURED_ELF) for row in of_file]
            continue
        for piece in _tiled(section, pieces.get(section.name, ())):
            owner, part = _owner(section, piece.origin)
            rows += [Row(area, section.name, owner, part, piece.size, MEASURED_ELF) for area in areas]
    return merged(rows)


def _areas(section: Section) -> list[str]:
    in_flash, in_ram = PARTS[section.name]
    return [*((_FLASH_AREAS[in_flash],) if in_flash else ()), *((_RAM_AREAS[in_ram],) if in_ram else ())]


def read_map(text: str) -> Mapping[str, Sequence[_Piece]]:
    """Input sections and fills by output section, from the text of GNU ld's map."""
    _, _, text = text.partition("\nLinker script and memory map\n")
    found: dict[str, list[_Piece]] = {}
    section, waiting = "", ""
    for line in text.splitlines():
        if output := _OUTPUT.match(line):
            section, waiting = output[1], ""
        elif piece := _PIECE.match(line):
            waiting = piece[1] if piece[2] is None else ""
            if piece[2] is not None:
                origin = ALIGNMENT if piece[1] == "*fill*" else piece[4] or ""
                found.setdefault(section, []).append(_Piece(int(piece[2], 16), int(piece[3], 16), origin))
        elif waiting and (wrapped := _WRAPPED.match(line)):
            found.setdefault(section, []).append(_Piece(int(wrapped[1], 16), int(wrapped[2], 16), wrapped[3] or ""))
            waiting = ""
    return found


def _tiled(section: Section, pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    """The pieces of a section, which they have to fill. Merged strings are listed as longer than they are."""
    ordered = sorted((piece for piece in pieces if piece.size), key=lambda piece: piece.address)
    end, at = section.address + section.size, section.address
    for piece, following in pairwise([*ordered, _Piece(end, 0, "")]):
        if piece.address != at:
            break
        size = min(piece.size, following.address - piece.address)
        at += size
        if size:
            yield replace(piece, size=size)
    if at != end:
        raise FedtinyError(f"the linker's map names no owner for {section.name} from {at:#x} on: build it anew")


def _owner(section: Section, origin: str) -> tuple[str, str]:
    """Who an object file belongs to, and its name."""
    if section.name == ".stack":
        return BOARD, STACK
    if origin == ALIGNMENT:
        return ALIGNMENT, section.name
    if member := re.search(r"/(lib[^/]*?)\.a\((?:lib_a-)?(.+?)\.o(?:bj)?\)$", origin):
        return LIBRARY, f"{member[1]} {member[2]}"
    place = _PLACE.search(origin)
    if place is None:
        return LIBRARY, Path(origin).name
    name = re.sub(r"^\d+-", "", place[2].rpartition("/")[2]).removesuffix(".c")
    if place[1] != "fedtiny":
        return YOURS if place[1] == "src" else BOARD, name
    runtime = {path.stem for path in (asset_root() / "firmware" / "src").rglob("*.c")}
    return RUNTIME if name in runtime else TABLES, name


def totals(rows: Iterable[Row]) -> dict[str, int]:
    """Bytes by section where rows have one, else by area; what is in two areas counts once in its section."""
    found: dict[str, int] = {}
    for row in rows:
        if row.section is not None and row.area.startswith("ram.") and PARTS.get(row.section, (None,))[0] is not None:
            continue
        found[row.section or row.area] = found.get(row.section or row.area, 0) + row.bytes
    return found
