"""Float Graph -> float Graph with the same outputs: fold what an int8 network has no operator for.

After `simplify` activations, batch norms, padding and the input's normalisation are inside the operators around
them where that is possible, and operators of their own where it is not. One walk over the operators; no
quantisation here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from ..errors import FedtinyError
from .ir import WEIGHTED, Graph, Node, Op, Tensor, Window

_CLAMPED = WEIGHTED | {Op.ADD, Op.MUL}
MAX_PAD = 255
_SLIDING = frozenset({Op.CONV, Op.DEPTHWISE})


def simplify(graph: Graph) -> Graph:
    """Fold everything that can be folded; give the rest an operator of its own."""
    folder = _Folder(graph)
    with np.errstate(all="ignore"):  # what is not finite is refused by the Graph
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
        self._padded: dict[str, Node] = {}  # tensor -> the pad that makes it
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
        elif node.op is Op.RELU:
            before = self._foldable(node, _CLAMPED)
            if before is None:
                self._keep(node)
            else:
                self._merge(node, replace(self.nodes[before], low=node.low, high=node.high))
        elif node.op in (Op.BATCH_NORM, Op.AFFINE):
            self._scale(node)
        elif node.op is Op.PAD and self._pad_can_wait(node):
            self._padded[node.output] = node
        else:
            self._keep(node)

    def _keep(self, node: Node) -> None:
        if node.op in _SLIDING and node.inputs[0] in self._padded:
            node = _with_pads(node, self._padded[node.inputs[0]])
        if node.op in WEIGHTED and node.inputs[0] in self._affine:
            source, scale, shift = self._affine[node.inputs[0]]
            node = _behind_affine(replace(node, inputs=(source,)), scale, shift)
        self._at[node.output] = len(self.nodes)
        self.nodes.append(node)

    def _scale(self, node: Node) -> None:
        before = self._foldable(node, WEIGHTED)
        if before is not None:
            self._merge(node, _scaled(self.nodes[before], node))
        elif node.op is Op.AFFINE and self._can_wait(node):
            self._wait(node)
        else:
            self._keep(_of_its_own(node, self._graph.tensors[node.inputs[0]]))

    def _flatten(self, node: Node) -> None:
        """A dense layer reads its input flat anyway; channels-last weights were arranged by the reader."""
        readers = self._readers.get(node.output, [])
        if node.output != self._graph.output and all(reader.op is Op.DENSE for reader in readers):
            self._flat[node.output] = node.inputs[0]
            return
        shape = np.array(self._graph.tensors[node.output].shape)
        self._keep(replace(node, op=Op.RESHAPE, constants={"shape": shape}))

    def _foldable(self, node: Node, ops: frozenset[Op]) -> int | None:
        """The operator before `node`, if it can take `node` in and nobody else reads its result."""
        index = self._at.get(node.inputs[0])
        if index is None or self._reads[node.inputs[0]] != 1:
            return None
        before = self.nodes[index]
        return index if before.op in ops and before.low is None and before.high is None else None

    def _merge(self, node: Node, merged: Node) -> None:
        index = self._at.pop(node.inputs[0])
        self.nodes[index] = replace(merged, output=node.output)
        self._at[node.output] = index

    def _can_wait(self, node: Node) -> bool:
        """An affine step that nothing before it can take, such as the input's normalisation, may go forward."""
        if node.output == self._graph.output or float(node.constants["scale"]) == 0.0:
            return False
        return all(
            reader.op in WEIGHTED or reader.op is Op.AFFINE or (reader.op is Op.PAD and self._pad_can_wait(reader))
            for reader in self._readers.get(node.output, [])
        )

    def _wait(self, node: Node) -> None:
        scale, shift = float(node.constants["scale"]), float(node.constants["shift"])
        source, earlier_scale, earlier_shift = self._affine.get(node.inputs[0], (node.inputs[0], 1.0, 0.0))
        self._affine[node.output] = (source, earlier_scale * scale, earlier_shift * scale + shift)

    def _pad_can_wait(self, node: Node) -> bool:
        return node.output != self._graph.output and pads_fit(node, self._readers.get(node.output, []))


