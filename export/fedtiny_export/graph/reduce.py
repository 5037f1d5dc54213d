"""int8 Graph -> smaller int8 Graph with the same outputs: channels that are constant or that nobody reads go.

A constant channel goes where every operator that multiplies it gets the same sum from it at every position; the sum
goes into that operator's bias. Channels that operators pass through, add or join stay or go together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError
from ..quant.quantize import prove_sums
from .bounds import Bounds, bounds
from .ir import WEIGHTED, Graph, Node, Op, Tensor, groups
from .ops.sums import weighted_sums

Mask = NDArray[np.bool_]
_PASSING = frozenset(
    {Op.DEPTHWISE, Op.MEAN, Op.MAX_POOL, Op.AVERAGE_POOL, Op.RESIZE, Op.RELU, Op.LEAKY_RELU, Op.HARD_SWISH}
) | {Op.LOGISTIC, Op.TANH, Op.REQUANTIZE, Op.ADD, Op.ADD_NUMBER, Op.MUL, Op.MUL_NUMBER, Op.PAD, Op.CONCAT, Op.RESHAPE}


def reduce_graph(graph: Graph) -> Graph:
    """Take out dead channels until none is left; refuse a network that ignores its input."""
    known = bounds(graph)
    if known[graph.output].constant.all():
        raise FedtinyError("the network gives one and the same output for every input: nothing is left to run")
    while True:
        kept = _kept_channels(graph, known)
        if all(mask.all() for mask in kept.values()):
            return graph
        graph = _without(graph, known, kept)
        known = {name: _cut(known[name], kept[name]) for name in kept}
        for node in graph.nodes:
            prove_sums(node, graph.tensors)


def _cut(item: Bounds, kept: Mask) -> Bounds:
    return Bounds(item.low[..., kept], item.high[..., kept])


def _kept_channels(graph: Graph, known: dict[str, Bounds]) -> dict[str, Mask]:
    """Which channels of each tensor have to stay."""
    kept = {name: np.zeros(tensor.shape[-1], bool) for name, tensor in graph.tensors.items()}
    kept[graph.input][:] = kept[graph.output][:] = True
    for node in graph.nodes:
        _need(graph, node, known, kept)
    while True:
        _spread(graph, kept)
        empty = [mask for mask in kept.values() if not mask.any()]
        if not empty:
            return kept
        empty[0][0] = True  # a tensor keeps at least one channel


def _need(graph: Graph, node: Node, known: dict[str, Bounds], kept: dict[str, Mask]) -> None:
    """Mark the channels that an operator cannot do without."""
    if node.op is Op.DENSE or (node.op is Op.CONV and groups(node, kept[node.inputs[0]].size) == 1):
        kept[node.inputs[0]] |= _needed_by(graph, node, known[node.inputs[0]])
    elif not (_joins_channels(graph, node) or (node.op in _PASSING and _keeps_channels(graph, node))):
        for name in (*node.inputs, node.output):
            kept[name][:] = True


def _joins_channels(graph: Graph, node: Node) -> bool:
    return node.op is Op.CONCAT and int(node.settings["axis"]) == len(graph.tensors[node.output].shape) - 1


def _spread(graph: Graph, kept: dict[str, Mask]) -> None:
    """Channels that an operator treats alike stay together: repeat until nothing changes."""
    before = -1
    while before != (before := sum(int(mask.sum()) for mask in kept.values())):
        for node in (*graph.nodes, *reversed(graph.nodes)):
            output = kept[node.output]
            if _joins_channels(graph, node):
                output |= np.concatenate([kept[name] for name in node.inputs])
                ends = np.cumsum([kept[name].size for name in node.inputs])
                for name, end in zip(node.inputs, ends.tolist(), strict=True):
                    kept[name] |= output[end - kept[name].size : end]
            elif node.op in _PASSING and _keeps_channels(graph, node):
                for name in node.inputs:
                    shared = kept[name] | output.reshape(kept[name].size, -1).any(axis=1)
                    kept[name][:] = shared
                    output |= np.repeat(shared, output.size // shared.size)


def _keeps_channels(graph: Graph, node: Node) -> bool:
    """Whether channel k of the output comes from channel k of every input."""
    shapes = [graph.tensors[name].shape for name in (*node.inputs, node.output)]
    if node.op is Op.DEPTHWISE:
        return True
    if node.op is Op.PAD and node.constants["pads"][-1].any():
        return False
    if node.op is Op.RESHAPE and any(int(np.prod(shape[:-1])) != 1 for shape in shapes):
        return False
    return len({shape[-1] for shape in shapes}) == 1


def _needed_by(graph: Graph, node: Node, data: Bounds) -> Mask:
    """The input channels a convolution or dense layer cannot do without."""
    channels = data.low.shape[-1]
    read = node.constants["weight"].reshape(node.constants["weight"].shape[0], -1, channels).any(axis=(0, 1))
    needed = read & ~data.constant
    for channel in np.flatnonzero(read & data.constant):
        one = np.arange(channels) == channel
        needed[channel] = not _even(_constant_sums(graph, node, data, one))
    return np.asarray(needed)


def _constant_sums(graph: Graph, node: Node, data: Bounds, chosen: Mask) -> NDArray[np.int64]:
    """What constant channels add to the sums of an operator, by position and output channel."""
    low = data.low[..., chosen]
    weight = node.constants["weight"]
    if node.op is Op.DENSE:
        weight = weight.reshape(weight.shape[0], -1, chosen.size)[..., chosen].reshape(weight.shape[0], -1)
    else:
        weight = weight[..., chosen]
    constants = {**node.constants, "weight": weight, "bias": np.zeros_like(node.constants["bias"])}
    return weighted_sums(replace(node, constants=constants), low[None], graph.tensors)


def _even(sums: NDArray[np.int64]) -> bool:
    flat = sums.reshape(-1, sums.shape[-1])
    return bool(np.all(flat == flat[0]))


def _without(graph: Graph, known: dict[str, Bounds], kept: dict[str, Mask]) -> Graph:
    tensors = {name: _smaller(tensor, kept[name]) for name, tensor in graph.tensors.items()}
    nodes = [_smaller_node(graph, node, known, kept) for node in graph.nodes]
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _smaller(tensor: Tensor, kept: Mask) -> Tensor:
    return replace(tensor, shape=(*tensor.shape[:-1], int(kept.sum())))


def _smaller_node(graph: Graph, node: Node, known: dict[str, Bounds], kept: dict[str, Mask]) -> Node:
    rows = kept[node.output]
    if node.op is Op.RESHAPE:
        return replace(node, constants={"shape": np.array([*node.constants["shape"][:-1], rows.sum()])})
    if node.op not in WEIGHTED:
        return node
    data, columns = known[node.inputs[0]], kept[node.inputs[0]]
    weight, bias, scale = (node.constants[key] for key in ("weight", "bias", "weight_scale"))
    gone = ~columns & data.constant
    if node.op is not Op.DEPTHWISE and gone.any():
        bias = bias + _constant_sums(graph, node, data, gone).reshape(-1, bias.size)[0]
    if node.op is Op.DENSE:
        weight = weight.reshape(weight.shape[0], -1, columns.size)[..., columns].reshape(weight.shape[0], -1)
    elif node.op is Op.CONV and columns.size == weight.shape[-1]:
        weight = weight[..., columns]
    if np.any(np.abs(bias.astype(np.int64)) >= 2**31):
        raise FedtinyError(f"operator {node.name}: a bias does not fit 32 bits")
    scale = scale[rows] if scale.size > 1 else scale
    constants = {"weight": weight[rows], "weight_scale": scale, "bias": bias[rows].astype(np.int32)}
    return replace(node, constants=constants)
