"""Operators that add many products or inputs: convolutions, dense layers, means and average pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fixed_point import activation_limits, centred, clamped, conv_multipliers, mean_numbers, requantize
from ..ir import Node, Op, Tensor, Window, groups

Numbers = NDArray[Any]
Tensors = Mapping[str, Tensor]
MAX_PATCHES = 1 << 22  # numbers laid out at once
MOST_STEPS = 255  # between an int8 value and a zero point


def windows(data: Numbers, window: Window) -> Numbers:
    """Cut (n, height, width, channels), already padded, into (n, rows, columns, kernel h, kernel w, channels)."""
    views = np.lib.stride_tricks.sliding_window_view(data, window.reach, axis=(1, 2))
    (tall, wide), (down, right) = window.dilation, window.stride
    return np.asarray(views[:, ::down, ::right, :, ::tall, ::wide].transpose(0, 1, 2, 4, 5, 3))


def taps(data: Numbers, window: Window, rows: int, columns: int) -> Iterator[tuple[int, int, Numbers]]:
    """For each place in the kernel, what every window sees there: (n, rows, columns, channels)."""
    (down, right), (tall, wide) = window.stride, window.dilation
    for y in range(window.kernel[0]):
        for x in range(window.kernel[1]):
            top, left = y * tall, x * wide
            seen = data[:, top : top + (rows - 1) * down + 1 : down, left : left + (columns - 1) * right + 1 : right]
            yield y, x, seen


def over_window(join: np.ufunc, data: Numbers, window: Window, rows: int, columns: int) -> Numbers:
    """Join what each window sees by a function that may be taken in any order: by rows, then by columns."""
    tall = Window((window.kernel[0], 1), (window.stride[0], 1))
    wide = Window((1, window.kernel[1]), (1, window.stride[1]))
    for part, high, broad in ((tall, rows, data.shape[2]), (wide, rows, columns)):
        seen = taps(data, part, high, broad)
        _, _, first = next(seen)
        total = first.copy()
        for _, _, more in seen:
            join(total, more, out=total)
        data = total
    return data


def _exact_floats(weight: Numbers) -> type[np.floating[Any]]:
    """The floats that add products of int8 weights and steps without rounding, in any order: sums are whole numbers."""
    most = np.abs(weight.reshape(weight.shape[0], -1).astype(np.int64)).sum(axis=1).max()
    return np.float32 if int(most) * MOST_STEPS < 1 << 24 else np.float64


def _conv(node: Node, data: Numbers, value: float) -> Numbers:
    """The sums before rescaling, in the floats that the data are in."""
    top, left, bottom, right = node.window.pads
    padded = np.pad(data, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)
    weight = node.constants["weight"].astype(data.dtype)
    if node.op is Op.DEPTHWISE:
        return _depthwise(node, padded, weight)
    patches = windows(padded, node.window)
    samples, rows, columns = patches.shape[:3]
    sums = np.empty((samples, rows, columns, weight.shape[0]), data.dtype)
    one = max(1, samples * int(np.prod(patches.shape[3:])))
    wide = max(1, min(columns, MAX_PATCHES // one))
    tall = max(1, MAX_PATCHES // (one * wide))
    for top in range(0, rows, tall):
        for left in range(0, columns, wide):
            place = (slice(None), slice(top, top + tall), slice(left, left + wide))
            sums[place] = _grouped_sums(patches[place], weight, groups(node, data.shape[3]))
    return sums


def _grouped_sums(patches: Numbers, weight: Numbers, count: int) -> Numbers:
    fan_in, parts = weight.shape[3], []
    for group, part in enumerate(np.split(weight, count)):
        own = patches[..., group * fan_in : (group + 1) * fan_in]
        flat = part.reshape(part.shape[0], -1)
        # as one product of matrices: with more dimensions numpy would make one of each row of the image
        parts.append((own.reshape(-1, flat.shape[1]) @ flat.T).reshape(*own.shape[:3], -1))
    return np.concatenate(parts, axis=3) if count > 1 else np.asarray(parts[0])


def _depthwise(node: Node, padded: Numbers, weight: Numbers) -> Numbers:
    top, left, bottom, right = node.window.pads
    rows, columns = node.window.output_size(padded.shape[1] - top - bottom, padded.shape[2] - left - right)
    sums = np.zeros((padded.shape[0], rows, columns, weight.shape[0]), padded.dtype)
    times = weight.shape[0] // padded.shape[3]
    for y, x, seen in taps(padded, node.window, rows, columns):
        sums += np.repeat(seen, times, axis=3) * weight[:, y, x, 0]
    return sums


def conv_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """A convolution of any groups and dilation."""
    return np.asarray(_conv(node, inputs[0], node.pad_value) + node.constants["bias"])


def dense_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """A dense layer over the flat input."""
    flat = inputs[0].reshape(inputs[0].shape[0], -1)
    return np.asarray(flat @ node.constants["weight"].T.astype(flat.dtype) + node.constants["bias"])


def weighted_sums(node: Node, data: Numbers, tensors: Tensors) -> Numbers:
    """Bias and products of a convolution or dense layer, before rescaling."""
    steps = centred(data, tensors[node.inputs[0]]).astype(_exact_floats(node.constants["weight"]))
    if node.op is Op.DENSE:
        sums = steps.reshape(steps.shape[0], -1) @ node.constants["weight"].T.astype(steps.dtype)
    else:
        sums = _conv(node, steps, int(node.pad_value))
    return np.asarray(sums.astype(np.int64) + node.constants["bias"].astype(np.int64))


def rescaled(node: Node, sums: Numbers, tensors: Tensors, *, once: bool = False) -> Numbers:
    """Sums as int8 values of the output."""
    multipliers, shifts = conv_multipliers(node, tensors)
    return clamped(node, requantize(sums, multipliers, shifts, single_rounding=once), tensors)


def conv_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """A convolution: sums of products, bias, one rescaling per channel."""
    return rescaled(node, weighted_sums(node, inputs[0], tensors), tensors)


def dense_int8(node: Node, inputs: list[Numbers], tensors: Tensors, *, once: bool = False) -> Numbers:
    """A dense layer; `once` rounds as LiteRT does."""
    return rescaled(node, weighted_sums(node, inputs[0], tensors), tensors, once=once)


def mean_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """The mean over height and width."""
    return np.asarray(inputs[0].mean(axis=(1, 2), keepdims=True))


def mean_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """The sum over all pixels, rescaled with the division folded in."""
    sums = centred(inputs[0], tensors[node.inputs[0]]).sum(axis=(1, 2), keepdims=True)
    return clamped(node, requantize(sums, *mean_numbers(node, tensors)), tensors)


def _pool_sums(node: Node, data: Numbers) -> tuple[Numbers, Numbers]:
    """Sums and how many pixels each is of; padding counts as nothing."""
    top, left, bottom, right = node.window.pads
    rows, columns = node.window.output_size(data.shape[1], data.shape[2])
    around = ((0, 0), (top, bottom), (left, right), (0, 0))
    inside = np.pad(np.ones((1, *data.shape[1:3], 1), np.int64), around)
    count = over_window(np.add, inside, node.window, rows, columns)
    return over_window(np.add, np.pad(data, around), node.window, rows, columns), count


def average_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """The mean of each window's pixels."""
    sums, count = _pool_sums(node, inputs[0])
    return np.asarray(sums / count)


def average_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """The mean of the raw int8 values, halves away from zero; no rescaling."""
    sums, count = _pool_sums(node, inputs[0])
    mean = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
    return np.asarray(np.clip(mean, *activation_limits(node, tensors[node.output])))


def affine_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """x * scale + shift, per channel or by one number."""
    return np.asarray(inputs[0] * node.constants["scale"] + node.constants["shift"])
