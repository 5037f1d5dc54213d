"""1x1 convolutions over several rows as over one long row: the same numbers, with fewer blocks cut off at an edge.

Rows of an image lie end to end in the arena, so this takes a view before the layer and one behind it, and no copy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..ftm.layout import is_vector
from .ir import Graph, Node, Op, Tensor


def can_lie_flat(graph: Graph, node: Node) -> bool:
    """Whether no output of a layer reads a neighbouring pixel."""
    window = node.window
    alone = window.kernel == window.stride == (1, 1) and not any(window.pads)
    return node.op is Op.CONV and alone and not is_vector(graph, node)


def laid_flat(graph: Graph, node: Node, count: int) -> Graph:
    """The graph in which `count` rows of a layer's image, which divides their number, are one."""
    tensors, nodes = dict(graph.tensors), []
    source, target = node.inputs[0], node.output
    before, after = _view(tensors, source, count), _view(tensors, target, count)
    for other in graph.nodes:
        if other.name != node.name:
            nodes.append(other)
            continue
        nodes.append(_reshape(graph, tensors, source, before))
        nodes.append(replace(node, inputs=(before,), output=after))
        nodes.append(_reshape(graph, tensors, after, target))
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _view(tensors: dict[str, Tensor], name: str, count: int) -> str:
    """Add a tensor of other rows under a name that nothing has; returns the name."""
    height, width, channels = tensors[name].image
    view = name
    while view in tensors:
        view += " in long rows"
    tensors[view] = replace(tensors[name], name=view, shape=(height // count, width * count, channels))
    return view


def _reshape(graph: Graph, tensors: dict[str, Tensor], source: str, target: str) -> Node:
    name = target
    while any(node.name == name for node in graph.nodes):
        name += " view"
    return Node(Op.RESHAPE, name, (source,), target, constants={"shape": np.array(tensors[target].shape)})
