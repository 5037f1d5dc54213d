"""Float Graph -> float Graph with the same outputs: fold what an int8 network has no operator for.

After `simplify` only convolutions, dense layers, additions and means are left, with activations, batch norms and
the input's normalisation inside them. No quantisation here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .errors import FedtinyError
from .ir import Graph, Node, Op

Fold = Callable[[Graph], Graph | None]


def simplify(graph: Graph) -> Graph:
    """Apply every fold until none applies; refuse what stays unfoldable."""
    folds: tuple[Fold, ...] = (_drop_flatten, _fold_scale, _fuse_activation, _fold_affine_forward)
    changed = True
    while changed:
        changed = False
        for fold in folds:
            folded = fold(graph)
            if folded is not None:
                graph, changed = folded, True
    kept = {Op.CONV, Op.DENSE, Op.ADD, Op.MEAN}
    for node in graph.nodes:
        if node.op not in kept:
            raise FedtinyError(f"operator {node.name} ({node.op}) cannot be folded into the operator before it")
    return graph


def _without(graph: Graph, nodes: list[Node]) -> Graph:
    """Build the graph of fewer operators; tensors that nothing writes any more go with them."""
    used = {graph.input} | {node.output for node in nodes}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in used}
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _drop_flatten(graph: Graph) -> Graph | None:
    """A dense layer reads its input flat anyway; channels-last weights were arranged by the reader."""
    for node in graph.nodes:
        if node.op is Op.FLATTEN:
            source = node.inputs[0]
            if any(reader.op is not Op.DENSE for reader in graph.readers(node.output)) or node.output == graph.output:
                raise FedtinyError(f"operator {node.name}: a flattened tensor must go into a dense layer")
            swap = {node.output: source}
            nodes = [
                replace(other, inputs=tuple(swap.get(name, name) for name in other.inputs))
                for other in graph.nodes
                if other is not node
            ]
            return _without(graph, nodes)
    return None


def _fold_affine_forward(graph: Graph) -> Graph | None:
    """An affine step before convolutions and dense layers, such as the input's normalisation, joins their weights."""
    for node in graph.nodes:
        readers = graph.readers(node.output)
        if node.op is not Op.AFFINE or node.output == graph.output or not readers:
            continue
        if all(reader.op in (Op.CONV, Op.DENSE) for reader in readers):
            merged = {reader.name: _behind_affine(reader, node) for reader in readers}
            nodes = [merged.get(other.name, other) for other in graph.nodes if other is not node]
            return _without(graph, nodes)
    return None


def _behind_affine(reader: Node, affine: Node) -> Node:
    """Rewrite reader(x * scale + shift) as an operator on x; where the reader pads, so does the new one."""
    scale, shift = float(affine.constants["scale"]), float(affine.constants["shift"])
    if scale == 0.0:
        raise FedtinyError(f"operator {affine.name} multiplies by zero: the network ignores its input")
    weight = reader.constants["weight"].astype(np.float64)
    bias = reader.constants["bias"] + shift * weight.reshape(weight.shape[0], -1).sum(axis=1)
    return replace(
        reader,
        inputs=affine.inputs,
        constants={"weight": (weight * scale).astype(np.float32), "bias": bias.astype(np.float32)},
        pad_value=(reader.pad_value - shift) / scale,
    )


def _writer(graph: Graph, name: str) -> Node | None:
    return next((node for node in graph.nodes if node.output == name), None)


def _fold_into(graph: Graph, node: Node, ops: set[Op]) -> Node | None:
    """Return the operator before `node` if only `node` reads it and it can take `node` in."""
    before = _writer(graph, node.inputs[0])
    if before is None or before.op not in ops or before.low is not None or before.high is not None:
        return None
    return before if len(graph.readers(before.output)) == 1 and before.output != graph.output else None


def _merged(graph: Graph, before: Node, node: Node, merged: Node) -> Graph:
    nodes = [merged if other is before else other for other in graph.nodes if other is not node]
    return _without(graph, nodes)


def _fold_scale(graph: Graph) -> Graph | None:
    """Batch norm, or any affine step, behind a convolution or dense layer changes its weights."""
    for node in graph.nodes:
        if node.op in (Op.BATCH_NORM, Op.AFFINE):
            before = _fold_into(graph, node, {Op.CONV, Op.DENSE})
            if before is None:
                continue
            weight, bias = before.constants["weight"], before.constants["bias"]
            channels = weight.shape[0]
            scale = np.broadcast_to(node.constants["scale"], (channels,)).astype(np.float64)
            shift = np.broadcast_to(node.constants["shift"], (channels,)).astype(np.float64)
            wide = scale.reshape(-1, *[1] * (weight.ndim - 1))
            constants = {
                "weight": (weight.astype(np.float64) * wide).astype(np.float32),
                "bias": (bias.astype(np.float64) * scale + shift).astype(np.float32),
            }
            return _merged(graph, before, node, replace(before, constants=constants, output=node.output))
    return None


def _fuse_activation(graph: Graph) -> Graph | None:
    for node in graph.nodes:
        if node.op in (Op.RELU, Op.CLIP):
            before = _fold_into(graph, node, {Op.CONV, Op.DENSE, Op.ADD})
            if before is not None:
                merged = replace(before, low=node.low, high=node.high, output=node.output)
                return _merged(graph, before, node, merged)
    return None
