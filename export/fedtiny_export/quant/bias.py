"""Bias correction: rounded weights shift the mean of what a layer computes, and its bias takes the shift back.

Layer by layer in running order, so that each is corrected on what the corrected layers before it really give. Only
int32 biases change, no weight.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..graph import reference
from ..graph.evaluate import Floats, Samples, run_float, to_int8
from ..graph.ir import WEIGHTED, Graph, Node
from ..graph.ops import ARITHMETIC
from ..graph.ops.sums import weighted_sums
from .quantize import prove_sums

SAMPLES = 128
LIMIT = 2**30


def correct_biases(exact: Graph, coarse: Graph, samples: Samples) -> Graph:
    """The int8 network with biases that give each layer's channels the float network's means."""
    count = min(SAMPLES, samples.x.shape[0], reference.samples_at_once(coarse))
    x = samples.x[np.linspace(0, samples.x.shape[0] - 1, count).astype(int)]
    real, values = run_float(exact, x), {coarse.input: to_int8(coarse, x)}
    wanted = {node.name: node for node in exact.nodes}
    nodes = []
    for node in coarse.nodes:
        if node.op in WEIGHTED:
            target = _channel_means(_before_clamp(wanted[node.name], real))
            node = _corrected(node, coarse, values, target)
            prove_sums(node, coarse.tensors)
        values[node.output] = reference.run_node(coarse, node, values)
        nodes.append(node)
    return replace(coarse, nodes=tuple(nodes))


def _before_clamp(node: Node, values: dict[str, Floats]) -> Floats:
    compute = ARITHMETIC[node.op].real
    assert compute is not None
    return compute(node, [values[name] for name in node.inputs])


def _channel_means(values: Floats) -> Floats:
    return np.asarray(values.reshape(-1, values.shape[-1]).mean(axis=0))


def _corrected(node: Node, graph: Graph, values: dict[str, NDArray[np.int8]], target: Floats) -> Node:
    data = graph.tensors[node.inputs[0]].quant
    assert data is not None
    sums = weighted_sums(node, values[node.inputs[0]].astype(np.int64), graph.tensors)
    step = data.scale * node.constants["weight_scale"].astype(np.float64)
    shift = np.round(target / step - _channel_means(sums))
    bias = np.clip(node.constants["bias"] + shift, -LIMIT, LIMIT).astype(np.int32)
    return replace(node, constants={**node.constants, "bias": bias})
