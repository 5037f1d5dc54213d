"""How each operator of a .tflite file is read into the int8 graph: one function and one row an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Array, Op, Window
from . import schema
from .layers_out import same_pads
from .reader import FLOAT32, Operator, TfliteReader

MAX_WINDOW = 255
Read = Callable[[TfliteReader, Operator], None]


def _limits(operator: Operator, function: int) -> dict[str, float | None]:
    names = schema.ActivationFunctionType
    known = {
        names.NONE: (None, None),
        names.RELU: (0.0, None),
        names.RELU6: (0.0, 6.0),
        names.RELU_N1_TO_1: (-1.0, 1.0),
    }
    if function not in known:
        raise FedtinyError(f"{operator.called} has the fused activation {function}, which is not supported")
    low, high = known[function]
    return {"low": low, "high": high}


def _window(reader: TfliteReader, operator: Operator, options: Any, kernel: tuple[int, int], dilated: bool) -> Window:
    stride = (options.StrideH(), options.StrideW())
    dilation = (options.DilationHFactor(), options.DilationWFactor()) if dilated else (1, 1)
    if min(*kernel, *stride, *dilation) < 1 or max(*kernel, *stride, *dilation) > MAX_WINDOW:
        raise FedtinyError(f"{operator.called}: kernel, stride and dilation must lie between 1 and {MAX_WINDOW}")
    window = Window(kernel, stride, dilation=dilation)
    shape = reader.tensors[reader.source(operator)].shape
    if len(shape) != 3:
        raise FedtinyError(f"{operator.called} needs an image, not {shape}")
    if options.Padding() == schema.Padding.VALID:
        return window
    return Window(kernel, stride, same_pads(window, shape[0], shape[1]), dilation)


def _weights(reader: TfliteReader, operator: Operator, sides: int, axis: int) -> tuple[Array, dict[str, Array]]:
    """Weights, and the rest of a weighted operator's constants."""
    weight = reader.constant(operator, 1, np.int8)
    found = reader.tensor(operator.inputs[1])
    if weight.ndim != sides or weight.size == 0:
        raise FedtinyError(f"{operator.called}: weights of shape {weight.shape}; {sides} sides are needed")
    count = weight.shape[axis]
    if found.scales.size not in (1, count) or (found.scales.size > 1 and found.axis != axis):
        raise FedtinyError(
            f"{operator.called}: {found.scales.size} weight scales along side {found.axis} of {weight.shape}"
        )
    if found.zero_points.any() or not np.all(np.isfinite(found.scales) & (found.scales >= 0)):
        raise FedtinyError(f"{operator.called}: weights must be symmetric (zero point 0) with scales of 0 or more")
    bias = reader.constant(operator, 2) if reader.has(operator, 2) else np.zeros(count, np.int32)
    if bias.size != count:
        raise FedtinyError(f"{operator.called}: {bias.size} biases for {count} outputs")
    return weight, {"weight_scale": found.scales, "bias": bias.reshape(-1).astype(np.int32)}


def _conv(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.Conv2DOptions)
    weight, rest = _weights(reader, operator, 4, 0)
    window = _window(reader, operator, options, (weight.shape[1], weight.shape[2]), dilated=True)
    limits = _limits(operator, options.FusedActivationFunction())
    constants = {"weight": weight, **rest}
    reader.add(operator, Op.CONV, (reader.source(operator),), constants=constants, window=window, **limits)


def _depthwise(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.DepthwiseConv2DOptions)
    weight, rest = _weights(reader, operator, 4, 3)
    window = _window(reader, operator, options, (weight.shape[1], weight.shape[2]), dilated=True)
    limits = _limits(operator, options.FusedActivationFunction())
    source = reader.source(operator)
    if weight.shape[0] != 1:
        raise FedtinyError(f"{operator.called}: weights of shape {weight.shape}; the first side must be 1")
    op = Op.DEPTHWISE if reader.tensors[source].shape[2] > 1 else Op.CONV
    constants = {"weight": np.ascontiguousarray(weight.transpose(3, 1, 2, 0)), **rest}
    reader.add(operator, op, (source,), constants=constants, window=window, **limits)


