"""What travels between the server and a client, as bytes. A run's traffic is the length of these.

A message has a kind, some numbers by name and some tensors by name. A tensor is dense, or it is `Sparse`:
values at stated positions, written with a bitmap or with a list of indices, whichever is shorter. Positions
are part of the value, since a live weight may be zero. `decode` trusts nothing it reads, refuses what `encode`
would have written otherwise, and allocates no more than a few times the length of the message.

A message of 8 bits carries its float32 tensors as zero + scale * code, code 0 to 255 from their least to their
greatest value, where that is shorter (more than two values). It arrives as ordinary float32 tensors.

    "FTW1"  kind  u16 count  (name f64)*  u32 count  tensor*  u32 CRC-32 of all before it
    tensor  = name  u8 type  u8 form  u8 rank  u32*rank shape  body
    body    = values (dense) | u32 count  bitmap  values | u32 count  u16* or u32* indices  values
    values  = number* | f32 scale  f32 zero  u8* codes (type 3)
    name    = u8 length  UTF-8;  all numbers little-endian
"""

from __future__ import annotations

import functools
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError

T = TypeVar("T")

MAGIC = b"FTW1"
TYPES = ("<f4", "<f8", "<i8")
AFFINE8 = len(TYPES)
DENSE, BITMAP, INDEX16, INDEX32 = range(4)
PLACES = {INDEX16: "<u2", INDEX32: "<u4"}
MOST_ELEMENTS = 1 << 30
MOST_AXES = 8


