"""Fully connected layers as convolutions over one pixel: the same numbers, from a kernel that every library has right.

With a scale for each channel TensorFlow Lite Micro's older fully connected kernels, and one of ESP-NN's, compute
something else; convolutions have had such scales from the start.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph.ir import Graph, Node, Op, Tensor, Window


def as_convolutions(graph: Graph) -> Graph:
    """The same int8 network without fully connected layers; every output keeps its name and its bytes."""
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        nodes += _convolution(tensors, node) if node.op is Op.DENSE else [node]
    return replace(graph, tensors=tensors, nodes=tuple(nodes))


def _convolution(tensors: dict[str, Tensor], node: Node) -> list[Node]:
    """A dense layer as a window over the whole of its input, between reshapings to an image and back."""
    source, made = tensors[node.inputs[0]], tensors[node.output]
    image, pixel = source.image, (1, 1, made.elements)
    before: list[Node] = []
    data = source.name
    if source.shape != image:
        data = _new(tensors, f"{node.name}.image", image, source)
        before.append(_reshape(f"{node.name}.to_image", source.name, data, image))
    output = _new(tensors, f"{node.name}.pixel", pixel, made)
    weight = node.constants["weight"].reshape(-1, *image)
    convolution = replace(
        node,
        op=Op.CONV,
        inputs=(data,),
        output=output,
        constants={**node.constants, "weight": weight},
        window=Window(image[:2]),
    )
    return [*before, convolution, _reshape(f"{node.name}.flat", output, node.output, made.shape)]


def _reshape(name: str, source: str, target: str, shape: tuple[int, ...]) -> Node:
    return Node(Op.RESHAPE, name, (source,), target, constants={"shape": np.array(shape)})


def _new(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], like: Tensor) -> str:
    while name in tensors:
        name += "_"
    tensors[name] = replace(like, name=name, shape=shape)
    return name
