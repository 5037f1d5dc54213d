"""Weight encodings of `.ftm`, pack beside unpack, and the choice between them.

A layer is a flat int8 array, output channel after output channel. Every packed stream is a whole number of
words. docs/formats.md has the rules; the C decoders are ft_conv_dense.c, ft_conv_bitmap.c, ft_conv_gap.c and
ft_conv_rice.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .abi import GAP_SKIP, Kernel

Weights = NDArray[np.int8]
# what linking a kernel costs, and the first of a set that shares code
Code = Mapping[Kernel, int] | Mapping[Kernel | frozenset[Kernel], int]
MAX_LOW_BITS = 15  # of a Rice-coded gap


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to lay a layer's weights out."""

    kernel: Kernel
    pack: Callable[[Weights], bytes]
    unpack: Callable[[bytes, int], Weights]


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer's weights as bytes, and by which kernel they are read."""

    kernel: Kernel
    data: bytes
    max_taps: int  # most non-zero weights of one output channel; 0 where dense


def _words(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def pack_dense(weights: Weights) -> bytes:
    """Every weight, one byte each."""
    return _words(weights.tobytes())


def unpack_dense(data: bytes, count: int) -> Weights:
    """Undo pack_dense."""
    return np.frombuffer(data, np.int8, count).copy()


def pack_bitmap(weights: Weights) -> bytes:
    """One bit a weight, lowest first, in whole words; then one byte a non-zero weight."""
    return _words(np.packbits(weights != 0, bitorder="little").tobytes()) + _words(weights[weights != 0].tobytes())


def unpack_bitmap(data: bytes, count: int) -> Weights:
    """Undo pack_bitmap."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little").astype(bool)
    start = 4 * (-(-count // 32))
    weights = np.zeros(count, np.int8)
    weights[bits] = np.frombuffer(data, np.int8, int(bits.sum()), start)
    return weights


def pack_gap(weights: Weights) -> bytes:
    """Before each non-zero weight the number of zeros since the one before it; a last gap reaches the end."""
    stream = bytearray()
    for gap, position in zip(_gaps(weights), [*np.flatnonzero(weights), None], strict=True):
        stream += bytes([GAP_SKIP]) * (int(gap) // GAP_SKIP)
        stream.append(int(gap) % GAP_SKIP)
        if position is not None:
            stream.append(int(weights[position]) & 0xFF)
    return _words(bytes(stream))


def unpack_gap(data: bytes, count: int) -> Weights:
    """Undo pack_gap."""
    weights = np.zeros(count, np.int8)
    position, at = 0, 0
    while True:
        gap = data[at]
        at += 1
        position += gap
        if gap == GAP_SKIP:
            continue
        if position >= count:
            return weights
        weights[position] = data[at] - 256 * (data[at] > 127)
        position, at = position + 1, at + 1


def _gaps(weights: Weights) -> NDArray[np.int64]:
    """Zeros before each non-zero weight, and after the last."""
    positions = np.flatnonzero(weights)
    return np.asarray(np.diff(np.concatenate([[-1], positions, [weights.size]])) - 1, np.int64)


def _rice_cost(gaps: NDArray[np.int64]) -> tuple[int, int]:
    """(bits, low bits) of the shortest Rice coding of these gaps."""
    return min((int((gaps >> low).sum()) + gaps.size * (1 + low), low) for low in range(MAX_LOW_BITS + 1))


def _rice_bytes(gap_bits: int, nonzero: int) -> int:
    """The first byte, gaps, values and the last gap's absent one, in whole words; and a word that is only looked at."""
    return 4 * (-(-(8 + gap_bits + 8 * (nonzero + 1)) // 32) + 1)


def pack_rice(weights: Weights) -> bytes:
    """As pack_gap, with gaps as Rice codes: bits, lowest first, after a byte that says how many low bits gaps have."""
    gaps, values = _gaps(weights), weights[weights != 0].view(np.uint8).astype(np.int64)
    gap_bits, low = _rice_cost(gaps)
    bits = np.zeros(8 * _rice_bytes(gap_bits, values.size), np.uint8)
    bits[:8] = low >> np.arange(8) & 1
    lengths = (gaps >> low) + 1 + low + 8
    ones = 8 + np.cumsum(lengths) - lengths + (gaps >> low)
    bits[ones] = 1
    for bit in range(low):
        bits[ones + 1 + bit] = gaps >> bit & 1
    for bit in range(8):
        bits[ones[:-1] + 1 + low + bit] = values >> bit & 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_rice(data: bytes, count: int) -> Weights:
    """Undo pack_rice."""
    weights = np.zeros(count, np.int8)
    bits, low = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little"), data[0]
    ones, position, at = np.flatnonzero(bits), 0, 8
    while True:
        one = int(ones[np.searchsorted(ones, at)])
        position += (one - at << low) + int(bits[one + 1 : one + 1 + low] @ (1 << np.arange(low)))
        if position >= count:
            return weights
        at = one + 1 + low + 8
        weights[position] = np.packbits(bits[at - 8 : at], bitorder="little").view(np.int8)[0]
        position += 1


ENCODINGS = (
    Encoding(Kernel.CONV_DENSE, pack_dense, unpack_dense),
    Encoding(Kernel.CONV_BITMAP, pack_bitmap, unpack_bitmap),
    Encoding(Kernel.CONV_GAP, pack_gap, unpack_gap),
    Encoding(Kernel.CONV_RICE, pack_rice, unpack_rice),
    Encoding(Kernel.DEPTHWISE, pack_dense, unpack_dense),
    Encoding(Kernel.VECTOR, pack_dense, unpack_dense),
)
SPARSE = (Kernel.CONV_BITMAP, Kernel.CONV_GAP, Kernel.CONV_RICE)
CONVS = (Kernel.CONV_DENSE, *SPARSE)  # what a convolution of one group can be
VECTORS = (*CONVS, Kernel.VECTOR)  # what a dense layer can be


def encoding_of(kernel: Kernel) -> Encoding:
    """The encoding that a kernel reads."""
    return next(encoding for encoding in ENCODINGS if encoding.kernel == kernel)


def sizes(weights: Weights) -> dict[Kernel, int]:
    """Bytes of a layer in every encoding."""
    flat = weights.reshape(-1)
    gaps, nonzero = _gaps(flat), int(np.count_nonzero(flat))
    gap_bytes = int((gaps // GAP_SKIP).sum()) + gaps.size + nonzero
    bitmap = 4 * (-(-flat.size // 32)) + nonzero + -nonzero % 4
    return {
        Kernel.CONV_DENSE: flat.size + -flat.size % 4,
        Kernel.CONV_BITMAP: bitmap,
        Kernel.CONV_GAP: gap_bytes + -gap_bytes % 4,
        Kernel.CONV_RICE: _rice_bytes(_rice_cost(gaps)[0], nonzero),
        Kernel.DEPTHWISE: flat.size + -flat.size % 4,
        Kernel.VECTOR: flat.size + -flat.size % 4,
    }


def pack(weights: Weights, kernel: Kernel) -> Packed:
    """Pack a layer (first axis: output channel) for a kernel."""
    taps = 0
    if kernel in SPARSE:
        taps = int(np.count_nonzero(weights.reshape(weights.shape[0], -1), axis=1).max())
    return Packed(kernel, encoding_of(kernel).pack(weights.reshape(-1)), taps)


def choose(layers: Sequence[tuple[Weights, Sequence[Kernel]]], code_bytes: Code) -> list[Kernel]:
    """The kernel of every layer, of those that can read it, such that weights and linked kernels take the fewest bytes.

    All sets of kernels are tried: exact, not greedy.
    """
    costs = [{kernel: size for kernel, size in sizes(weights).items() if kernel in able} for weights, able in layers]
    kernels = [encoding.kernel for encoding in ENCODINGS]
    best: tuple[int, list[Kernel]] | None = None
    for subset in range(1, 1 << len(kernels)):
        allowed = [kernel for bit, kernel in enumerate(kernels) if subset >> bit & 1]
        if any(cost.keys().isdisjoint(allowed) for cost in costs):
            continue
        picked = [min((cost[kernel], kernel) for kernel in allowed if kernel in cost)[1] for cost in costs]
        total = sum(cost[kernel] for cost, kernel in zip(costs, picked, strict=True))
        total += linked_bytes(code_bytes, set(picked))
        if best is None or total < best[0]:
            best = (total, picked)
    assert best is not None
    return best[1]


def linked_bytes(code_bytes: Code, kernels: AbstractSet[Kernel]) -> int:
    """What linking these kernels costs."""
    return sum(
        cost
        for key, cost in code_bytes.items()
        if (key in kernels if isinstance(key, Kernel) else not kernels.isdisjoint(key))
    )
