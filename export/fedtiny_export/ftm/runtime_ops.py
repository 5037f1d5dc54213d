"""Operators without weights as the C runtime runs them: which kernel, with which parameter record.

A new operator is one row of RUNTIME_OPS and one function. What a kernel cannot do is said by `lacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..graph.fixed_point import activation_limits, add_numbers, mean_numbers, mul_numbers, softmax_numbers
from ..graph.ir import Node, Op, Tensor
from ..graph.ops import ARITHMETIC
from ..graph.ops.moves import nearest
from . import abi
from .abi import MAX_PRODUCT_SHIFT, Kernel

Tensors = Mapping[str, Tensor]
MAX_PIXELS = 1 << 22


@dataclass(frozen=True, slots=True)
class RuntimeOp:
    """A kernel, its parameters (one record for each time it runs), and what it lacks for an operator, if anything."""

    kernel: Kernel
    records: Callable[[Node, Tensors], Iterable[bytes]]
    lacks: Callable[[Node, Tensors], str | None] = lambda node, tensors: None


def _add(node: Node, tensors: Tensors) -> Iterable[bytes]:
    numbers = add_numbers(node, tensors)
    low, high = activation_limits(node, tensors[node.output])
    yield abi.ADD.pack(
        multiplier1=numbers.first[0],
        shift1=numbers.first[1],
        multiplier2=numbers.second[0],
        shift2=numbers.second[1],
        multiplier_out=numbers.output[0],
        shift_out=numbers.output[1],
        act_min=low,
        act_max=high,
        reserved=0,
        reserved2=0,
    )


def _add_lacks(node: Node, tensors: Tensors) -> str | None:
    return "addition of two shapes" if len({tensors[name].shape for name in node.inputs}) > 1 else None


def _mean(node: Node, tensors: Tensors) -> Iterable[bytes]:
    multiplier, shift = mean_numbers(node, tensors)
    yield abi.MEAN.pack(multiplier=multiplier, shift=shift, reserved=0, reserved2=0)


def _mean_lacks(node: Node, tensors: Tensors) -> str | None:
    height, width, _ = tensors[node.inputs[0]].image
    return f"a mean over more than {MAX_PIXELS:,} pixels" if height * width > MAX_PIXELS else None


def _pool(node: Node, tensors: Tensors) -> Iterable[bytes]:
    low, high = activation_limits(node, tensors[node.output])
    yield abi.POOL.pack(
        kernel_height=node.window.kernel[0],
        kernel_width=node.window.kernel[1],
        stride_height=node.window.stride[0],
        stride_width=node.window.stride[1],
        pad_top=node.window.pads[0],
        pad_left=node.window.pads[1],
        act_min=low,
        act_max=high,
        average=int(node.op is Op.AVERAGE_POOL),
        reserved=0,
        reserved2=0,
    )


def _softmax(node: Node, tensors: Tensors) -> Iterable[bytes]:
    multiplier, shift, lowest = softmax_numbers(node, tensors)
    yield abi.SOFTMAX.pack(multiplier=multiplier, shift=shift, lowest=max(lowest, -255), reserved=0)


def _two_sides(node: Node, tensors: Tensors) -> str | None:
    """The runtime has images and vectors; a table would be taken for a vector."""
    tables = [name for name in (*node.inputs, node.output) if len(tensors[name].shape) == 2]
    return f"{node.op} of a tensor with two sides" if any(tensors[name].shape[0] > 1 for name in tables) else None


def _table(node: Node, tensors: Tensors) -> Iterable[bytes]:
    """The answers for 0 to 127, then for -128 to -1."""
    compute = ARITHMETIC[node.op].int8
    assert compute is not None
    numbers = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64)
    yield compute(node, [numbers], tensors).astype(np.int8).tobytes()


def _mul(node: Node, tensors: Tensors) -> Iterable[bytes]:
    multiplier, shift = mul_numbers(node, tensors)
    low, high = activation_limits(node, tensors[node.output])
    yield abi.MUL.pack(multiplier=multiplier, shift=shift, act_min=low, act_max=high, reserved=0)


def _mul_lacks(node: Node, tensors: Tensors) -> str | None:
    if mul_numbers(node, tensors)[1] > MAX_PRODUCT_SHIFT:
        return f"a product shifted by over {MAX_PRODUCT_SHIFT} bits"
    return _two_sides(node, tensors)


def _pad(node: Node, tensors: Tensors) -> Iterable[bytes]:
    quant = tensors[node.inputs[0]].quant
    assert quant is not None
    top, left, front = (0, 0, *node.constants["pads"][:, 0].tolist())[-3:]
    yield abi.PLACE.pack(top=top, left=left, front=front, fill=1, value=quant.zero_point + int(node.pad_value))


def _concat(node: Node, tensors: Tensors) -> Iterable[bytes]:
    axis = int(node.settings["axis"]) + 3 - len(tensors[node.output].shape)
    start = [0, 0, 0]
    for name in node.inputs:
        yield abi.PLACE.pack(top=start[0], left=start[1], front=start[2], fill=0, value=0)
        start[axis] += tensors[name].image[axis]


def _resize(node: Node, tensors: Tensors) -> Iterable[bytes]:
    sides = zip(tensors[node.inputs[0]].image[:2], ("height", "width"), strict=True)
    found = [nearest(size, int(node.settings[side]), node.settings) for size, side in sides]
    yield np.concatenate(found).astype("<u2").tobytes()


_POINTWISE = RuntimeOp(Kernel.TABLE, _table)
RUNTIME_OPS: Mapping[Op, RuntimeOp] = {
    Op.ADD: RuntimeOp(Kernel.ADD, _add, _add_lacks),
    Op.MUL: RuntimeOp(Kernel.MUL, _mul, _mul_lacks),
    Op.MEAN: RuntimeOp(Kernel.MEAN, _mean, _mean_lacks),
    Op.MAX_POOL: RuntimeOp(Kernel.POOL, _pool),
    Op.AVERAGE_POOL: RuntimeOp(Kernel.POOL, _pool),
    Op.SOFTMAX: RuntimeOp(Kernel.SOFTMAX, _softmax, _two_sides),
    Op.PAD: RuntimeOp(Kernel.PLACE, _pad, _two_sides),
    Op.CONCAT: RuntimeOp(Kernel.PLACE, _concat, _two_sides),
    Op.RESIZE: RuntimeOp(Kernel.RESIZE, _resize),
    Op.RELU: _POINTWISE,
    Op.REQUANTIZE: _POINTWISE,
    Op.LEAKY_RELU: _POINTWISE,
    Op.HARD_SWISH: _POINTWISE,
    Op.LOGISTIC: _POINTWISE,
    Op.TANH: _POINTWISE,
    Op.ADD_NUMBER: _POINTWISE,
    Op.MUL_NUMBER: _POINTWISE,
}
