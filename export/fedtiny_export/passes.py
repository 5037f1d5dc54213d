"""Float Graph -> float Graph with the same outputs: fold what an int8 network has no operator for.

After `simplify` only convolutions, dense layers, additions and means are left, with activations, batch norms and
the input's normalisation inside them. One walk over the operators; no quantisation here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from .errors import FedtinyError
from .ir import Graph, Node, Op

_KEPT = {Op.CONV, Op.DENSE, Op.ADD, Op.MEAN}


def simplify(graph: Graph) -> Graph:
    """Fold everything that can be folded; refuse what is left over."""
    folder = _Folder(graph)
    for node in graph.nodes:
        folder.take(node)
    used = {graph.input} | {node.output for node in folder.nodes}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in used}
    return replace(graph, nodes=tuple(folder.nodes), tensors=tensors)


class _Folder:
    """The operators so far, and what is still waiting to be folded into operators to come."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self._graph = graph
        self._at: dict[str, int] = {}  # tensor -> index of the operator that now writes it
        self._flat: dict[str, str] = {}  # flattened tensor -> the tensor it is a view of
        self._affine: dict[str, tuple[str, float, float]] = {}  # tensor -> source, scale, shift
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        self._reads = Counter({name: len(readers) for name, readers in self._readers.items()})
        self._reads[graph.output] += 1

    def take(self, node: Node) -> None:
        """Fold one operator, or keep it."""
        node = replace(node, inputs=tuple(self._flat.get(name, name) for name in node.inputs))
        if node.op is Op.FLATTEN:
            self._flatten(node)
        elif node.op in (Op.RELU, Op.CLIP):
            before = self._before(node, {Op.CONV, Op.DENSE, Op.ADD})
            self._merge(node, replace(self.nodes[before], low=node.low, high=node.high))
        elif node.op is Op.AFFINE and self._can_wait(node):
            self._wait(node)
        elif node.op in (Op.BATCH_NORM, Op.AFFINE):
            before = self._before(node, {Op.CONV, Op.DENSE})
            self._merge(node, _scaled(self.nodes[before], node))
        else:
            assert node.op in _KEPT, node.op
            self._keep(node)

    def _keep(self, node: Node) -> None:
        if node.op in (Op.CONV, Op.DENSE) and node.inputs[0] in self._affine:
            source, scale, shift = self._affine[node.inputs[0]]
            node = _behind_affine(replace(node, inputs=(source,)), scale, shift)
        self._at[node.output] = len(self.nodes)
        self.nodes.append(node)

    def _flatten(self, node: Node) -> None:
        """A dense layer reads its input flat anyway; channels-last weights were arranged by the reader."""
        readers = self._readers.get(node.output, [])
        if node.output == self._graph.output or any(reader.op is not Op.DENSE for reader in readers):
            raise FedtinyError(f"operator {node.name}: a flattened tensor must go into a dense layer")
        self._flat[node.output] = node.inputs[0]

    def _foldable(self, node: Node, ops: set[Op]) -> int | None:
        """The operator before `node`, if it can take `node` in and nobody else reads its result."""
        index = self._at.get(node.inputs[0])
        if index is None or self._reads[node.inputs[0]] != 1:
            return None
        before = self.nodes[index]
        return index if before.op in ops and before.low is None and before.high is None else None

    def _before(self, node: Node, ops: set[Op]) -> int:
        index = self._foldable(node, ops)
        if index is None:
            raise FedtinyError(
                f"operator {node.name} ({node.op}) cannot be folded: it must follow a "
                f"{' or '.join(sorted(op.value for op in ops))} whose result nothing else reads"
            )
        return index

    def _merge(self, node: Node, merged: Node) -> None:
        index = self._at.pop(node.inputs[0])
        self.nodes[index] = replace(merged, output=node.output)
        self._at[node.output] = index

    def _can_wait(self, node: Node) -> bool:
        """An affine step that nothing before it can take, such as the input's normalisation, may go forward."""
        if self._foldable(node, {Op.CONV, Op.DENSE}) is not None or node.output == self._graph.output:
            return False
        return all(reader.op in (Op.CONV, Op.DENSE, Op.AFFINE) for reader in self._readers.get(node.output, []))

    def _wait(self, node: Node) -> None:
        scale, shift = float(node.constants["scale"]), float(node.constants["shift"])
        if scale == 0.0:
            raise FedtinyError(f"operator {node.name} multiplies by zero: the network ignores its input")
        source, earlier_scale, earlier_shift = self._affine.get(node.inputs[0], (node.inputs[0], 1.0, 0.0))
        self._affine[node.output] = (source, earlier_scale * scale, earlier_shift * scale + shift)


def _scaled(before: Node, node: Node) -> Node:
    """A batch norm, or any affine step, behind a convolution or dense layer changes its weights."""
    weight, bias = before.constants["weight"], before.constants["bias"]
    channels = weight.shape[0]
    scale = np.broadcast_to(node.constants["scale"], (channels,)).astype(np.float64)
    shift = np.broadcast_to(node.constants["shift"], (channels,)).astype(np.float64)
    wide = scale.reshape(-1, *[1] * (weight.ndim - 1))
    constants = {
        "weight": (weight.astype(np.float64) * wide).astype(np.float32),
        "bias": (bias.astype(np.float64) * scale + shift).astype(np.float32),
    }
    return replace(before, constants=constants)


def _behind_affine(reader: Node, scale: float, shift: float) -> Node:
    """Rewrite reader(x * scale + shift) as an operator on x; where the reader pads, so does the new one."""
    weight = reader.constants["weight"].astype(np.float64)
    bias = reader.constants["bias"] + shift * weight.reshape(weight.shape[0], -1).sum(axis=1)
    return replace(
        reader,
        constants={"weight": (weight * scale).astype(np.float32), "bias": bias.astype(np.float32)},
        pad_value=(reader.pad_value - shift) / scale,
    )
