"""Integer arithmetic of TensorFlow Lite's int8 kernels: multipliers, rescaling, clamps.

The formulas follow TFLite Micro's kernels down to the precision of each intermediate, because the outputs must
agree byte for byte. `requantize` is the same function as the runtime's `ft_rescale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ir import Node, Tensor

Ints = NDArray[np.int64]
ADD_LEFT_SHIFT = 20


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Write a positive real number as multiplier * 2^(shift - 31) with a 31-bit multiplier."""
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    fixed = math.floor(fraction * (1 << 31) + 0.5)
    if fixed == 1 << 31:
        fixed //= 2
        shift += 1
    return (0, 0) if shift < -31 else (fixed, shift)


def requantize(x: Ints, multiplier: Ints | int, shift: Ints | int, *, single_rounding: bool = False) -> Ints:
    """Compute round(x * multiplier * 2^(shift-31)), rounding twice as gemmlowp does, or once."""
    x, multiplier, shift = (
        np.asarray(x, np.int64),
        np.asarray(multiplier, np.int64),
        np.asarray(shift, np.int64),
    )
    if single_rounding:
        total = 31 - shift
        return np.asarray((x * multiplier + (np.int64(1) << (total - 1))) >> total)
    right = np.maximum(-shift, 0)
    high = np.asarray((x << np.maximum(shift, 0) if np.any(shift > 0) else x) * multiplier)
    high += 1 << 30  # in place from here on: these arrays are the largest of an export
    high >>= 31
    half = (np.int64(1) << right) >> 1
    below = (high >> 63) & -(right > 0).astype(np.int64)  # a half goes away from zero
    below += half
    high += below
    high >>= right
    return high


def activation_limits(node: Node, output: Tensor) -> tuple[int, int]:
    """The int8 values that the fused activation clamps to."""
    assert output.quant is not None
    scale, zero_point = output.quant.scale, output.quant.zero_point
    low = -128 if node.low is None else max(-128, zero_point + _round_float32(node.low, scale))
    high = 127 if node.high is None else min(127, zero_point + _round_float32(node.high, scale))
    return low, high


def _round_float32(value: float, scale: float) -> int:
    """value / scale in 32-bit floats, halves away from zero, as the kernels prepare their limits."""
    steps = float(np.float32(value) / np.float32(scale))
    return int(math.copysign(math.floor(abs(steps) + 0.5), steps))


def conv_multipliers(node: Node, tensors: Mapping[str, Tensor]) -> tuple[Ints, Ints]:
    """Multiplier and shift of every output channel of a convolution or dense layer."""
    data, output = tensors[node.inputs[0]].quant, tensors[node.output].quant
    assert data is not None
    assert output is not None
    pairs = [quantize_multiplier(data.scale * float(scale) / output.scale) for scale in node.constants["weight_scale"]]
    pairs *= node.constants["weight"].shape[0] // len(pairs)  # one scale may be for all channels
    return np.array([m for m, _ in pairs], np.int64), np.array([s for _, s in pairs], np.int64)


@dataclass(frozen=True, slots=True)
class AddNumbers:
    """(multiplier, shift) of both inputs and of the output of an addition."""

    first: tuple[int, int]
    second: tuple[int, int]
    output: tuple[int, int]


def add_numbers(node: Node, tensors: Mapping[str, Tensor]) -> AddNumbers:
    """Rescaling of an addition: both inputs to twice the larger scale, with 20 bits to spare."""
    (first, second), output = _scales(node, tensors)
    # the kernel takes these scales as floats and doubles them as a double
    twice = 2.0 * max(first, second)
    return AddNumbers(
        quantize_multiplier(first / twice),
        quantize_multiplier(second / twice),
        quantize_multiplier(twice / ((1 << ADD_LEFT_SHIFT) * output)),
    )


