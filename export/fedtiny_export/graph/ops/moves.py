"""Operators that move or choose values without computing new ones: their int8 and float forms are the same.

Input and output have the same scale and zero point; quantize.py sees to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fixed_point import activation_limits
from ..ir import Node, Tensor
from .sums import over_window

Numbers = NDArray[Any]
Tensors = Mapping[str, Tensor]


def _max_pool(node: Node, data: Numbers, lowest: float) -> Numbers:
    top, left, bottom, right = node.window.pads
    rows, columns = node.window.output_size(data.shape[1], data.shape[2])
    padded = np.pad(data, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=lowest)
    return over_window(np.maximum, padded, node.window, rows, columns)


def max_pool_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """The largest value of each window."""
    return _max_pool(node, inputs[0], -np.inf)


def max_pool_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """The largest value of each window."""
    return np.clip(_max_pool(node, inputs[0], -128), *activation_limits(node, tensors[node.output]))


def _pad(node: Node, data: Numbers, value: float) -> Numbers:
    pads = [(0, 0), *((int(before), int(after)) for before, after in node.constants["pads"])]
    return np.pad(data, pads, constant_values=value)


def pad_real(node: Node, inputs: list[Numbers]) -> Numbers:
    """More of every side, filled with one value."""
    return _pad(node, inputs[0], node.pad_value)


def pad_int8(node: Node, inputs: list[Numbers], tensors: Tensors) -> Numbers:
    """The same; the value counts from the zero point."""
    quant = tensors[node.inputs[0]].quant
    assert quant is not None
    return _pad(node, inputs[0], quant.zero_point + int(node.pad_value))


def concat(node: Node, inputs: list[Numbers]) -> Numbers:
    """One after the other along a side."""
    return np.concatenate(inputs, axis=int(node.settings["axis"]) + 1)


def reshape(node: Node, inputs: list[Numbers]) -> Numbers:
    """The same values in the same order."""
    return inputs[0].reshape(inputs[0].shape[0], *(int(side) for side in node.constants["shape"]))


def transpose(node: Node, inputs: list[Numbers]) -> Numbers:
    """The sides in another order."""
    return inputs[0].transpose(0, *(int(side) + 1 for side in node.constants["order"]))


def resize(node: Node, inputs: list[Numbers]) -> Numbers:
    """The nearest pixel, as TensorFlow Lite finds it."""
    rows = nearest(inputs[0].shape[1], int(node.settings["height"]), node.settings)
    columns = nearest(inputs[0].shape[2], int(node.settings["width"]), node.settings)
    return inputs[0][:, rows][:, :, columns]


def nearest(size: int, wanted: int, settings: Mapping[str, float]) -> NDArray[np.int64]:
    """The source index of each output index, in the kernel's 32-bit floats."""
    align, half = bool(settings.get("align_corners", 0)), bool(settings.get("half_pixel", 0))
    ratio = (
        np.float32(size - 1) / np.float32(wanted - 1) if align and wanted > 1 else np.float32(size) / np.float32(wanted)
    )
    places = (np.arange(wanted, dtype=np.float32) + np.float32(0.5 if half else 0.0)) * ratio
    found = np.floor(places + np.float32(0.5)) if align else np.floor(places)
    return np.asarray(np.clip(found.astype(np.int64), 0, size - 1))