def _dense(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.FullyConnectedOptions)
    if options.WeightsFormat() != 0:
        raise FedtinyError(f"{operator.called}: shuffled weights are not supported")
    weight, rest = _weights(reader, operator, 2, 0)
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, Op.DENSE, (reader.source(operator),), constants={"weight": weight, **rest}, **limits)


def _pair(reader: TfliteReader, operator: Operator) -> None:
    add = operator.kind == "ADD"
    options = reader.options(operator, schema.AddOptions if add else schema.MulOptions)
    inputs = (reader.source(operator, 0), reader.source(operator, 1))
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, Op.ADD if add else Op.MUL, inputs, **limits)


def _pool(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.Pool2DOptions)
    window = _window(reader, operator, options, (options.FilterHeight(), options.FilterWidth()), dilated=False)
    op = Op.MAX_POOL if operator.kind == "MAX_POOL_2D" else Op.AVERAGE_POOL
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, op, (reader.source(operator),), window=window, **limits)


def _mean(reader: TfliteReader, operator: Operator) -> None:
    source, axes = reader.source(operator), reader.constant(operator, 1)
    shape = reader.tensors[source].shape
    if sorted(int(axis) % (len(shape) + 1) for axis in np.ravel(axes)) != list(range(1, len(shape))):
        raise FedtinyError(f"{operator.called}: a mean must be over height and width of an image")
    if len(shape) == 2:  # a signal is an image of one row
        source = reader.view(source, (1, *shape))
    keep = int(bool(reader.options(operator, schema.ReducerOptions).KeepDims()))
    reader.add(operator, Op.MEAN, (source,), settings={"keep": keep})


def _pad(reader: TfliteReader, operator: Operator) -> None:
    source, pads, steps = reader.source(operator), reader.constant(operator, 1), 0.0
    if pads.ndim != 2 or pads.shape[1] != 2 or pads[0].any():
        raise FedtinyError(f"{operator.called}: pads of shape {pads.shape}, or of the batch")
    if reader.has(operator, 2):
        quant = reader.tensors[source].quant
        assert quant is not None
        steps = float(int(reader.constant(operator, 2, np.int8).reshape(-1)[0]) - quant.zero_point)
    constants = {"pads": pads[1:].astype(np.int64)}
    reader.add(operator, Op.PAD, (source,), constants=constants, pad_value=steps)


def _concat(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.ConcatenationOptions)
    inputs = tuple(reader.source(operator, place) for place in range(len(operator.inputs)))
    if not inputs or options.FusedActivationFunction():
        raise FedtinyError(f"{operator.called} joins nothing, or clamps")
    sides = len(reader.tensors[inputs[0]].shape) + 1
    if not -sides <= options.Axis() < sides or options.Axis() % sides == 0:
        raise FedtinyError(f"{operator.called}: cannot join along side {options.Axis()}")
    reader.add(operator, Op.CONCAT, inputs, settings={"axis": options.Axis() % sides - 1})


def _reshape(reader: TfliteReader, operator: Operator) -> None:
    """What is wanted stands in the output's own shape."""
    target = reader.activation(operator.outputs[0]).shape
    reader.add(operator, Op.RESHAPE, (reader.source(operator),), constants={"shape": np.array(target)})


def _transpose(reader: TfliteReader, operator: Operator) -> None:
    order = [int(side) for side in np.ravel(reader.constant(operator, 1))]
    if not order or order[0] != 0:
        raise FedtinyError(f"{operator.called}: the batch must stay first, not {order}")
    constants = {"order": np.array(order[1:]) - 1}
    reader.add(operator, Op.TRANSPOSE, (reader.source(operator),), constants=constants)