class WireError(FedtinyError):
    """A message that cannot be read."""


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """Values at strictly increasing flat positions of a tensor; elsewhere it is zero."""

    shape: tuple[int, ...]
    indices: npt.NDArray[np.int64]
    values: npt.NDArray[Any]

    def dense(self) -> npt.NDArray[Any]:
        """Return the whole tensor."""
        flat = np.zeros(math.prod(self.shape), dtype=self.values.dtype)
        flat[self.indices] = self.values
        return flat.reshape(self.shape)

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return where the values are."""
        flat = np.zeros(math.prod(self.shape), dtype=np.bool_)
        flat[self.indices] = True
        return flat.reshape(self.shape)


Tensor = npt.NDArray[Any] | Sparse


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message, either way; `bits` is how many a float32 value takes on its way, 8 or 32."""

    kind: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    bits: int = 32

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor as a dense array."""
        tensor = self.tensors[name]
        return tensor.dense() if isinstance(tensor, Sparse) else tensor


def masked(array: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None) -> Tensor:
    """Return `array` as it travels under a mask: sparse where the mask leaves something out."""
    if mask is None or mask.all():
        return array
    indices = np.flatnonzero(mask)
    return Sparse(array.shape, indices, array.reshape(-1)[indices])


def _name(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"a name of {len(data)} bytes does not fit a message: {text[:40]}...")
    return bytes([len(data)]) + data


def encode(message: Message) -> bytes:
    """Write a message."""
    parts = [MAGIC, _name(message.kind), struct.pack("<H", len(message.numbers))]
    parts += [_name(name) + struct.pack("<d", number) for name, number in message.numbers.items()]
    parts.append(struct.pack("<I", len(message.tensors)))
    for name, tensor in message.tensors.items():
        parts += [_name(name), _encode_tensor(tensor, message.bits)]
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def _encode_tensor(tensor: Tensor, bits: int) -> bytes:
    values = tensor.values if isinstance(tensor, Sparse) else tensor
    code = TYPES.index(values.dtype.newbyteorder("<").str)
    if bits == 8 and code == 0 and values.size > 2:
        code = AFFINE8
    shape = tensor.shape
    size = math.prod(shape)
    form, places = DENSE, b""
    if isinstance(tensor, Sparse):
        form = _form(size, len(tensor.indices))
        if form == BITMAP:
            marks = np.zeros(size, dtype=np.uint8)
            marks[tensor.indices] = 1
            places = np.packbits(marks, bitorder="little").tobytes()
        else:
            places = tensor.indices.astype(PLACES[form]).tobytes()
        places = struct.pack("<I", len(tensor.indices)) + places
    head = struct.pack(f"<BBB{len(shape)}I", code, form, len(shape), *shape)
    return head + places + (_quantise(values) if code == AFFINE8 else values.astype(TYPES[code]).tobytes())


def _form(size: int, count: int) -> int:
    """Return the form that `count` positions of `size` are written in: the shorter one, the bitmap if both are."""
    width = 2 if size <= 1 << 16 else 4
    if -(-size // 8) <= width * count:
        return BITMAP
    return INDEX16 if width == 2 else INDEX32


def _quantise(values: npt.NDArray[np.float32]) -> bytes:
    low, high = float(values.min()), float(values.max())
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.float32((high - low) / 255)
    codes = np.zeros(values.shape, dtype=np.uint8)
    if np.isfinite(scale) and scale > 0:
        codes = np.rint((values.astype(np.float64) - low) / float(scale)).clip(0, 255).astype(np.uint8)
    # What is not finite has no scale either: it arrives as NaN, and whoever reads it refuses it.
    return struct.pack("<ff", scale, low) + codes.tobytes()


def _dequantise(scale: float, zero: float, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(zero + scale * codes.astype(np.float64), dtype=np.float32)


@functools.lru_cache(maxsize=64)
def _layout(codes: str) -> struct.Struct:
    return struct.Struct(f"<{codes}")


class _Reader:
    """A cursor over bytes that cannot leave them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.quantised = data, 0, False

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if count > len(self.data) - self.at:
            raise WireError(f"message ends after {len(self.data)} bytes, {count} more were to come at {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        """Return the next number of a struct code."""
        return self.several(code)[0]

    def several(self, codes: str) -> tuple[Any, ...]:
        """Return the next numbers, one for each struct code."""
        layout = _layout(codes)
        return layout.unpack(self.take(layout.size))

    def name(self) -> str:
        """Return the next name."""
        try:
            return self.take(self.number("B")).decode()
        except UnicodeDecodeError:
            raise WireError("a name in the message is not UTF-8") from None


def decode(data: bytes) -> Message:
    """Read a message; raise WireError on anything that `encode` would not have written."""
    if data[:4] != MAGIC:
        raise WireError("not a message: it does not begin with FTW1")
    body, checksum = data[:-4], data[-4:]
    if struct.pack("<I", zlib.crc32(body)) != checksum:
        raise WireError("its checksum is wrong: it was cut off, or damaged on the way")
    reader = _Reader(body)
    reader.take(4)
    kind = reader.name()
    numbers = _named(reader, reader.number("H"), lambda: float(reader.number("d")))
    tensors = _named(reader, reader.number("I"), lambda: _decode_tensor(reader))
    bits = 8 if reader.quantised else 32
    if reader.at != len(body):
        raise WireError(f"{len(body) - reader.at} bytes follow the end of the message")
    return Message(kind, numbers, tensors, bits)


def _named(reader: _Reader, count: int, value: Callable[[], T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for _ in range(count):
        name = reader.name()
        if name in found:
            raise WireError(f"{name} comes twice")
        found[name] = value()
    return found


def _decode_tensor(reader: _Reader) -> Tensor:
    code, form, rank = reader.several("BBB")
    if code > AFFINE8 or form > INDEX32:
        raise WireError(f"unknown tensor type {code} or form {form}")
    shape: tuple[int, ...] = reader.several(f"{rank}I")
    size = math.prod(shape)
    if rank > MOST_AXES or math.prod(max(1, length) for length in shape) > MOST_ELEMENTS:
        raise WireError(f"a tensor of shape {shape!s:.80} is over the limit of {MOST_ELEMENTS} elements")
    if form == DENSE:
        return _decode_values(reader, code, size).reshape(shape)
    count = int(reader.number("I"))
    if form != _form(size, count):
        raise WireError(f"{count} positions of {size} are not written in form {form}")
    indices = _decode_places(reader, form, size, count)
    return Sparse(shape, indices, _decode_values(reader, code, count))


def _decode_values(reader: _Reader, code: int, count: int) -> npt.NDArray[Any]:
    if code == AFFINE8:
        if count <= 2:
            raise WireError(f"{count} values are shorter as they are than in 8 bits")
        reader.quantised = True
        scale, zero = float(reader.number("f")), float(reader.number("f"))
        return _dequantise(scale, zero, np.frombuffer(reader.take(count), np.uint8))
    kind = np.dtype(TYPES[code])
    return np.frombuffer(reader.take(count * kind.itemsize), kind).astype(kind)


def _decode_places(reader: _Reader, form: int, size: int, count: int) -> npt.NDArray[np.int64]:
    if form == BITMAP:
        packed = np.frombuffer(reader.take(-(-size // 8)), np.uint8)
        bits = np.unpackbits(packed, bitorder="little")
        if bits[size:].any() or int(bits.sum()) != count:
            raise WireError(f"a bitmap marks {int(bits.sum())} positions of {size}, not {count}")
        return np.flatnonzero(bits)
    kind = np.dtype(PLACES[form])
    indices = np.frombuffer(reader.take(count * kind.itemsize), kind).astype(np.int64)
    if count and (indices[-1] >= size or not (np.diff(indices) > 0).all()):
        raise WireError(f"positions of a sparse tensor do not increase, or leave its {size} elements")
    return indices