def _with_pads(node: Node, pad: Node) -> Node:
    (top, bottom), (left, right), _ = pad.constants["pads"].tolist()
    sums = zip(node.window.pads, (top, left, bottom, right), strict=True)
    a, b, c, d = (own + added for own, added in sums)
    window = replace(node.window, pads=(a, b, c, d))
    return replace(node, inputs=pad.inputs, window=window, pad_value=pad.pad_value)


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


def _of_its_own(node: Node, data: Tensor) -> Node:
    """An affine step that nothing can take is a depthwise 1x1 convolution, or a diagonal dense layer."""
    channels = data.shape[-1]
    scale = np.broadcast_to(node.constants["scale"], (channels,)).astype(np.float32)
    bias = np.broadcast_to(node.constants["shift"], (channels,)).astype(np.float32)
    if len(data.shape) == 3:
        constants = {"weight": scale.reshape(-1, 1, 1, 1), "bias": bias}
        return replace(node, op=Op.DEPTHWISE if channels > 1 else Op.CONV, constants=constants, window=Window())
    if len(data.shape) > 1 or channels > 4096:
        raise FedtinyError(f"operator {node.name}: cannot scale a tensor of shape {data.shape} on its own")
    return replace(node, op=Op.DENSE, constants={"weight": np.diag(scale), "bias": bias})


def _behind_affine(reader: Node, scale: float, shift: float) -> Node:
    """Rewrite reader(x * scale + shift) as an operator on x; where the reader pads, so does the new one."""
    weight = reader.constants["weight"].astype(np.float64)
    bias = reader.constants["bias"] + shift * weight.reshape(weight.shape[0], -1).sum(axis=1)
    return replace(
        reader,
        constants={"weight": (weight * scale).astype(np.float32), "bias": bias.astype(np.float32)},
        pad_value=(reader.pad_value - shift) / scale,
    )


def fold_views(graph: Graph) -> Graph:
    """An int8 graph without padding and reshaping that the operators behind them do as well."""
    graph = _joined_reshapes(graph)
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    moved: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        for name in node.inputs:
            if name in moved:
                node = _past(node, moved[name])
        if node.output != graph.output and _can_move(node, readers.get(node.output, [])):
            moved[node.output] = node
        else:
            nodes.append(node)
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name not in moved}
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _joined_reshapes(graph: Graph) -> Graph:
    """A reshape of a reshape is one; to where it began, none."""
    shaped: dict[str, str] = {}  # reshaped tensor -> what it was before any reshape
    same: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        if node.op is Op.RESHAPE:
            origin = shaped.get(node.inputs[0], node.inputs[0])
            shaped[node.output] = origin
            node = replace(node, inputs=(origin,))
            if graph.tensors[origin].shape == graph.tensors[node.output].shape and node.output != graph.output:
                same[node.output] = origin
                continue
        nodes.append(node)
    return without_unread(replace(graph, nodes=tuple(nodes)))


def without_unread(graph: Graph) -> Graph:
    """The graph without operators that nothing reads."""
    wanted, kept = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.output in wanted:
            wanted.update(node.inputs)
            kept.append(node)
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in wanted or name == graph.input}
    return replace(graph, nodes=tuple(reversed(kept)), tensors=tensors)


def _past(node: Node, moved: Node) -> Node:
    return _with_pads(node, moved) if moved.op is Op.PAD else replace(node, inputs=moved.inputs)


def _can_move(node: Node, readers: list[Node]) -> bool:
    if node.op is Op.RESHAPE:
        return all(reader.op is Op.DENSE for reader in readers)
    return node.op is Op.PAD and pads_fit(node, readers)


def pads_fit(pad: Node, readers: list[Node]) -> bool:
    """Padding of height and width goes into the convolutions that read it, if theirs has the same value."""
    pads = pad.constants["pads"]
    if len(pads) != 3 or pads[2].any() or pads.max() > MAX_PAD:
        return False
    return all(
        reader.op in _SLIDING
        and (not any(reader.window.pads) or reader.pad_value == pad.pad_value)
        and max(reader.window.pads) + pads.max() <= MAX_PAD
        for reader in readers
    )
