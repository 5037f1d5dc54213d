"""Which scale and zero point every tensor of a float graph gets, from its range.

Operators that only move values need one scale on both sides, so tensors are put into groups and a group has one
range. Softmax and logistic have a scale that TensorFlow Lite fixes; where such a tensor is joined with others, an
operator that changes steps goes between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Graph, Node, Op, Quant, Tensor

MIN_SPAN = 1e-12
SHARES = Quant(1 / 256, -128)  # of softmax and logistic
MOVES = frozenset({Op.MAX_POOL, Op.AVERAGE_POOL, Op.PAD, Op.CONCAT, Op.RESHAPE, Op.TRANSPOSE, Op.RESIZE})
SIGNED_SHARES = Quant(1 / 128, 0)  # of tanh
FIXED = {Op.SOFTMAX: SHARES, Op.LOGISTIC: SHARES, Op.TANH: SIGNED_SHARES}
PLAIN_LIMITS = ((None, None), (0.0, None), (0.0, 6.0))  # .tflite has an activation for each

Ranges = Mapping[str, tuple[float, float]]


def activation_quant(low: float, high: float) -> Quant:
    """Spread low..high, widened to hold zero, over -128..127 so that zero is a whole number."""
    low, high = min(low, 0.0), max(high, 0.0)
    # a tensor that is zero everywhere has no scale of its own
    scale = float(np.float32((high - low) / 255.0)) if high - low > MIN_SPAN else 1.0
    return Quant(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


def odd_limits(node: Node) -> bool:
    """Whether a clamp has to be the end of the tensor's range, as no .tflite activation says it."""
    if node.op is Op.RELU:
        return (node.low, node.high) != (0.0, None)
    return (node.low, node.high) not in PLAIN_LIMITS


@dataclass(slots=True)
class _Groups:
    """Tensors that share a scale, by union and find; `fixed` are the roots that an operator gives its own."""

    parent: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Quant] = field(default_factory=dict)

    def root(self, name: str) -> str:
        path = []
        while self.parent.get(name, name) != name:
            path.append(name)
            name = self.parent[name]
        for passed in path:
            self.parent[passed] = name
        return name

    def join(self, first: str, second: str) -> None:
        first, second = self.root(first), self.root(second)
        if first == second:
            return
        self.parent[second] = first
        if second in self.fixed:
            self.fixed[first] = self.fixed[second]


def choose_quants(graph: Graph, ranges: Ranges) -> tuple[Graph, dict[str, Quant]]:
    """The graph, with changes of steps where they are needed, and the quantisation of each of its tensors."""
    groups, nodes, tensors = _Groups(), [], dict(graph.tensors)
    given = dict(ranges)
    for node in graph.nodes:
        if node.op in FIXED:
            groups.fixed[node.output] = FIXED[node.op]
        if node.op in MOVES:
            inputs = []
            for name in node.inputs:
                if node.op is Op.CONCAT and groups.root(name) in groups.fixed:
                    changed = _changed_steps(node, name, tensors)
                    nodes.append(changed)
                    lowest = 0.0 if groups.fixed[groups.root(name)] == SHARES else -1.0
                    given[changed.output] = given.get(name, (lowest, 1.0))
                    name = changed.output
                inputs.append(name)
                groups.join(name, node.output)
            node = replace(node, inputs=tuple(inputs))
        nodes.append(node)
    graph = replace(graph, nodes=tuple(nodes), tensors=tensors)
    return graph, _group_quants(graph, groups, given)


def _changed_steps(node: Node, name: str, tensors: dict[str, Tensor]) -> Node:
    output = f"{name} for {node.name}"
    while output in tensors:
        output += "'"
    tensors[output] = Tensor(output, tensors[name].shape)
    return Node(Op.REQUANTIZE, output, (name,), output)


def _group_quants(graph: Graph, groups: _Groups, ranges: Ranges) -> dict[str, Quant]:
    ends: dict[str, list[float]] = {}
    writers = {node.output: node for node in graph.nodes}
    for name in graph.tensors:
        writer = writers.get(name)
        if name not in ranges and writer is not None and writer.op in MOVES:
            continue  # its values are those of the tensors it was made from
        ends.setdefault(groups.root(name), []).extend(_range(name, writer, ranges))
    for node in graph.nodes:
        padded = node.op is Op.PAD or (node.op in (Op.CONV, Op.DEPTHWISE) and any(node.window.pads))
        if padded:
            ends[groups.root(node.inputs[0])].append(node.pad_value)
    found = {
        root: groups.fixed.get(root) or activation_quant(min(values), max(values)) for root, values in ends.items()
    }
    return {name: found[groups.root(name)] for name in graph.tensors}


def _range(name: str, writer: Node | None, ranges: Ranges) -> tuple[float, float]:
    if name not in ranges:
        raise FedtinyError(f"no range for tensor {name}: give the run's ranges.json or a calibration")
    low, high = ranges[name]
    if writer is None or not odd_limits(writer):
        return low, high
    if (writer.low or 0.0) > 0.0 or (writer.high or 0.0) < 0.0 or writer.op in MOVES:
        raise FedtinyError(
            f"operator {writer.name}: a clamp to {writer.low}..{writer.high}, which leaves out zero, cannot be int8"
        )
    return (low if writer.low is None else writer.low), (high if writer.high is None else writer.high)
