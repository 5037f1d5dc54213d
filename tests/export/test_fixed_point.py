"""The integer arithmetic against gemmlowp's definition, written out with exact Python numbers."""

from __future__ import annotations

from fractions import Fraction

from fedtiny_export.graph.fixed_point import quantize_multiplier, requantize
from hypothesis import given
from hypothesis import strategies as st

INT32 = st.integers(-(2**31) + 1, 2**31 - 1)


def gemmlowp(x: int, multiplier: int, shift: int) -> int:
    """Saturating rounding doubling high multiply, then a rounding division by a power of two."""
    product = x * 2 ** max(shift, 0) * multiplier
    nudge = 2**30 if product >= 0 else 1 - 2**30
    total = product + nudge
    high = total // 2**31 if total >= 0 else -(-total // 2**31)
    right = max(-shift, 0)
    remainder, threshold = high & (2**right - 1), ((2**right - 1) >> 1) + (high < 0)
    return (high >> right) + (remainder > threshold)


@given(INT32, st.integers(0, 2**31 - 1), st.integers(-31, 0))
def test_requantize_is_gemmlowps_double_rounding(x, multiplier, shift):
    assert int(requantize(x, multiplier, shift)) == gemmlowp(x, multiplier, shift)


@given(st.integers(-(2**20), 2**20), st.integers(0, 2**31 - 1), st.integers(1, 10))
def test_requantize_shifts_left_first(x, multiplier, shift):
    assert int(requantize(x, multiplier, shift)) == gemmlowp(x, multiplier, shift)


@given(INT32, st.integers(2**30, 2**31 - 1), st.integers(-31, 0))
def test_single_rounding_is_the_nearest_integer_half_up(x, multiplier, shift):
    exact = Fraction(x * multiplier, 2 ** (31 - shift))
    assert int(requantize(x, multiplier, shift, single_rounding=True)) == (exact + Fraction(1, 2)).__floor__()


@given(st.floats(1e-8, 1e8))
def test_a_multiplier_is_within_31_bits_of_the_number(real):
    multiplier, shift = quantize_multiplier(real)
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) / Fraction(real) - 1) <= Fraction(1, 2**31)


def test_known_multipliers():
    assert quantize_multiplier(1.0) == (1 << 30, 1)
    assert quantize_multiplier(0.5) == (1 << 30, 0)
    assert quantize_multiplier(0.0) == (0, 0)
    assert quantize_multiplier(1.0 - 2.0**-40) == (1 << 30, 1)
