"""What every operator computes, one family a file: in float, and in int8 as TFLite Micro does.

A new operator is one row here, one function for each arithmetic, one shape rule in ir.py, and one row each in the
readers and the writer. Float functions take and give real numbers; int8 functions take and give int8 values as
wide integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..ir import Node, Op, Tensor
from . import moves, pointwise, sums

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Both ways to compute one operator; None where it exists in one graph only."""

    real: Callable[[Node, list[Numbers]], Numbers] | None
    int8: Callable[[Node, list[Numbers], Mapping[str, Tensor]], Numbers] | None


ARITHMETIC: Mapping[Op, Arithmetic] = {
    Op.CONV: Arithmetic(sums.conv_real, sums.conv_int8),
    Op.DEPTHWISE: Arithmetic(sums.conv_real, sums.conv_int8),
    Op.DENSE: Arithmetic(sums.dense_real, sums.dense_int8),
    Op.MEAN: Arithmetic(sums.mean_real, sums.mean_int8),
    Op.AVERAGE_POOL: Arithmetic(sums.average_real, sums.average_int8),
    Op.MAX_POOL: Arithmetic(moves.max_pool_real, moves.max_pool_int8),
    Op.PAD: Arithmetic(moves.pad_real, moves.pad_int8),
    Op.CONCAT: Arithmetic(moves.concat, lambda node, inputs, tensors: moves.concat(node, inputs)),
    Op.RESHAPE: Arithmetic(moves.reshape, lambda node, inputs, tensors: moves.reshape(node, inputs)),
    Op.TRANSPOSE: Arithmetic(moves.transpose, lambda node, inputs, tensors: moves.transpose(node, inputs)),
    Op.RESIZE: Arithmetic(moves.resize, lambda node, inputs, tensors: moves.resize(node, inputs)),
    Op.ADD: Arithmetic(lambda node, inputs: inputs[0] + inputs[1], pointwise.add_int8),
    Op.MUL: Arithmetic(lambda node, inputs: inputs[0] * inputs[1], pointwise.mul_int8),
    Op.RELU: Arithmetic(lambda node, inputs: inputs[0], pointwise.rescale_int8),
    Op.REQUANTIZE: Arithmetic(lambda node, inputs: inputs[0], pointwise.rescale_int8),
    Op.LEAKY_RELU: Arithmetic(pointwise.leaky_relu_real, pointwise.leaky_relu_int8),
    Op.HARD_SWISH: Arithmetic(pointwise.hard_swish_real, pointwise.hard_swish_int8),
    Op.LOGISTIC: Arithmetic(pointwise.logistic_real, pointwise.logistic_int8),
    Op.TANH: Arithmetic(pointwise.tanh_real, pointwise.tanh_int8),
    Op.SOFTMAX: Arithmetic(pointwise.softmax_real, pointwise.softmax_int8),
    Op.ADD_NUMBER: Arithmetic(None, pointwise.add_number_int8),
    Op.MUL_NUMBER: Arithmetic(None, pointwise.mul_number_int8),
    Op.BATCH_NORM: Arithmetic(sums.affine_real, None),
    Op.AFFINE: Arithmetic(sums.affine_real, None),
    Op.FLATTEN: Arithmetic(lambda node, inputs: inputs[0], None),
}