def mean_numbers(node: Node, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(multiplier, shift) from a sum over all pixels to the output: the division is folded into the multiplier."""
    source = tensors[node.inputs[0]]
    data, output = source.quant, tensors[node.output].quant
    assert data is not None
    assert output is not None
    multiplier, shift = quantize_multiplier(data.scale / output.scale)
    pixels = source.image[0] * source.image[1]
    spare = min(pixels.bit_length() - 1, 31 + shift)
    return (multiplier << spare) // pixels, shift - spare


def centred(values: NDArray[Any], tensor: Tensor) -> Ints:
    """int8 values as steps from the tensor's zero point."""
    assert tensor.quant is not None
    return values.astype(np.int64) - tensor.quant.zero_point


def clamped(node: Node, steps: Ints, tensors: Mapping[str, Tensor]) -> Ints:
    """Steps from the output's zero point as int8 values inside the fused activation's limits."""
    output = tensors[node.output]
    assert output.quant is not None
    return np.clip(steps + output.quant.zero_point, *activation_limits(node, output))


def _scales(node: Node, tensors: Mapping[str, Tensor]) -> tuple[list[float], float]:
    """The scales of the inputs, of the number that is the second one, and of the output."""
    found = []
    for name in (*node.inputs, node.output):
        quant = tensors[name].quant
        assert quant is not None
        found.append(quant.scale)
    number = [node.settings["scale"]] if "scale" in node.settings else []
    return found[:-1] + number, found[-1]


def mul_numbers(node: Node, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(multiplier, shift) from a product of steps to the output."""
    (first, second), output = _scales(node, tensors)
    return quantize_multiplier(first * second / output)


def rescale_numbers(node: Node, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(multiplier, shift) from the input's steps to the output's."""
    (data,), output = _scales(node, tensors)
    return quantize_multiplier(data / output)


def leaky_relu_numbers(node: Node, tensors: Mapping[str, Tensor]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(multiplier, shift) above and below zero; the kernel divides in 32-bit floats."""
    (data,), output = _scales(node, tensors)
    alpha = np.float32(data) * np.float32(node.settings["alpha"]) / np.float32(output)
    return quantize_multiplier(float(np.float32(data) / np.float32(output))), quantize_multiplier(float(alpha))


@dataclass(frozen=True, slots=True)
class HardSwishNumbers:
    """(16-bit multiplier, exponent) to the output's scale, and to a scale where 3.0 is one."""

    output: tuple[int, int]
    gate: tuple[int, int]


def hard_swish_numbers(node: Node, tensors: Mapping[str, Tensor]) -> HardSwishNumbers:
    """Rescalings of a hard swish, from 1/128 of the input's steps; the kernel divides in 32-bit floats."""
    (data,), output = _scales(node, tensors)
    fine = np.float32(1.0 / 128.0) * np.float32(data)
    return HardSwishNumbers(
        _multiplier16(float(fine / np.float32(output))),
        _multiplier16(float(fine / (np.float32(3.0) / np.float32(32768.0)))),
    )


def _multiplier16(real: float) -> tuple[int, int]:
    wide, exponent = quantize_multiplier(real)
    return (32767 if wide >= (1 << 31) - (1 << 15) else (wide + (1 << 15)) >> 16), exponent


def logistic_numbers(node: Node, tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(multiplier, shift) to fixed point with 4 integer bits, and the radius they cover; also for tanh."""
    (data,), _ = _scales(node, tensors)
    fraction, shift = math.frexp(data * 2.0**27)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    return multiplier, shift, math.floor(15.0 * 2.0**27 / 2.0**shift)


def softmax_numbers(node: Node, tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(multiplier, shift) to fixed point with 5 integer bits, and the lowest difference that counts."""
    (data,), _ = _scales(node, tensors)
    beta = float(np.float32(node.settings["beta"]))
    multiplier, shift = quantize_multiplier(min(beta * data * 2.0**26, 2.0**31 - 1.0))
    return multiplier, shift, -math.floor(31.0 * 2.0**26 / 2.0**shift)
