"""The network between reading and writing: a checked list of operators over named tensors.

Shapes have no batch axis and are channels last, (height, width, channels) or (features,). The same classes hold
the float graph and the int8 graph; a tensor with a `quant` is int8. Nothing here reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError

Array = NDArray[Any]
MAX_ELEMENTS = 1 << 28  # of a constant
MAX_ACTIVATION = 1 << 24  # of an activation: more than any microcontroller's memory
MAX_MACS = 1 << 34  # of one operator
MAX_SIDE = 0xFFFF


class Op(StrEnum):
    """What an operator computes. The last group exists only until `passes.py` has folded it away."""

    CONV = "conv"  # constants: weight (out, height, width, in of its group), bias; groups follow from the shapes
    DEPTHWISE = "depthwise"  # constants: weight (out, height, width, 1), bias; output k reads input k * in // out
    DENSE = "dense"  # reads its input flat; constants: weight (out, in), bias
    ADD = "add"  # of two; sides of 1 are repeated
    MUL = "mul"  # of two; sides of 1 are repeated
    MEAN = "mean"  # over height and width; settings: keep, 1 for (1, 1, channels), 0 for (channels,)
    MAX_POOL = "max_pool"  # padding never wins
    AVERAGE_POOL = "average_pool"  # padding does not count
    PAD = "pad"  # constants: pads (sides, 2); filled with `pad_value`
    CONCAT = "concat"  # settings: axis
    RESHAPE = "reshape"  # constants: shape
    TRANSPOSE = "transpose"  # constants: order of the sides
    RESIZE = "resize"  # nearest neighbour; settings: height, width, half_pixel, align_corners
    RELU = "relu"  # clamps to `low`..`high`
    LEAKY_RELU = "leaky_relu"  # settings: alpha
    HARD_SWISH = "hard_swish"
    LOGISTIC = "logistic"
    TANH = "tanh"
    SOFTMAX = "softmax"  # over the last side; settings: beta
    REQUANTIZE = "requantize"  # int8 only: the same numbers in other steps
    ADD_NUMBER = "add_number"  # int8 only; settings: steps, scale of the number; sign, number_sign: what is subtracted
    MUL_NUMBER = "mul_number"  # int8 only; settings: steps, scale of the number

    BATCH_NORM = "batch_norm"  # constants: scale, shift, per channel
    AFFINE = "affine"  # constants: scale, shift, one number each
    FLATTEN = "flatten"  # in the order of channels last, whatever the file meant


WEIGHTED = frozenset({Op.CONV, Op.DEPTHWISE, Op.DENSE})
WINDOWED = frozenset({Op.CONV, Op.DEPTHWISE, Op.MAX_POOL, Op.AVERAGE_POOL})


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
        if self.elements > MAX_ACTIVATION:
            raise FedtinyError(f"tensor {self.name}: {self.elements:,} elements; the limit is {MAX_ACTIVATION:,}")

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
    """Where an operator looks: kernel, stride, dilation as (height, width), padding as (top, left, bottom, right)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def reach(self) -> tuple[int, int]:
        """The kernel's height and width with the gaps that dilation leaves."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))  # type: ignore[return-value]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the result; below 1 where the kernel does not fit."""
        top, left, bottom, right = self.pads
        tall, wide = height + top + bottom - self.reach[0], width + left + right - self.reach[1]
        return tall // self.stride[0] + 1, wide // self.stride[1] + 1


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `low` and `high` clamp its result (a fused activation); padding has the value `pad_value`.

    In the int8 graph `pad_value` counts steps from the input's zero point.
    """

    op: Op
    name: str
    inputs: tuple[str, ...]
    output: str
    constants: Mapping[str, Array] = field(default_factory=dict)
    window: Window = Window()
    low: float | None = None
    high: float | None = None
    pad_value: float = 0.0
    settings: Mapping[str, float] = field(default_factory=dict)


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


def groups(node: Node, channels: int) -> int:
    """How many groups of channels a convolution keeps apart."""
    return max(1, channels // int(node.constants["weight"].shape[3]))


def _check_node(node: Node, tensors: Mapping[str, Tensor]) -> None:
    if node.op in WEIGHTED and node.constants["bias"].shape != node.constants["weight"].shape[:1]:
        raise FedtinyError(
            f"operator {node.name}: a bias of shape {node.constants['bias'].shape} does not fit its weights"
        )
    expected = output_shape(node, [tensors[name].shape for name in node.inputs])
    if tensors[node.output].shape != expected:
        raise FedtinyError(f"operator {node.name} gives {expected}, but {node.output} is {tensors[node.output].shape}")
    if node.op in WEIGHTED and node.constants["weight"][0].size * tensors[node.output].elements > MAX_MACS:
        raise FedtinyError(f"operator {node.name} needs over {MAX_MACS:,} multiply-accumulates, which is the limit")
    for name, values in node.constants.items():
        if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
            raise FedtinyError(f"operator {node.name}: {name} holds a value that is not finite")


def output_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape an operator gives, or an error that names the operator."""
    rule = _SHAPES.get(node.op)
    return rule(node, shapes) if rule else shapes[0]


