"""How many bytes a tensor takes in each form it can be stored in, as formulas of its size and its live weights.

With n weights, m of them live, float32 values and a weight of n_r rows (filters) by n_c columns:

dense   4 n
bitmap  4 m + n / 8
coo     4 m + m ceil(log2 n) / 8, a flat position a value
csr     4 m + (m ceil(log2 n_c) + n_r ceil(log2(m + 1))) / 8, a column a value and an end a row
pairs   8 m, a 32-bit position a value: the form that agrees with FedTiny's published megabytes

Positions are packed to the bit and each of the two parts is rounded up to whole bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedtiny_train.masks import Mask

VALUE = 4


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor as storage sees it: its weights, its rows, and how many weights live."""

    size: int
    rows: int
    live: int


def extent(mask: Mask) -> Extent:
    """Return the extent of a mask; its rows are the filters."""
    return Extent(mask.size, mask.shape[0] if mask.ndim else 1, int(mask.sum()))


def dense(of: Extent) -> int:
    """Return the bytes with every weight stored."""
    return VALUE * of.size


def bitmap(of: Extent) -> int:
    """Return the bytes with one bit a weight."""
    return VALUE * of.live + _bytes(of.size)


def coo(of: Extent) -> int:
    """Return the bytes with a flat position of as many bits as it needs."""
    return VALUE * of.live + _bytes(of.live * _bits(of.size))


def csr(of: Extent) -> int:
    """Return the bytes with a column for each value and the end of each row, which is 0 to m."""
    columns = of.size // max(1, of.rows)
    return VALUE * of.live + _bytes(of.live * _bits(columns) + of.rows * _bits(of.live + 1))


def pairs(of: Extent) -> int:
    """Return the bytes with a 32-bit position a value."""
    return 2 * VALUE * of.live


FORMS: Mapping[str, Callable[[Extent], int]] = {
    "dense": dense,
    "bitmap": bitmap,
    "coo": coo,
    "csr": csr,
    "pairs": pairs,
}


def cheapest(of: Extent) -> int:
    """Return the bytes in the form that takes the fewest."""
    return min(form(of) for form in FORMS.values())


def pairs_or_dense(of: Extent) -> int:
    """Return the bytes as FedTiny's figures have them: pairs, or dense where that is less."""
    return min(pairs(of), dense(of))


def _bits(values: int) -> int:
    """Return the bits that tell so many values apart."""
    return max(0, values - 1).bit_length()


def _bytes(bits: int) -> int:
    return math.ceil(bits / 8)
