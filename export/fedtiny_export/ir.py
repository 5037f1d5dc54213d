"""The network between reading and writing: a checked list of operators over named tensors.

Shapes have no batch axis and are channels last, (height, width, channels) or (features,). The same classes hold
the float graph and the int8 graph; a tensor with a `quant` is int8. Nothing here reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FedtinyError

Array = NDArray[Any]
MAX_ELEMENTS = 1 << 28
MAX_SIDE = 0xFFFF


class Op(StrEnum):
    """What an operator computes. The second group exists only until `passes.py` has folded it away."""

    CONV = "conv"  # inputs: data; constants: weight (out, height, width, in), bias
    DENSE = "dense"  # inputs: data, read flat; constants: weight (out, in), bias
    ADD = "add"  # inputs: two of one shape
    MEAN = "mean"  # over height and width, to (1, 1, channels)

    BATCH_NORM = "batch_norm"  # constants: scale, shift, per channel
    AFFINE = "affine"  # constants: scale, shift, one number each
    RELU = "relu"
    CLIP = "clip"  # relu6 and the like: `low`, `high`
    FLATTEN = "flatten"


@dataclass(frozen=True, slots=True)
class Quant:
    """real = scale * (int8 - zero_point); scale is a float32 value, as files hold it."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (self.scale > 0 and np.isfinite(self.scale) and float(np.float32(self.scale)) == self.scale):
            raise FedtinyError(f"quantisation scale {self.scale} is not a positive 32-bit float")
        if not -128 <= self.zero_point <= 127:
            raise FedtinyError(f"zero point {self.zero_point} does not fit int8")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One activation."""

    name: str
    shape: tuple[int, ...]
    quant: Quant | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= 3 or min(self.shape) < 1 or max(self.shape) > MAX_SIDE:
            raise FedtinyError(f"tensor {self.name}: shape {self.shape} is not supported (1 to 3 sides of 1 to 65,535)")
        if self.elements > MAX_ELEMENTS:
            raise FedtinyError(f"tensor {self.name}: {self.elements:,} elements; the limit is {MAX_ELEMENTS:,}")

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def image(self) -> tuple[int, int, int]:
        """Its shape as (height, width, channels); features are channels of one pixel."""
        return self.shape if len(self.shape) == 3 else (1, 1, self.elements)


@dataclass(frozen=True, slots=True)
class Window:
    """Where a convolution looks: kernel and stride as (height, width), padding as (top, left, bottom, right)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the result; below 1 where the kernel does not fit."""
        top, left, bottom, right = self.pads
        tall, wide = height + top + bottom - self.kernel[0], width + left + right - self.kernel[1]
        return tall // self.stride[0] + 1, wide // self.stride[1] + 1


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `low` and `high` clamp its result (a fused activation); padding has the value `pad_value`."""

    op: Op
    name: str
    inputs: tuple[str, ...]
    output: str
    constants: Mapping[str, Array] = field(default_factory=dict)
    window: Window = Window()
    low: float | None = None
    high: float | None = None
    pad_value: float = 0.0


@dataclass(frozen=True, slots=True)
class Graph:
    """Operators in running order with one input and one output; the check makes sure that they fit together."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    input: str
    output: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        if not self.nodes:
            raise FedtinyError("the network has no operators")
        known = {self.input}
        for node in self.nodes:
            for name in node.inputs:
                if name not in known:
                    raise FedtinyError(f"operator {node.name} reads {name}, which nothing before it writes")
            if node.output in known:
                raise FedtinyError(f"tensor {node.output} is written twice")
            known.add(node.output)
            _check_node(node, self.tensors)
        if self.output not in known:
            raise FedtinyError(f"nothing writes the output {self.output}")

    def readers(self, name: str) -> list[Node]:
        """The operators that read a tensor."""
        return [node for node in self.nodes if name in node.inputs]


def _check_node(node: Node, tensors: Mapping[str, Tensor]) -> None:
    if node.op in (Op.CONV, Op.DENSE) and node.constants["bias"].shape != node.constants["weight"].shape[:1]:
        raise FedtinyError(
            f"operator {node.name}: a bias of shape {node.constants['bias'].shape} does not fit its weights"
        )
    expected = output_shape(node, [tensors[name].shape for name in node.inputs])
    if tensors[node.output].shape != expected:
        raise FedtinyError(f"operator {node.name} gives {expected}, but {node.output} is {tensors[node.output].shape}")
    for name, values in node.constants.items():
        if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
            raise FedtinyError(f"operator {node.name}: {name} holds a value that is not finite")


def _conv_shape(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    weight = node.constants["weight"]
    if len(shape) != 3 or weight.ndim != 4 or weight.shape[3] != shape[2] or weight.shape[1:3] != node.window.kernel:
        raise FedtinyError(
            f"operator {node.name}: weights of shape {weight.shape} do not fit an input of shape {shape}"
        )
    size = node.window.output_size(shape[0], shape[1])
    if min(size) < 1:
        raise FedtinyError(f"operator {node.name}: the kernel {node.window.kernel} is larger than its padded input")
    return (*size, weight.shape[0])


def output_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape an operator gives, or an error that names the operator."""
    shape = shapes[0]
    if node.op is Op.CONV:
        return _conv_shape(node, shape)
    if node.op is Op.DENSE:
        weight = node.constants["weight"]
        if weight.ndim != 2 or weight.shape[1] != int(np.prod(shape)):
            raise FedtinyError(f"operator {node.name}: weights of shape {weight.shape} do not fit an input of {shape}")
        return (weight.shape[0],)
    if node.op is Op.ADD and shapes[0] != shapes[1]:
        raise FedtinyError(f"operator {node.name}: cannot add {shapes[0]} and {shapes[1]} (no broadcasting)")
    if node.op is Op.MEAN:
        if len(shape) != 3:
            raise FedtinyError(f"operator {node.name}: a mean over height and width needs an image, not {shape}")
        return (1, 1, shape[-1])
    if node.op is Op.FLATTEN:
        return (int(np.prod(shape)),)
    return shape
