"""Between which int8 values every number of a network stays, whatever its input: interval arithmetic by position.

The kernels' own arithmetic is run on both ends, so a number whose ends meet is a constant, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .ir import WEIGHTED, Graph, Node, Op, Tensor
from .ops import ARITHMETIC
from .ops.sums import rescaled, weighted_sums

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The lowest and the highest value of each number of a tensor, in its shape."""

    low: Ints
    high: Ints

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which channels are the same for every input, at every position."""
        return np.asarray((self.low == self.high).reshape(-1, self.low.shape[-1]).all(axis=0))


def bounds(graph: Graph) -> dict[str, Bounds]:
    """The bounds of every tensor of an int8 graph."""
    shape = graph.tensors[graph.input].shape
    found = {graph.input: Bounds(np.full(shape, -128, np.int64), np.full(shape, 127, np.int64))}
    for node in graph.nodes:
        low, high = _ends(node, [found[name] for name in node.inputs], graph.tensors)
        shape = graph.tensors[node.output].shape
        found[node.output] = Bounds(low.reshape(shape), high.reshape(shape))
    return found


def _ends(node: Node, inputs: list[Bounds], tensors: Mapping[str, Tensor]) -> tuple[Ints, Ints]:
    lows, highs = [item.low[None] for item in inputs], [item.high[None] for item in inputs]
    if node.op in WEIGHTED:
        return _weighted_ends(node, lows[0], highs[0], tensors)
    compute = ARITHMETIC[node.op].int8
    assert compute is not None, node.op
    if node.op is Op.MUL:
        corners = [compute(node, [a, b], tensors) for a in (lows[0], highs[0]) for b in (lows[1], highs[1])]
        return np.minimum.reduce(corners), np.maximum.reduce(corners)
    low, high = compute(node, lows, tensors), compute(node, highs, tensors)
    if node.op not in (Op.HARD_SWISH, Op.SOFTMAX):  # all others only rise, or a negative number makes them only fall
        return np.minimum(low, high), np.maximum(low, high)
    known = np.all(lows[0] == highs[0], axis=-1, keepdims=True) if node.op is Op.SOFTMAX else lows[0] == highs[0]
    return np.where(known, low, -128), np.where(known, high, 127)


def _weighted_ends(node: Node, low: Ints, high: Ints, tensors: Mapping[str, Tensor]) -> tuple[Ints, Ints]:
    """Positive weights take one end, negative ones the other."""
    weight, nothing = node.constants["weight"].astype(np.int64), np.zeros_like(node.constants["bias"])
    up = replace(node, constants={**node.constants, "weight": np.maximum(weight, 0)})
    down = replace(node, constants={**node.constants, "weight": np.minimum(weight, 0), "bias": nothing})
    both = np.concatenate([low, high])
    rising, falling = weighted_sums(up, both, tensors), weighted_sums(down, both, tensors)
    ends = rescaled(node, np.stack([rising[0] + falling[1], rising[1] + falling[0]]), tensors)
    return ends[:1], ends[1:]
