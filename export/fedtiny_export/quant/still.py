"""Channels that no input moves: what reads them is made to fit the value that int8 has for them.

Pruning leaves filters without weights, whose outputs are one number each. Batch norm amplifies a filter that reads
nothing but such numbers by hundreds, since it never saw it vary, and with it the rounding of the numbers. A channel
that always holds `real` and, as int8, `held` is read by weights times real / held: exact, borders included, for any
input, and no data is needed to know it. Zeros stay zeros.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..graph import reference
from ..graph.evaluate import run_float, to_int8
from ..graph.ir import WEIGHTED, Graph, Node, Op, Tensor
from .equalize import Floats, grouped, multiplied, takes_factors
from .quantize import quantize_node

Flags = NDArray[np.bool_]
MOST = 4.0  # a factor beyond this says that int8 holds something else
PASSING = frozenset({Op.ADD, Op.MUL, Op.RELU, Op.LEAKY_RELU, Op.MEAN, Op.MAX_POOL, Op.AVERAGE_POOL})


def settle(exact: Graph, coarse: Graph) -> Graph:
    """The float network whose int8 form, in the steps of `coarse`, takes still channels for what they are."""
    moving = moving_channels(exact)
    if all(flags.all() for flags in moving.values()):
        return exact
    nothing = np.zeros((1, *exact.tensors[exact.input].shape))
    real, values = run_float(exact, nothing), {coarse.input: to_int8(coarse, nothing)}
    settled = {node.name: node for node in exact.nodes}
    for node in coarse.nodes:
        source = node.inputs[0]
        if node.op in WEIGHTED and source in moving and takes_factors(node, len(moving[source])):
            factors = _factors(
                real[source].astype(np.float64), _held(values[source], coarse.tensors[source]), moving[source]
            )
            if np.any(factors != 1.0):
                settled[node.name] = multiplied(settled[node.name], factors)
                node = quantize_node(settled[node.name], coarse.tensors)
        values[node.output] = reference.run_node(coarse, node, values)
    return replace(exact, nodes=tuple(settled[node.name] for node in exact.nodes))


def moving_channels(graph: Graph) -> dict[str, Flags]:
    """For every tensor which channels an input may move; where that is hard to say, all."""
    moving = {graph.input: np.ones(graph.tensors[graph.input].image[2], np.bool_)}
    for node in graph.nodes:
        given = [moving[name] for name in node.inputs]
        channels = graph.tensors[node.output].image[2]
        if node.op in WEIGHTED and not grouped(node, len(given[0])):
            moving[node.output] = _moved_rows(node, given[0])
        elif node.op in PASSING and all(len(flags) == channels for flags in given):
            moving[node.output] = np.logical_or.reduce(given)
        else:
            moving[node.output] = np.ones(channels, np.bool_)
    return moving


def _moved_rows(node: Node, given: Flags) -> Flags:
    weight = node.constants["weight"]
    rows = weight.reshape(weight.shape[0], -1) != 0
    if node.op is Op.DEPTHWISE:
        return np.asarray(rows.any(axis=1) & np.repeat(given, len(rows) // len(given)))
    return np.asarray(rows.reshape(len(rows), -1, len(given))[:, :, given].any(axis=(1, 2)))


def _held(values: NDArray[np.int8], tensor: Tensor) -> Floats:
    assert tensor.quant is not None
    return (values.astype(np.float64) - tensor.quant.zero_point) * tensor.quant.scale


def _factors(real: Floats, held: Floats, moving: Flags) -> Floats:
    """real / held for every channel that is one number everywhere, in float and as int8; 1 for all others."""
    channels = len(moving)
    real, held = real.reshape(-1, channels), held.reshape(-1, channels)
    even = np.ptp(real, axis=0) <= 1e-6 * np.abs(real).max(axis=0)
    usable = ~moving & even & (np.ptp(held, axis=0) == 0.0) & (held[0] != 0.0)
    ratio = real[0] / np.where(usable, held[0], 1.0)
    return np.where(usable & (ratio >= 1 / MOST) & (ratio <= MOST), ratio, 1.0)
