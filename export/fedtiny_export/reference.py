"""The int8 network in numpy: the definition of right. TFLite Micro and the C runtime must equal it byte for byte.

Written for clarity; nothing on the way to a device calls it except to make golden vectors and int8 accuracy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import FedtinyError
from .fixed_point import (
    ADD_LEFT_SHIFT,
    Ints,
    activation_limits,
    add_numbers,
    conv_multipliers,
    mean_numbers,
    requantize,
)
from .ir import Graph, Node, Op, Window

Int8s = NDArray[np.int8]
MAX_WINDOW_NUMBERS = 1 << 25


def run(graph: Graph, inputs: Int8s, *, single_rounding_dense: bool = False) -> Int8s:
    """Run int8 samples of shape (n, *input shape); LiteRT's dense kernel rounds once, TFLite Micro's twice."""
    step = samples_at_once(graph)
    parts = [
        run_all(graph, inputs[start : start + step], single_rounding_dense=single_rounding_dense)[graph.output]
        for start in range(0, max(1, inputs.shape[0]), step)
    ]
    return np.concatenate(parts)


def samples_at_once(graph: Graph) -> int:
    """How many samples keep the largest convolution's windows under 2^25 numbers."""
    largest = 1
    for node in graph.nodes:
        if node.op is Op.CONV:
            height, width, _ = graph.tensors[node.output].image
            largest = max(largest, height * width * int(node.constants["weight"][0].size))
    return max(1, MAX_WINDOW_NUMBERS // largest)


def run_all(graph: Graph, inputs: Int8s, *, single_rounding_dense: bool = False) -> dict[str, Int8s]:
    """As `run`, but return every tensor by name."""
    shape = graph.tensors[graph.input].shape
    if inputs.dtype != np.int8 or inputs.shape[1:] != shape:
        raise FedtinyError(f"inputs are {inputs.dtype} of shape {inputs.shape}; int8 of shape (n, {shape}) is needed")
    values: dict[str, Int8s] = {graph.input: inputs}
    for node in graph.nodes:
        values[node.output] = _run_node(graph, node, values, single_rounding_dense)
    return values


def windows(data: Ints, window: Window) -> Ints:
    """Cut (n, height, width, channels), already padded, into (n, rows, columns, kernel h, kernel w, channels)."""
    views = np.lib.stride_tricks.sliding_window_view(data, window.kernel, axis=(1, 2))
    strided = views[:, :: window.stride[0], :: window.stride[1]]
    return np.asarray(strided.transpose(0, 1, 2, 4, 5, 3))


def _run_node(graph: Graph, node: Node, values: dict[str, Int8s], single_rounding_dense: bool) -> Int8s:
    quants = [graph.tensors[name].quant for name in (*node.inputs, node.output)]
    assert all(quant is not None for quant in quants)
    centred = [values[name].astype(np.int64) - q.zero_point for name, q in zip(node.inputs, quants, strict=False) if q]
    single = False
    if node.op in (Op.CONV, Op.DENSE):
        sums = _conv_sums(node, centred[0]) if node.op is Op.CONV else _dense_sums(node, centred[0])
        multipliers, shifts = conv_multipliers(node, graph.tensors)
        single = node.op is Op.DENSE and single_rounding_dense
        result = requantize(sums, multipliers, shifts, single_rounding=single)
    elif node.op is Op.ADD:
        numbers = add_numbers(node, graph.tensors)
        first = requantize(centred[0] << ADD_LEFT_SHIFT, *numbers.first)
        second = requantize(centred[1] << ADD_LEFT_SHIFT, *numbers.second)
        result = requantize(first + second, *numbers.output)
    else:
        assert node.op is Op.MEAN, node.op
        result = requantize(centred[0].sum(axis=(1, 2), keepdims=True), *mean_numbers(node, graph.tensors))
    output = graph.tensors[node.output]
    assert output.quant is not None
    low, high = activation_limits(node, output)
    return np.clip(result + output.quant.zero_point, low, high).astype(np.int8).reshape(-1, *output.shape)


def _conv_sums(node: Node, data: Ints) -> Ints:
    top, left, bottom, right = node.window.pads
    around = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(data, around, constant_values=int(node.pad_value))
    patches = windows(padded, node.window)
    weight = node.constants["weight"]
    flat = patches.reshape(*patches.shape[:3], -1).astype(np.float64) @ weight.reshape(weight.shape[0], -1).T.astype(
        np.float64
    )  # exact: every sum stays far below 2^53
    return flat.astype(np.int64) + node.constants["bias"].astype(np.int64)


def _dense_sums(node: Node, data: Ints) -> Ints:
    flat = data.reshape(data.shape[0], -1).astype(np.float64) @ node.constants["weight"].T.astype(np.float64)
    return flat.astype(np.int64) + node.constants["bias"].astype(np.int64)
