"""How each operator of a .tflite file is read into the int8 graph: one function and one row an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Array, Op, Window
from . import schema
from .dilated_in import deal_out, gather, hold, view
from .layers_out import same_pads
from .reader import FLOAT32, Operator, TfliteReader
from .shapes_in import is_shape, repeats, resolve, tile, work_out

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
    """How the kernel walks, with even pads as numbers."""
    stride = (options.StrideH(), options.StrideW())
    dilation = (options.DilationHFactor(), options.DilationWFactor()) if dilated else (1, 1)
    if min(*kernel, *stride, *dilation) < 1 or max(*kernel, *stride, *dilation) > MAX_WINDOW:
        raise FedtinyError(f"{operator.called}: kernel, stride and dilation must lie between 1 and {MAX_WINDOW}")
    window = Window(kernel, stride, dilation=dilation)
    if reader.index(operator, 0) in reader.apart and options.Padding() == schema.Padding.VALID:
        return window
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


def _placed(
    reader: TfliteReader, operator: Operator, options: Any, weight: Array, dealt: Window | None
) -> Window | None:
    """How a convolution walks; None where it waits for its padding."""
    window = _window(reader, operator, options, (weight.shape[1], weight.shape[2]), dilated=True)
    if hold(reader, operator, window):
        return None
    return replace(dealt, kernel=window.kernel) if dealt else window


def _conv(reader: TfliteReader, operator: Operator, dealt: Window | None = None) -> None:
    options = reader.options(operator, schema.Conv2DOptions)
    weight, rest = _weights(reader, operator, 4, 0)
    window = _placed(reader, operator, options, weight, dealt)
    if window is None:
        return
    limits = _limits(operator, options.FusedActivationFunction())
    constants = {"weight": weight, **rest}
    reader.add(operator, Op.CONV, (reader.source(operator),), constants=constants, window=window, **limits)


def _depthwise(reader: TfliteReader, operator: Operator, dealt: Window | None = None) -> None:
    options = reader.options(operator, schema.DepthwiseConv2DOptions)
    weight, rest = _weights(reader, operator, 4, 3)
    window = _placed(reader, operator, options, weight, dealt)
    if window is None:
        return
    limits = _limits(operator, options.FusedActivationFunction())
    source = reader.source(operator)
    if weight.shape[0] != 1:
        raise FedtinyError(f"{operator.called}: weights of shape {weight.shape}; the first side must be 1")
    op = Op.DEPTHWISE if reader.tensors[source].shape[2] > 1 else Op.CONV
    constants = {"weight": np.ascontiguousarray(weight.transpose(3, 1, 2, 0)), **rest}
    reader.add(operator, op, (source,), constants=constants, window=window, **limits)


def _put_together(reader: TfliteReader, operator: Operator) -> None:
    held, dealt = gather(reader, operator)
    (_conv if held.kind == "CONV_2D" else _depthwise)(reader, held, dealt)


def _dense(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.FullyConnectedOptions)
    if options.WeightsFormat() != 0:
        raise FedtinyError(f"{operator.called}: shuffled weights are not supported")
    weight, rest = _weights(reader, operator, 2, 0)
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, Op.DENSE, (reader.source(operator),), constants={"weight": weight, **rest}, **limits)


def _pair(reader: TfliteReader, operator: Operator) -> None:
    for place in (0, 1):
        if reader.is_constant(operator, place):
            _with_number(reader, operator, place)
            return
    if operator.kind == "SUB":
        raise FedtinyError(
            f"{operator.called} of two tensors is not supported: add the one with weights turned negative"
        )
    add = operator.kind == "ADD"
    options = reader.options(operator, schema.AddOptions if add else schema.MulOptions)
    inputs = (reader.image(reader.source(operator, 0)), reader.image(reader.source(operator, 1)))
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, Op.ADD if add else Op.MUL, inputs, **limits)


def _with_number(reader: TfliteReader, operator: Operator, place: int) -> None:
    """A sum, difference or product with a constant: of one number, or a product with one for each channel."""
    values, found = reader.constant(operator, place, np.int8), reader.tensor(operator.inputs[place])
    source = reader.source(operator, 1 - place)
    if found.scales.size != 1 or found.zero_points.size != 1 or not (0 < found.scales[0] < np.inf):
        raise FedtinyError(f"{operator.called}: its constant {found.name} needs one scale and one zero point")
    table = {"ADD": schema.AddOptions, "MUL": schema.MulOptions, "SUB": schema.SubOptions}[operator.kind]
    limits = _limits(operator, reader.options(operator, table).FusedActivationFunction())
    steps = values.astype(np.int64).reshape(-1) - int(found.zero_points[0])
    if steps.size > 1 and np.all(steps == steps[0]) and values.size == values.shape[-1]:
        steps = steps[:1]
    if steps.size == 1:
        settings = {"steps": float(steps[0]), "scale": float(found.scales[0])}
        if operator.kind != "MUL":
            settings |= {"sign": 1.0, "number_sign": 1.0}
        if operator.kind == "SUB":
            settings["sign" if place == 0 else "number_sign"] = -1.0
        op = Op.MUL_NUMBER if operator.kind == "MUL" else Op.ADD_NUMBER
        reader.add(operator, op, (source,), settings=settings, **limits)
    else:
        _scaled_channels(reader, operator, source, steps, found.scales, limits)


def _scaled_channels(
    reader: TfliteReader, operator: Operator, source: str, steps: Array, scale: Array, limits: dict[str, float | None]
) -> None:
    """A product with a number for each channel computes what a depthwise convolution of one pixel does."""
    shape = reader.tensors[source].shape
    if operator.kind != "MUL" or steps.size != shape[-1] or len(shape) != 3 or np.abs(steps).max() > 127:
        raise FedtinyError(
            f"{operator.called} takes a constant of {steps.size} numbers; supported are one number, and products of "
            "an image with one for each channel and zero point 0. Is it a batch norm in front of a convolution? Export "
            "the network as ONNX"
        )
    constants = {"weight": steps.astype(np.int8).reshape(-1, 1, 1, 1), "bias": np.zeros(steps.size, np.int32)}
    constants["weight_scale"] = scale.astype(np.float32)
    op = Op.DEPTHWISE if shape[2] > 1 else Op.CONV
    reader.add(operator, op, (source,), constants=constants, window=Window((1, 1)), **limits)


def _pool(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.Pool2DOptions)
    window = _window(reader, operator, options, (options.FilterHeight(), options.FilterWidth()), dilated=False)
    op = Op.MAX_POOL if operator.kind == "MAX_POOL_2D" else Op.AVERAGE_POOL
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, op, (reader.source(operator),), window=window, **limits)


def _reduce(reader: TfliteReader, operator: Operator) -> None:
    source, axes = reader.source(operator), reader.constant(operator, 1)
    shape = reader.tensors[source].shape
    if sorted(int(axis) % (len(shape) + 1) for axis in np.ravel(axes)) != list(range(1, len(shape))):
        raise FedtinyError(f"{operator.called}: it must be over height and width of an image")
    source = reader.image(source)
    if operator.kind == "MEAN":
        keep = int(bool(reader.options(operator, schema.ReducerOptions).KeepDims()))
        reader.add(operator, Op.MEAN, (source,), settings={"keep": keep})
        return
    height, width, _ = reader.tensors[source].shape
    if max(height, width) > MAX_WINDOW:
        raise FedtinyError(f"{operator.called} over more than {MAX_WINDOW} rows or columns is not supported")
    reader.add(operator, Op.MAX_POOL, (source,), window=Window((height, width)))


def _pad(reader: TfliteReader, operator: Operator) -> None:
    source, pads, steps = reader.source(operator), reader.constant(operator, 1), 0.0
    if pads.ndim != 2 or pads.shape[1] != 2 or pads[0].any():
        raise FedtinyError(f"{operator.called}: pads of shape {pads.shape}, or of the batch")
    if reader.has(operator, 2):
        quant = reader.tensors[source].quant
        assert quant is not None
        steps = float(int(reader.constant(operator, 2, np.int8).reshape(-1)[0]) - quant.zero_point)
    signal = [[0, 0]] if len(reader.tensors[source].shape) == 2 and len(pads) == 3 else np.zeros((0, 2))
    constants = {"pads": np.concatenate([signal, pads[1:]]).astype(np.int64)}
    reader.add(operator, Op.PAD, (reader.image(source),), constants=constants, pad_value=steps)


def _concat(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.ConcatenationOptions)
    if is_shape(reader, operator):
        work_out(reader, operator)
        return
    inputs = tuple(reader.source(operator, place) for place in range(len(operator.inputs)))
    if not inputs or options.FusedActivationFunction():
        raise FedtinyError(f"{operator.called} joins nothing, or clamps")
    sides = len(reader.tensors[inputs[0]].shape) + 1
    if not -sides <= options.Axis() < sides or options.Axis() % sides == 0:
        raise FedtinyError(f"{operator.called}: cannot join along side {options.Axis()}")
    axis = options.Axis() % sides - 1
    if sides == 3:
        inputs, axis = tuple(map(reader.image, inputs)), axis + 1
    reader.add(operator, Op.CONCAT, inputs, settings={"axis": axis})


def _reshape(reader: TfliteReader, operator: Operator) -> None:
    """What is wanted stands in the output's own shape, or behind it in numbers that the file computes."""
    if view(reader, operator) or repeats(reader, operator):
        return
    if operator.kind == "RESHAPE" and reader.has(operator, 1) and operator.inputs[1] in reader.worked_out:
        resolve(reader, operator)
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
        op = {"HARD_SWISH": Op.HARD_SWISH, "LOGISTIC": Op.LOGISTIC, "TANH": Op.TANH}[operator.kind]
        reader.add(operator, op, source)


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
    """What makes the target of a reshape at run time."""
    if not is_shape(reader, operator):
        raise FedtinyError(f"{operator.called} is supported on shapes only")
    work_out(reader, operator)


READERS: Mapping[str, Read] = {
    "ADD": _pair,
    "AVERAGE_POOL_2D": _pool,
    "BATCH_TO_SPACE_ND": _put_together,
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
    "MEAN": _reduce,
    "MUL": _pair,
    "PACK": _shape_arithmetic,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _quantize,
    "REDUCE_MAX": _reduce,
    "RELU": _relu,
    "RELU6": _relu,
    "RESHAPE": _reshape,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SHAPE": _shape_arithmetic,
    "SOFTMAX": _unary,
    "SPACE_TO_BATCH_ND": deal_out,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _shape_arithmetic,
    "SUB": _pair,
    "TANH": _unary,
    "TILE": tile,
    "TRANSPOSE": _transpose,
}
