"""Fixed-point exp, logistic and reciprocal as TFLite's int8 kernels compute them, on numpy arrays.

The constants and the order of roundings are those of gemmlowp's fixedpoint.h: outputs must agree byte for byte.
Values are raw integers; `integer_bits` says where their binary point is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
ONE = (1 << 31) - 1  # 1.0 with no integer bits, saturated
EXP_EIGHTH = 1895147668  # exp(-1/8)
THIRD = 715827883
# exp(-2^k) for k = -2 ... 4
EXP_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
NEWTON_START, NEWTON_SLOPE = 1515870810, -1010580540  # 48/17 and -32/17 with two integer bits


def _towards_zero(value: Ints, bits: int) -> Ints:
    return np.asarray(np.sign(value) * (np.abs(value) >> bits))


def high_mul32(a: Any, b: Any) -> Ints:
    """a * b / 2^31, rounded to nearest as ARM's SQRDMULH."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.minimum(_towards_zero(product + np.where(product >= 0, 1 << 30, 1 - (1 << 30)), 31), ONE)


def high_mul16(a: Any, b: Any, *, rounding: bool = True) -> Ints:
    """a * b / 2^15 in 16 bits, rounded to nearest or towards zero."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    nudge = np.where(product >= 0, 1 << 14, 1 - (1 << 14)) if rounding else 0
    return np.asarray(np.minimum(_towards_zero(product + nudge, 15), 32767))


def shift_left16(value: Ints, bits: int) -> Ints:
    """A left shift that saturates at 16 bits."""
    return np.asarray(np.clip(value << bits, -32768, 32767))


def shift_right(value: Any, bits: Any) -> Ints:
    """value / 2^bits, rounded to nearest, halves away from zero."""
    value = np.asarray(value, np.int64)
    mask = (np.int64(1) << np.asarray(bits, np.int64)) - 1
    return np.asarray((value >> bits) + ((value & mask) > (mask >> 1) + (value < 0)))


def shift_right16(value: Ints, bits: int) -> Ints:
    """The same in 16 bits, where a shift by all of them or more leaves the sign: the mask for the rest is full."""
    return np.where(value < 0, -1, 1) if bits > 15 else shift_right(value, bits)


def multiply_up(value: Ints, multiplier: int, shift: int) -> Ints:
    """value * multiplier * 2^(shift - 31) for a multiplier above one: shifted first."""
    return high_mul32(value << shift, multiplier)


def exp_of_negative(value: Ints, integer_bits: int) -> Ints:
    """exp(value) for value <= 0, with no integer bits."""
    fraction = 31 - integer_bits
    quarter = np.int64(1) << (fraction - 2)
    low = (value & (quarter - 1)) - quarter  # in -1/4..0
    result = _exp_near_zero(low << integer_bits)
    rest = low - value
    for power, factor in enumerate(EXP_POWERS, start=-2):
        if integer_bits > power:
            result = np.where(rest & (np.int64(1) << (fraction + power)), high_mul32(result, factor), result)
    return np.where(value == 0, ONE, result)


def _exp_near_zero(value: Ints) -> Ints:
    """A Taylor polynomial about -1/8."""
    x = value + (1 << 28)
    x2 = high_mul32(x, x)
    x3, x4 = high_mul32(x2, x), high_mul32(x2, x2)
    tail = shift_right(high_mul32(shift_right(x4, 2) + x3, THIRD) + x2, 1)
    return EXP_EIGHTH + high_mul32(EXP_EIGHTH, x + tail)


def _one_over_one_plus(value: Ints) -> Ints:
    """1 / (1 + value) for value in 0..1."""
    return _saturated_shift(_two_over_one_plus(value), 1)  # half of it, from two integer bits to none


def _two_over_one_plus(value: Ints) -> Ints:
    """2 / (1 + value) for value in 0..1 with two integer bits, by three Newton steps."""
    total = value + ONE
    half = (total + 1) >> 1  # total is never negative: halves go up
    x = NEWTON_START + high_mul32(half, NEWTON_SLOPE)
    for _ in range(3):
        error = (1 << 29) - high_mul32(half, x)
        x = x + _saturated_shift(high_mul32(x, error), 2)
    return x


def _saturated_shift(value: Ints, bits: int) -> Ints:
    limit = (1 << (31 - bits)) - 1
    return np.where(value > limit, ONE, np.where(value < -limit, -ONE - 1, value << bits))


def logistic(value: Ints, integer_bits: int) -> Ints:
    """1 / (1 + exp(-value)), with no integer bits."""
    positive = _one_over_one_plus(exp_of_negative(-np.abs(value), integer_bits))
    return np.where(value == 0, 1 << 30, np.where(value > 0, positive, ONE - positive))


def tanh(value: Ints, integer_bits: int) -> Ints:
    """(1 - exp(-2 value)) / (1 + exp(-2 value)), with no integer bits."""
    power = exp_of_negative(-np.abs(value), integer_bits + 1)  # one bit more: twice the value
    positive = _saturated_shift(_two_over_one_plus(power) - (1 << 29), 2)
    return np.where(value < 0, -positive, np.where(value > 0, positive, 0))


def reciprocal(value: Ints, integer_bits: int) -> tuple[Ints, Ints]:
    """1 / value scaled into 0.5..1, and by how many bits value lies above one."""
    # value is below 2^31, where float64 gives its length exactly
    headroom = 32 - np.frexp(value.astype(np.float64))[1].astype(np.int64)
    return _one_over_one_plus((value << headroom) - (1 << 31)), integer_bits - headroom
