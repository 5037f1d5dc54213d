"""The int8 network in numpy: the definition of right. TFLite Micro and the C runtime must equal it byte for byte.

Written for clarity; nothing on the way to a device calls it except to make golden vectors and int8 accuracy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError
from .ir import Graph, Node, Op
from .ops import ARITHMETIC
from .ops.sums import dense_int8

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
            channels = graph.tensors[node.inputs[0]].image[2]
            largest = max(largest, height * width * int(np.prod(node.window.kernel)) * channels)
    largest = max(largest, *(8 * tensor.elements for tensor in graph.tensors.values()))
    return max(1, MAX_WINDOW_NUMBERS // largest)


def run_all(graph: Graph, inputs: Int8s, *, single_rounding_dense: bool = False) -> dict[str, Int8s]:
    """As `run`, but return every tensor by name."""
    shape = graph.tensors[graph.input].shape
    if inputs.dtype != np.int8 or inputs.shape[1:] != shape:
        raise FedtinyError(f"inputs are {inputs.dtype} of shape {inputs.shape}; int8 of shape (n, {shape}) is needed")
    values: dict[str, Int8s] = {graph.input: inputs}
    for node in graph.nodes:
        values[node.output] = run_node(graph, node, values, single_rounding_dense)
    return values


def run_node(graph: Graph, node: Node, values: dict[str, Int8s], single_rounding_dense: bool = False) -> Int8s:
    """One operator on the values so far."""
    inputs = [values[name].astype(np.int64) for name in node.inputs]
    if node.op is Op.DENSE:
        result = dense_int8(node, inputs, graph.tensors, once=single_rounding_dense)
    else:
        compute = ARITHMETIC[node.op].int8
        assert compute is not None, node.op
        result = compute(node, inputs, graph.tensors)
    return result.astype(np.int8).reshape(-1, *graph.tensors[node.output].shape)
