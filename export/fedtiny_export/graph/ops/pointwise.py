"""Operators on one value at a time, or on one pixel's channels: arithmetic of two tensors and activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import gemmlowp
from ..fixed_point import (
    ADD_LEFT_SHIFT,
    add_numbers,
    centred,
    clamped,
    hard_swish_numbers,
    leaky_relu_numbers,
    logistic_numbers,
    mul_numbers,
    requantize,
    rescale_numbers,
    softmax_numbers,
)
from ..ir import Node, Tensor

Numbers = NDArray[Any]
Tensors = Mapping[str, Tensor]


def _centred(node: Node, inputs: list[Numbers], tensors: Tensors) -> list[Numbers]:
    return [centred(values, tensors[name]) for values, name in zip(inputs, node.inputs, strict=True)]


def add_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """Both inputs on twice the larger scale with 20 spare bits, then the sum on the output's."""
    first, second = _centred(node, inputs, tensors)
    numbers = add_numbers(node, tensors)
    total = requantize(first << ADD_LEFT_SHIFT, *numbers.first) + requantize(second << ADD_LEFT_SHIFT, *numbers.second)
    return clamped(node, requantize(total, *numbers.output), tensors)


def mul_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """The product, rescaled."""
    first, second = _centred(node, inputs, tensors)
    return clamped(node, requantize(first * second, *mul_numbers(node, tensors)), tensors)


def add_number_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """As add_int8 with one number for every second input, either of them negative where it is subtracted."""
    (data,) = _centred(node, inputs, tensors)
    numbers, settings = add_numbers(node, tensors), node.settings
    number = requantize(np.array(int(settings["steps"]) << ADD_LEFT_SHIFT), *numbers.second)
    total = int(settings["sign"]) * requantize(data << ADD_LEFT_SHIFT, *numbers.first)
    total = total + int(settings["number_sign"]) * number
    return clamped(node, requantize(total, *numbers.output), tensors)


def mul_number_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """As mul_int8 with one number for every second input."""
    (data,) = _centred(node, inputs, tensors)
    product = data * int(node.settings["steps"])
    return clamped(node, requantize(product, *mul_numbers(node, tensors)), tensors)


def rescale_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """The same real numbers in the output's steps, clamped."""
    (data,) = _centred(node, inputs, tensors)
    return clamped(node, requantize(data, *rescale_numbers(node, tensors)), tensors)


def leaky_relu_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """x, or alpha * x below zero."""
    return np.where(inputs[0] >= 0, inputs[0], inputs[0] * node.settings["alpha"])


def leaky_relu_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """Two rescalings, by sign."""
    (data,) = _centred(node, inputs, tensors)
    above, below = leaky_relu_numbers(node, tensors)
    return clamped(node, np.where(data >= 0, requantize(data, *above), requantize(data, *below)), tensors)


def hard_swish_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """x * relu6(x + 3) / 6."""
    return np.asarray(inputs[0] * np.clip(inputs[0] + 3.0, 0.0, 6.0) / 6.0)


def hard_swish_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """In 16-bit fixed point: the value on the output's scale times the value mapped from -3..3 to 0..1."""
    (data,) = _centred(node, inputs, tensors)
    numbers = hard_swish_numbers(node, tensors)
    fine = data << 7
    value = gemmlowp.high_mul16(fine, numbers.output[0])
    gate, exponent = fine, numbers.gate[1]
    if exponent > 0:
        gate = gemmlowp.shift_left16(gate, exponent - 1)
    gate = gemmlowp.high_mul16(gate, numbers.gate[0])
    gate = gemmlowp.shift_left16(gate, 1) if exponent > 0 else gemmlowp.shift_right16(gate, -exponent)
    product = gemmlowp.high_mul16((gate + (1 << 15)) >> 1, value, rounding=False)
    return clamped(node, gemmlowp.shift_right16(product, -numbers.output[1]), tensors)


def logistic_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """1 / (1 + exp(-x))."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * inputs[0])))


def logistic_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """In fixed point with 4 integer bits; beyond the radius the result is an end of the range."""
    (data,) = _centred(node, inputs, tensors)
    multiplier, shift, radius = logistic_numbers(node, tensors)
    inside = np.clip(data, 1 - radius, radius - 1)
    result = gemmlowp.logistic(requantize(inside, multiplier, shift), integer_bits=4)
    near = np.clip(gemmlowp.shift_right(result, 23) - 128, -128, 127)
    return np.where(data <= -radius, -128, np.where(data >= radius, 127, near))


def tanh_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """The hyperbolic tangent."""
    return np.asarray(np.tanh(inputs[0]))


def tanh_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """In fixed point with 4 integer bits; beyond the radius the result is an end of the range."""
    (data,) = _centred(node, inputs, tensors)
    multiplier, shift, radius = logistic_numbers(node, tensors)
    inside = np.clip(data, 1 - radius, radius - 1)
    result = gemmlowp.tanh(requantize(inside, multiplier, shift), integer_bits=4)
    near = np.clip(gemmlowp.shift_right(result, 24), -128, 127)
    return np.where(data <= -radius, -128, np.where(data >= radius, 127, near))


def softmax_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """exp(beta * x), shares of their sum over the last side."""
    powers = np.exp(node.settings["beta"] * (inputs[0] - inputs[0].max(axis=-1, keepdims=True)))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def softmax_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """In fixed point: powers with 5 integer bits, their sum with 12, one reciprocal."""
    multiplier, shift, lowest = softmax_numbers(node, tensors)
    away = inputs[0] - inputs[0].max(axis=-1, keepdims=True)
    counted = away >= lowest
    scaled = gemmlowp.multiply_up(np.where(counted, away, 0), multiplier, shift)
    powers = gemmlowp.exp_of_negative(scaled, integer_bits=5)
    total = np.where(counted, gemmlowp.shift_right(powers, 12), 0).sum(axis=-1, keepdims=True)
    reciprocal, over_unit = gemmlowp.reciprocal(total, integer_bits=12)
    shares = gemmlowp.shift_right(gemmlowp.high_mul32(reciprocal, powers), over_unit + 23)
    return np.where(counted, np.clip(shares - 128, -128, 127), -128)
