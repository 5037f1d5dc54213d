"""The boundary between Python and C: every record, number and status code of `.ftm` files, declared once.

`header_text()` renders this module as `ft_abi.h`; a test keeps the committed header equal to it. This module
says how bytes lie in the file (docs/formats.md says what they mean); it neither writes nor reads a model.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC = 0x314D5446  # "FTM1", little-endian
VERSION = 5
NO_TENSOR = 0xFFFF
CRC_FROM = 16  # the checksum covers every byte after itself
MAX_KERNEL_HEIGHT = 16  # bounds a window over the input
MAX_CHAIN = 3  # operators that hand rows to one another
MAX_SHARES = 4095  # outputs of a softmax: their sum stays below 2^31
MAX_PRODUCT_SHIFT = 14  # a product of two steps, 16 bits, shifted left by this many still fits 32
GAP_SKIP = 255  # a gap byte that moves on by 255 weights and carries no value


class Kernel(IntEnum):
    """What an operator needs linked into the firmware; also its bit in the header's `kernels`."""

    CONV_DENSE = 0
    CONV_BITMAP = 1
    CONV_GAP = 2
    ADD = 3
    MEAN = 4
    CONV_RICE = 5
    DEPTHWISE = 6
    POOL = 7
    SOFTMAX = 8
    TABLE = 9
    MUL = 10
    PLACE = 11
    RESIZE = 12
    VECTOR = 13


class Status(IntEnum):
    """What a runtime function returns: 0 and above is success, below is an error."""

    OK = 0
    DONE = 1
    ERROR_ARGUMENT = -1
    ERROR_TRUNCATED = -2
    ERROR_MAGIC = -3
    ERROR_VERSION = -4
    ERROR_CHECKSUM = -5
    ERROR_FORMAT = -6
    ERROR_KERNEL = -7
    ERROR_ARENA = -8


STATUS_TEXT = {
    Status.OK: "done",
    Status.DONE: "the last operator has run",
    Status.ERROR_ARGUMENT: "a null pointer, or memory that is not 4-byte aligned",
    Status.ERROR_TRUNCATED: "fewer bytes than the header announces",
    Status.ERROR_MAGIC: "not a .ftm file",
    Status.ERROR_VERSION: "a format version this runtime does not read",
    Status.ERROR_CHECKSUM: "the checksum does not match: a damaged file",
    Status.ERROR_FORMAT: "a record, offset or weight stream breaks a rule of the format",
    Status.ERROR_KERNEL: "the model needs a kernel that is not linked into this firmware",
    Status.ERROR_ARENA: "the arena is smaller than the model needs, or not bound",
}

