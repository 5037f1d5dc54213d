"""Reading arrays of numbers from MATLAB 5 files (`.mat`), the form that SVHN is handed out in.

A file is a header of 128 bytes and one element a variable, mostly compressed. Each element says its type and its
size; neither is believed beyond what is there. Only full arrays of real numbers are read: no objects, no HDF5.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from fedtiny_export.untrusted import guarded

from fedtiny_train.data.official import read_bytes

Order = Literal["little", "big"]
HEADER = 128
ORDERS: dict[bytes, Order] = {b"IM": "little", b"MI": "big"}
MATRIX, COMPRESSED = 14, 15
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMBERS = range(6, 16)  # the classes double to uint64
COMPLEX = 0x0800
MAX_VARIABLES = 100
MAX_AXES = 8
PEEK = 4096  # enough of a variable for its class, its shape and its name


@dataclass(frozen=True, slots=True)
class _Element:
    """One piece of a file, and where the next one begins."""

    kind: int
    content: memoryview
    after: int


@dataclass(frozen=True, slots=True)
class _Variable:
    """What a matrix says about itself before its numbers, and where those begin."""

    name: str
    shape: tuple[int, ...]
    is_real: bool
    start: int


def read(path: Path, names: tuple[str, ...], max_file: int, max_array: int) -> dict[str, npt.NDArray[Any]]:
    """Return the named variables and pass over all others; file and variables have their limits in bytes."""

    def run() -> dict[str, npt.NDArray[Any]]:
        content = memoryview(read_bytes(path, max_file))
        order = ORDERS.get(bytes(content[126:HEADER]))
        if order is None:
            raise ValueError("it does not begin as one")
        found: dict[str, npt.NDArray[Any]] = {}
        at = HEADER
        for _ in range(MAX_VARIABLES):
            if at >= len(content) or len(found) == len(names):
                break
            element = _element(content, at, order)
            at = element.after
            variable = _variable(_matrix(element, PEEK, order), order)
            if variable.name in names and variable.name not in found:
                found[variable.name] = _values(_matrix(element, max_array + PEEK, order), variable, order)
        if len(found) < len(names):
            raise ValueError(f"it has no variable {' or '.join(name for name in names if name not in found)}")
        return found

    return guarded(path, "a MATLAB 5 file with the arrays that belong there", run)


def _number(data: memoryview, order: Order) -> int:
    if len(data) != 4:
        raise ValueError("it ends in the middle of a number")
    return int.from_bytes(data, order)


def _element(data: memoryview, at: int, order: Order) -> _Element:
    first = _number(data[at : at + 4], order)
    if first >> 16:  # up to four bytes stand in the tag itself, where the size would be
        kind, size, start, after = first & 0xFFFF, first >> 16, at + 4, at + 8
    else:
        kind, size, start = first, _number(data[at + 4 : at + 8], order), at + 8
        after = start + size + (0 if kind == COMPRESSED else -size % 8)
    return _Element(kind, data[start : start + size], after)


def _matrix(element: _Element, most: int, order: Order) -> memoryview:
    """Return the first `most` bytes of a matrix, unpacked."""
    if element.kind == COMPRESSED:
        unpacked = zlib.decompressobj().decompress(element.content[: max(most, PEEK)], most)
        element = _element(memoryview(unpacked), 0, order)
    if element.kind != MATRIX:
        raise ValueError(f"it has an element of type {element.kind} where a variable belongs")
    return element.content[:most]


def _variable(matrix: memoryview, order: Order) -> _Variable:
    flags = _element(matrix, 0, order)
    sizes = _element(matrix, flags.after, order)
    name = _element(matrix, sizes.after, order)
    word = _number(flags.content[:4], order)
    axes = [_number(sizes.content[i : i + 4], order) for i in range(0, min(len(sizes.content), 4 * MAX_AXES), 4)]
    text = bytes(name.content).decode("ascii", "replace")
    return _Variable(text, tuple(axes), word & 0xFF in NUMBERS and not word & COMPLEX, name.after)


def _values(matrix: memoryview, variable: _Variable, order: Order) -> npt.NDArray[Any]:
    """Return the numbers of a matrix in the type they are stored in, columns first as MATLAB has them."""
    part = _element(matrix, variable.start, order)
    if not variable.is_real or part.kind not in STORED:
        raise ValueError(f"{variable.name} is no array of real numbers")
    kind = np.dtype(("<" if order == "little" else ">") + STORED[part.kind])
    if math.prod(variable.shape) * kind.itemsize != len(part.content):
        raise ValueError(f"{variable.name} has another size than its shape {variable.shape} says")
    return np.frombuffer(part.content, dtype=kind).reshape(variable.shape, order="F")