def _window_shape(node: Node, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    size = node.window.output_size(shape[0], shape[1])
    if min(size) < 1:
        raise FedtinyError(f"operator {node.name}: the kernel {node.window.kernel} is larger than its padded input")
    return (*size, channels)


def _conv_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    weight, shape = node.constants["weight"], shapes[0]
    fits = len(shape) == 3 and weight.ndim == 4 and weight.size > 0 and weight.shape[1:3] == node.window.kernel
    if fits and node.op is Op.DEPTHWISE:
        fits = weight.shape[3] == 1 and weight.shape[0] % shape[2] == 0
    elif fits:
        fits = shape[2] % weight.shape[3] == 0 and weight.shape[0] % groups(node, shape[2]) == 0
    if not fits:
        raise FedtinyError(
            f"operator {node.name}: weights of shape {weight.shape} do not fit an input of shape {shape}"
        )
    return _window_shape(node, shape, weight.shape[0])


def _pool_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    shape, kernel, pads = _image(node, shapes), node.window.kernel, node.window.pads
    if max(pads[0], pads[2]) >= kernel[0] or max(pads[1], pads[3]) >= kernel[1]:
        raise FedtinyError(f"operator {node.name}: padding {pads} is as large as the kernel {kernel}")
    return _window_shape(node, shape, shape[2])


def _image(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    if len(shapes[0]) != 3:
        raise FedtinyError(f"operator {node.name} ({node.op}) needs an image of (height, width, channels): {shapes[0]}")
    return shapes[0]


def _dense_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    weight = node.constants["weight"]
    if weight.ndim != 2 or weight.shape[1] != int(np.prod(shapes[0])):
        raise FedtinyError(f"operator {node.name}: weights of shape {weight.shape} do not fit an input of {shapes[0]}")
    return (weight.shape[0],)


def _pair_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    first, second = shapes
    fits = len(first) == len(second) and all(a == b or 1 in (a, b) for a, b in zip(first, second, strict=True))
    if not fits:
        raise FedtinyError(f"operator {node.name} ({node.op}): shapes {first} and {second} do not go together")
    return tuple(max(a, b) for a, b in zip(first, second, strict=True))


def _mean_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    channels = _image(node, shapes)[-1]
    return (1, 1, channels) if node.settings.get("keep", 1) else (channels,)


def _pad_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    pads, shape = node.constants["pads"], shapes[0]
    if pads.shape != (len(shape), 2) or pads.min() < 0 or pads.max() > MAX_SIDE:
        raise FedtinyError(f"operator {node.name}: pads {pads.tolist()} do not fit an input of shape {shape}")
    return tuple(side + int(before) + int(after) for side, (before, after) in zip(shape, pads, strict=True))


def _concat_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    axis, first = int(node.settings["axis"]), shapes[0]
    fits = 0 <= axis < len(first) and all(
        len(shape) == len(first) and shape[:axis] + shape[axis + 1 :] == first[:axis] + first[axis + 1 :]
        for shape in shapes
    )
    if not fits:
        raise FedtinyError(f"operator {node.name}: shapes {shapes} cannot be joined along side {axis}")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _reshape_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    target = tuple(int(side) for side in node.constants["shape"])
    if int(np.prod(target, dtype=object)) != int(np.prod(shapes[0])):
        raise FedtinyError(f"operator {node.name}: {shapes[0]} cannot become {target}")
    return target


def _transpose_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    order = [int(side) for side in node.constants["order"]]
    if sorted(order) != list(range(len(shapes[0]))):
        raise FedtinyError(f"operator {node.name}: {order} is no order of the sides of {shapes[0]}")
    return tuple(shapes[0][side] for side in order)


def _resize_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (int(node.settings["height"]), int(node.settings["width"]), _image(node, shapes)[2])


_SHAPES: Mapping[Op, Callable[[Node, list[tuple[int, ...]]], tuple[int, ...]]] = {
    Op.CONV: _conv_shape,
    Op.DEPTHWISE: _conv_shape,
    Op.DENSE: _dense_shape,
    Op.ADD: _pair_shape,
    Op.MUL: _pair_shape,
    Op.MEAN: _mean_shape,
    Op.MAX_POOL: _pool_shape,
    Op.AVERAGE_POOL: _pool_shape,
    Op.PAD: _pad_shape,
    Op.CONCAT: _concat_shape,
    Op.RESHAPE: _reshape_shape,
    Op.TRANSPOSE: _transpose_shape,
    Op.RESIZE: _resize_shape,
    Op.FLATTEN: lambda node, shapes: (int(np.prod(shapes[0])),),
}