_CTYPES = {
    "B": "uint8_t",
    "b": "int8_t",
    "H": "uint16_t",
    "h": "int16_t",
    "I": "uint32_t",
    "i": "int32_t",
    "f": "float",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record: its name, its struct code, and what it means."""

    name: str
    code: str
    note: str


@dataclass(frozen=True, slots=True)
class Record:
    """A fixed-size little-endian record whose size is a multiple of four bytes and has no hidden padding."""

    name: str
    note: str
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        position = 0
        for field in self.fields:
            width = struct.calcsize("<" + field.code)
            assert position % width == 0, f"{self.name}.{field.name} is not at its natural alignment"
            position += width
        assert position % 4 == 0, f"{self.name} is not a whole number of words"

    @property
    def layout(self) -> str:
        """The struct format string."""
        return "<" + "".join(field.code for field in self.fields)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return struct.calcsize(self.layout)

    def pack(self, **values: float) -> bytes:
        """Lay the named values out as bytes; every field must be given."""
        assert set(values) == {field.name for field in self.fields}, f"{self.name}: wrong fields"
        return struct.pack(self.layout, *(values[field.name] for field in self.fields))

    def unpack(self, data: bytes, offset: int) -> dict[str, int]:
        """Read the record at `offset`; the caller has checked that it lies inside."""
        numbers = struct.unpack_from(self.layout, data, offset)
        return dict(zip((field.name for field in self.fields), numbers, strict=True))


HEADER = Record("header", "the first bytes of the file", (
    Field("magic", "I", "FT_MAGIC"),
    Field("version", "H", "FT_VERSION"),
    Field("header_bytes", "H", "size of this record"),
    Field("total_bytes", "I", "size of the whole file"),
    Field("crc32", "I", "CRC-32 (IEEE) of every byte after this field"),
    Field("kernels", "I", "bit k set: some operator uses kernel k"),
    Field("arena_bytes", "I", "RAM for tensors and scratch"),
    Field("tensor_count", "H", ""),
    Field("op_count", "H", ""),
    Field("input", "H", "index of the input tensor"),
    Field("output", "H", "index of the output tensor"),
    Field("tensors", "I", "offset of tensor_count tensor records"),
    Field("ops", "I", "offset of op_count op records"),
))  # fmt: skip

TENSOR = Record("tensor", "an int8 activation in the arena, rows of pixels of channels", (
    Field("offset", "I", "first byte in the arena"),
    Field("height", "H", ""),
    Field("width", "H", ""),
    Field("channels", "H", ""),
    Field("zero_point", "h", ""),
    Field("scale", "f", "real = scale * (int8 - zero_point); never used by kernels"),
    Field("rows", "H", "how many of the rows are in the arena at a time"),
    Field("reserved", "H", "0"),
))  # fmt: skip

OP = Record("op", "one operator; operators run in file order", (
    Field("kernel", "B", "FT_KERNEL_*"),
    Field("streamed", "B", "1: its rows go to the next operator as they are made, else 0"),
    Field("input", "H", "tensor index"),
    Field("input2", "H", "tensor index, or FT_NO_TENSOR"),
    Field("output", "H", "tensor index"),
    Field("params", "I", "offset of the kernel's parameter record"),
    Field("scratch", "I", "first byte of the operator's scratch in the arena"),
    Field("scratch_bytes", "I", "its size"),
))  # fmt: skip

CONV = Record("conv", "parameters of the convolutions; a fully connected layer is one over a 1x1 image", (
    Field("kernel_height", "B", ""),
    Field("kernel_width", "B", ""),
    Field("stride_height", "B", ""),
    Field("stride_width", "B", ""),
    Field("pad_top", "B", ""),
    Field("pad_left", "B", ""),
    Field("pad_right", "B", "padding below is as much as the output needs"),
    Field("pad_value", "b", "what padding holds: the zero point, unless a shift of the input was folded in"),
    Field("act_min", "b", "outputs are clamped to act_min..act_max"),
    Field("act_max", "b", ""),
    Field("max_taps", "H", "most non-zero weights of one output channel; 0 where dense"),
    Field("rows", "H", "output rows made at a time, at least 1"),
    Field("groups", "H", "of input channels that some output channels read; divides both; 1 where dense"),
    Field("dilation_height", "B", "rows from one row of the kernel to the next, at least 1"),
    Field("dilation_width", "B", "the same of columns"),
    Field("reserved", "H", "0"),
    Field("bias", "I", "offset of int32 per output channel, input zero point folded in"),
    Field("multiplier", "I", "offset of int32 per output channel, 0 or 2^30..2^31-1"),
    Field("shift", "I", "offset of int8 per output channel, -31..30; left is positive"),
    Field("weights", "I", "offset of the packed weights"),
    Field("weight_bytes", "I", "their size, a multiple of four"),
))  # fmt: skip

ADD = Record("add", "parameters of the addition of two tensors of one shape", (
    Field("multiplier1", "i", ""),
    Field("multiplier2", "i", ""),
    Field("multiplier_out", "i", ""),
    Field("shift1", "b", "0..-31"),
    Field("shift2", "b", "0..-31"),
    Field("shift_out", "b", "0..-31"),
    Field("reserved", "B", "0"),
    Field("act_min", "b", ""),
    Field("act_max", "b", ""),
    Field("reserved2", "H", "0"),
))  # fmt: skip

MEAN = Record("mean", "parameters of the mean over height and width", (
    Field("multiplier", "i", "from the sum over all pixels to the output"),
    Field("shift", "b", "-31..30"),
    Field("reserved", "B", "0"),
    Field("reserved2", "H", "0"),
))  # fmt: skip

POOL = Record("pool", "parameters of the largest value or the mean under a window", (
    Field("kernel_height", "B", ""),
    Field("kernel_width", "B", ""),
    Field("stride_height", "B", ""),
    Field("stride_width", "B", ""),
    Field("pad_top", "B", "less than the kernel is high"),
    Field("pad_left", "B", ""),
    Field("act_min", "b", "outputs are clamped to act_min..act_max"),
    Field("act_max", "b", ""),
    Field("average", "B", "1: the mean, 0: the largest value"),
    Field("reserved", "B", "0"),
    Field("reserved2", "H", "0"),
))  # fmt: skip

SOFTMAX = Record("softmax", "parameters of the softmax over channels", (
    Field("multiplier", "i", "from differences to fixed point, after the shift"),
    Field("shift", "b", "0..30"),
    Field("reserved", "B", "0"),
    Field("lowest", "h", "differences below this one, -255..0, count as nothing"),
))  # fmt: skip

MUL = Record("mul", "parameters of the product of two tensors; sides of 1 are repeated", (
    Field("multiplier", "i", ""),
    Field("shift", "b", "-31..FT_MAX_PRODUCT_SHIFT"),
    Field("act_min", "b", ""),
    Field("act_max", "b", ""),
    Field("reserved", "B", "0"),
))  # fmt: skip

PLACE = Record("place", "where an image is copied to inside a larger one", (
    Field("top", "H", "rows above it"),
    Field("left", "H", "columns before it"),
    Field("front", "H", "channels before it"),
    Field("fill", "B", "1: everything is filled with `value` first"),
    Field("value", "b", ""),
))  # fmt: skip

RECORDS = (HEADER, TENSOR, OP, CONV, ADD, MEAN, POOL, SOFTMAX, MUL, PLACE)


def _record_text(record: Record) -> str:
    name = f"ft_{record.name}"
    lines = [f"/* {record.note} */", f"typedef struct {name} {{"]
    for field in record.fields:
        comment = f" /* {field.note} */" if field.note else ""
        lines.append(f"    {_CTYPES[field.code]} {field.name};{comment}")
    lines += [f"}} {name}_t;", f"#define {name.upper()}_BYTES {record.size}u"]
    lines.append(f"typedef char {name}_size_check[sizeof({name}_t) == {name.upper()}_BYTES ? 1 : -1];")
    return "\n".join(lines)


def header_text() -> str:
    """Render `ft_abi.h`."""
    parts = [
        "/* Generated by fedtiny_export/abi.py: the layout of .ftm files and the status codes. Do not edit. */",
        "#ifndef FT_ABI_H",
        "#define FT_ABI_H",
        "#include <stdint.h>",
        f"#define FT_MAGIC 0x{MAGIC:08X}u",
        f"#define FT_VERSION {VERSION}u",
        f"#define FT_NO_TENSOR 0x{NO_TENSOR:X}u",
        f"#define FT_CRC_FROM {CRC_FROM}u",
        f"#define FT_GAP_SKIP {GAP_SKIP}u",
        f"#define FT_MAX_KERNEL_HEIGHT {MAX_KERNEL_HEIGHT}u",
        f"#define FT_MAX_CHAIN {MAX_CHAIN}u",
        f"#define FT_MAX_SHARES {MAX_SHARES}u",
        f"#define FT_MAX_PRODUCT_SHIFT {MAX_PRODUCT_SHIFT}",
        "typedef enum ft_status {",
        *(f"    FT_{status.name} = {status.value}, /* {STATUS_TEXT[status]} */" for status in Status),
        "} ft_status_t;",
        *(f"#define FT_KERNEL_{kernel.name} {kernel.value}u" for kernel in Kernel),
        f"#define FT_KERNEL_COUNT {len(Kernel)}u",
        *(_record_text(record) for record in RECORDS),
        "#endif",
    ]
    return "\n".join(parts) + "\n"
