"""Cross-layer equalisation: channels of one activation brought to similar sizes, on the float graph.

An activation has one step for all its channels, so a channel of small values keeps few bits. Where a positive factor
passes through unchanged (weights, ReLU, weights), channel c is divided by a factor before and multiplied by it
behind. Weights have a step for each output channel, so dividing rows of the layer before costs nothing; what is
weighed is the spread of the activation against the spread within rows of the layer behind. Factors are powers of
two: the float network stays the same to the bit, and zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..graph.evaluate import Samples, batches, run_float
from ..graph.ir import WEIGHTED, Graph, Node, Op

Floats = NDArray[np.float64]
PASSING = frozenset({Op.MEAN, Op.MAX_POOL, Op.AVERAGE_POOL, Op.LEAKY_RELU, Op.RELU})
MOST = 6  # of the exponents: what is never seen to rise, but may, must still fit 32 bits
LEAST_SHARE = 2.0**-8  # weights smaller than this share of their row hardly matter


def equalize(graph: Graph, samples: Samples) -> Graph:
    """The same function with channels of similar sizes, by what the samples show."""
    peaks = _channel_peaks(graph, samples)
    nodes = {node.output: node for node in graph.nodes}
    for first, second in _pairs(graph):
        before, behind = nodes[first], nodes[second]
        factors = _factors(behind, peaks[first])
        nodes[first] = _divided(before, factors)
        nodes[second] = multiplied(behind, factors)
    return replace(graph, nodes=tuple(nodes[node.output] for node in graph.nodes))


def _channel_peaks(graph: Graph, samples: Samples) -> dict[str, Floats]:
    """The largest magnitude of every channel of every tensor."""
    peaks: dict[str, Floats] = {}
    for part in batches(graph, samples.x.shape[0]):
        for name, values in run_float(graph, samples.x[part]).items():
            largest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(largest, peaks.get(name, 0.0))
    return peaks


def _pairs(graph: Graph) -> Iterator[tuple[str, str]]:
    """The outputs of two layers with weights that a factor for each channel can pass between."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    for node in graph.nodes:
        if node.op not in WEIGHTED:
            continue
        here = node
        while _lets_through(here) and here.output != graph.output and len(readers.get(here.output, [])) == 1:
            here = readers[here.output][0]
            if here.op in WEIGHTED:
                if takes_factors(here, graph.tensors[here.inputs[0]].image[2]):
                    yield node.output, here.output
                break
            if here.op not in PASSING:
                break


def _lets_through(node: Node) -> bool:
    return node.low in (None, 0.0) and node.high is None


def takes_factors(node: Node, channels: int) -> bool:
    """Grouped convolutions, and padding that a factor would change, are left alone."""
    return not grouped(node, channels) and (node.pad_value == 0.0 or not any(node.window.pads))


def grouped(node: Node, channels: int) -> bool:
    """Whether a convolution's channels read only some of the `channels` before it each."""
    return node.op is Op.CONV and node.constants["weight"].shape[3] != channels


def _factors(behind: Node, peaks: Floats) -> Floats:
    sizes = np.where(peaks > 0.0, peaks, max(float(peaks.max()), 1e-30))  # a silent channel needs no finer step
    wanted = sizes if behind.op is Op.DEPTHWISE else np.sqrt(sizes / _column_shares(behind, len(peaks)))
    return np.asarray(2.0 ** np.clip(np.round(np.log2(wanted / wanted.max())), -MOST, 0))


def _column_shares(node: Node, channels: int) -> Floats:
    """The largest weight that reads each channel, as a share of the largest in its row."""
    weight = np.abs(node.constants["weight"].astype(np.float64)).reshape(node.constants["weight"].shape[0], -1)
    rows = weight / np.maximum(weight.max(axis=1, keepdims=True), 1e-30)
    return np.asarray(np.maximum(rows.reshape(-1, channels).max(axis=0), LEAST_SHARE))


def _divided(node: Node, factors: Floats) -> Node:
    weight = node.constants["weight"]
    wide = factors.reshape(-1, *[1] * (weight.ndim - 1))
    return _with(node, {"weight": weight / wide, "bias": node.constants["bias"] / factors})


def multiplied(node: Node, factors: Floats) -> Node:
    """The layer with the weights that read channel c multiplied by factor c."""
    weight = node.constants["weight"]
    if node.op is Op.DEPTHWISE:
        wide = np.repeat(factors, weight.shape[0] // len(factors)).reshape(-1, 1, 1, 1)
        return _with(node, {"weight": weight * wide})
    columns = weight.reshape(weight.shape[0], -1, len(factors)) * factors
    return _with(node, {"weight": columns.reshape(weight.shape)})


def _with(node: Node, changed: Mapping[str, Floats]) -> Node:
    new = {name: values.astype(np.float32) for name, values in changed.items()}
    assert np.array_equal(new["weight"] == 0, node.constants["weight"] == 0), "a zero moved"
    return replace(node, constants={**node.constants, **new})