def _resize(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.ResizeNearestNeighborOptions)
    size = np.ravel(reader.constant(operator, 1))
    if size.size != 2 or size.min() < 1:
        raise FedtinyError(f"{operator.called}: the new size must be two numbers above 0")
    settings = {"height": float(size[0]), "width": float(size[1])}
    settings |= {"half_pixel": float(options.HalfPixelCenters()), "align_corners": float(options.AlignCorners())}
    reader.add(operator, Op.RESIZE, (reader.source(operator),), settings=settings)


def _unary(reader: TfliteReader, operator: Operator) -> None:
    source = (reader.source(operator),)
    if operator.kind == "LEAKY_RELU":
        alpha = float(reader.options(operator, schema.LeakyReluOptions).Alpha())
        if not 0.0 <= alpha <= 100.0:
            raise FedtinyError(f"{operator.called}: alpha {alpha} is not between 0 and 100")
        reader.add(operator, Op.LEAKY_RELU, source, settings={"alpha": alpha})
    elif operator.kind == "SOFTMAX":
        beta = float(reader.options(operator, schema.SoftmaxOptions).Beta())
        if not 0.0 < beta <= 100.0:
            raise FedtinyError(f"{operator.called}: beta {beta} is not between 0 and 100")
        reader.add(operator, Op.SOFTMAX, source, settings={"beta": beta})
    else:
        reader.add(operator, Op.HARD_SWISH if operator.kind == "HARD_SWISH" else Op.LOGISTIC, source)


def _relu(reader: TfliteReader, operator: Operator) -> None:
    source = reader.source(operator)
    high = 6.0 if operator.kind == "RELU6" else None
    if high and reader.tensors[source].quant != reader.activation(operator.outputs[0]).quant:
        raise FedtinyError(f"{operator.called} changes the scale, which the kernel does not do")
    reader.add(operator, Op.RELU, (source,), low=0.0, high=high)


def _quantize(reader: TfliteReader, operator: Operator) -> None:
    """Float or uint8 to int8 at the edge, or other steps in between."""
    index, output = reader.index(operator, 0), operator.outputs[0]
    target = reader.activation(output)
    if index == reader.float_input and index not in reader.written:
        reader.tensors[target.name] = target
        reader.written[index] = reader.written[output] = target.name
        return
    if reader.tensor(index).kind == FLOAT32:
        raise FedtinyError(f"{operator.called} quantises a float tensor inside the network: quantise all of it")
    source = reader.source(operator)
    if output in reader.written:
        raise FedtinyError(f"tensor {target.name} is written twice")
    if reader.tensors[source].quant == target.quant and reader.tensors[source].shape == target.shape:
        reader.written[output] = source
    else:
        reader.add(operator, Op.REQUANTIZE, (source,))


def _dequantize(reader: TfliteReader, operator: Operator) -> None:
    if operator.outputs[0] in reader.written:
        raise FedtinyError(f"{operator.called} writes a tensor twice")
    reader.written[operator.outputs[0]] = reader.source(operator)


def _shape_arithmetic(reader: TfliteReader, operator: Operator) -> None:
    """What makes the target of a reshape at run time; the output's own shape says it too."""
    if reader.tensor(operator.outputs[0]).kind != schema.TensorType.INT32:
        raise FedtinyError(f"{operator.called} is supported on shapes only")


READERS: Mapping[str, Read] = {
    "ADD": _pair,
    "AVERAGE_POOL_2D": _pool,
    "CONCATENATION": _concat,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEQUANTIZE": _dequantize,
    "EXPAND_DIMS": _reshape,
    "FULLY_CONNECTED": _dense,
    "HARD_SWISH": _unary,
    "LEAKY_RELU": _unary,
    "LOGISTIC": _unary,
    "MAX_POOL_2D": _pool,
    "MEAN": _mean,
    "MUL": _pair,
    "PACK": _shape_arithmetic,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RELU6": _relu,
    "RESHAPE": _reshape,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SHAPE": _shape_arithmetic,
    "SOFTMAX": _unary,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _shape_arithmetic,
    "TRANSPOSE": _transpose,
}
