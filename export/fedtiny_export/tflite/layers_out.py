"""How each operator of the int8 graph is written into a .tflite file: one function and one row an operator.

Padding that TensorFlow's SAME and VALID cannot express becomes an operator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..errors import FedtinyError
from ..graph.fixed_point import activation_limits
from ..graph.ir import Node, Op, Quant, Tensor, Window
from ..tflm.decode import pays
from . import schema
from .tables import Tables


def same_pads(window: Window, height: int, width: int) -> tuple[int, int, int, int]:
    """TensorFlow's SAME padding of a window over an input: as even as possible, the odd one below and right."""

    def split(size: int, reach: int, stride: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2

    top, bottom = split(height, window.reach[0], window.stride[0])
    left, right = split(width, window.reach[1], window.stride[1])
    return top, left, bottom, right


def _fused(tables: Tables, node: Node) -> int:
    """The activation function that clamps as the node does."""
    output, names = tables.graph_tensors[node.output], schema.ActivationFunctionType
    for low, high, code in (
        (None, None, names.NONE),
        (0.0, None, names.RELU),
        (0.0, 6.0, names.RELU6),
        (-1.0, 1.0, names.RELU_N1_TO_1),
    ):
        if activation_limits(replace(node, low=low, high=high), output) == activation_limits(node, output):
            return int(code)
    raise FedtinyError(f"operator {node.name}: .tflite has no activation that clamps to {node.low}..{node.high}")


def _weights(tables: Tables, node: Node) -> tuple[int, int]:
    scales, weight = node.constants["weight_scale"], node.constants["weight"]
    depthwise = node.op is Op.DEPTHWISE
    quant = schema.QuantizationParametersT(
        scale=np.asarray(scales, np.float32),
        zeroPoint=np.zeros(scales.size, np.int64),
        quantizedDimension=3 if depthwise else 0,
    )
    bias_quant = None
    if scales.size == 1:  # then the kernels insist on a bias scale
        data = tables.graph_tensors[node.inputs[0]].quant
        assert data is not None
        product = np.float32(data.scale) * np.asarray(scales, np.float32)
        bias_quant = schema.QuantizationParametersT(scale=product, zeroPoint=np.zeros(1, np.int64))
    laid = weight.transpose(3, 1, 2, 0) if depthwise else weight
    coded = tables.decode and pays(node)
    return (tables.decoded if coded else tables.constant)(laid, quant), tables.constant(
        node.constants["bias"], bias_quant
    )


def _padded(tables: Tables, node: Node, steps: float) -> tuple[int, int]:
    """The source of a windowed operator and its padding: SAME, VALID, or VALID behind a PAD."""
    data, window, source = tables.graph_tensors[node.inputs[0]], node.window, tables.activation(node.inputs[0])
    plain = node.pad_value == 0 or not any(window.pads)
    if plain and window.pads == same_pads(window, *data.shape[:2]):
        return source, schema.Padding.SAME
    if not any(window.pads):
        return source, schema.Padding.VALID
    top, left, bottom, right = window.pads
    height, width, channels = data.image
    pads = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    padded = tables.unnamed((height + top + bottom, width + left + right, channels), data.quant)
    _emit_pad(tables, data, source, padded, pads, steps)
    return padded, schema.Padding.VALID


def _emit_pad(tables: Tables, data: Tensor, source: int, output: int, pads: np.ndarray, steps: float) -> None:
    assert data.quant is not None
    inputs = [source, tables.constant(pads)]
    if steps == 0:
        tables.emit("PAD", inputs, output, schema.PadOptionsT())
    else:
        value = tables.number(data.quant.zero_point + int(steps), data.quant)
        tables.emit("PADV2", [*inputs, value], output, schema.PadV2OptionsT())


def _conv(tables: Tables, node: Node) -> None:
    source, padding = _padded(tables, node, node.pad_value)
    weight, bias = _weights(tables, node)
    options = schema.Conv2DOptionsT(
        padding=padding,
        strideH=node.window.stride[0],
        strideW=node.window.stride[1],
        fusedActivationFunction=_fused(tables, node),
        dilationHFactor=node.window.dilation[0],
        dilationWFactor=node.window.dilation[1],
    )
    tables.emit("CONV_2D", [source, weight, bias], tables.activation(node.output), options, 3)


def _depthwise(tables: Tables, node: Node) -> None:
    source, padding = _padded(tables, node, node.pad_value)
    weight, bias = _weights(tables, node)
    options = schema.DepthwiseConv2DOptionsT(
        padding=padding,
        strideH=node.window.stride[0],
        strideW=node.window.stride[1],
        depthMultiplier=node.constants["weight"].shape[0] // tables.graph_tensors[node.inputs[0]].shape[2],
        fusedActivationFunction=_fused(tables, node),
        dilationHFactor=node.window.dilation[0],
        dilationWFactor=node.window.dilation[1],
    )
    tables.emit("DEPTHWISE_CONV_2D", [source, weight, bias], tables.activation(node.output), options, 3)


def _dense(tables: Tables, node: Node) -> None:
    weight, bias = _weights(tables, node)
    options = schema.FullyConnectedOptionsT(fusedActivationFunction=_fused(tables, node))
    inputs = [tables.activation(node.inputs[0]), weight, bias]
    tables.emit("FULLY_CONNECTED", inputs, tables.activation(node.output), options, 4)


def _pair(tables: Tables, node: Node) -> None:
    fused = _fused(tables, node)
    add = node.op is Op.ADD
    options = (
        schema.AddOptionsT(fusedActivationFunction=fused, potScaleInt16=False)
        if add
        else schema.MulOptionsT(fusedActivationFunction=fused)
    )
    inputs = [tables.activation(name) for name in node.inputs]
    tables.emit("ADD" if add else "MUL", inputs, tables.activation(node.output), options)


def _mean(tables: Tables, node: Node) -> None:
    inputs = [tables.activation(node.inputs[0]), tables.constant(np.array([1, 2], np.int32))]
    options = schema.ReducerOptionsT(keepDims=bool(node.settings.get("keep", 1)))
    tables.emit("MEAN", inputs, tables.activation(node.output), options)


def _pool(tables: Tables, node: Node) -> None:
    data = tables.graph_tensors[node.inputs[0]]
    assert data.quant is not None
    largest = node.op is Op.MAX_POOL
    if not largest and any(node.window.pads) and node.window.pads != same_pads(node.window, *data.shape[:2]):
        raise FedtinyError(
            f"operator {node.name}: .tflite cannot average around padding {node.window.pads}: count the padding too, "
            "or pad as evenly as TensorFlow does"
        )
    source, padding = _padded(tables, node, -128 - data.quant.zero_point)
    options = schema.Pool2DOptionsT(
        padding=padding,
        strideH=node.window.stride[0],
        strideW=node.window.stride[1],
        filterHeight=node.window.kernel[0],
        filterWidth=node.window.kernel[1],
        fusedActivationFunction=_fused(tables, node),
    )
    tables.emit("MAX_POOL_2D" if largest else "AVERAGE_POOL_2D", [source], tables.activation(node.output), options)


def _pad(tables: Tables, node: Node) -> None:
    pads = np.concatenate([np.zeros((1, 2), np.int32), node.constants["pads"].astype(np.int32)])
    data = tables.graph_tensors[node.inputs[0]]
    source, output = tables.activation(node.inputs[0]), tables.activation(node.output)
    _emit_pad(tables, data, source, output, pads, node.pad_value)


def _concat(tables: Tables, node: Node) -> None:
    options = schema.ConcatenationOptionsT(axis=int(node.settings["axis"]) + 1)
    tables.emit(
        "CONCATENATION", [tables.activation(name) for name in node.inputs], tables.activation(node.output), options
    )


def _reshape(tables: Tables, node: Node) -> None:
    shape = np.array([1, *node.constants["shape"]], np.int32)
    inputs = [tables.activation(node.inputs[0]), tables.constant(shape)]
    tables.emit("RESHAPE", inputs, tables.activation(node.output), schema.ReshapeOptionsT(newShape=shape), 1)


def _transpose(tables: Tables, node: Node) -> None:
    order = np.array([0, *(side + 1 for side in node.constants["order"])], np.int32)
    inputs = [tables.activation(node.inputs[0]), tables.constant(order)]
    tables.emit("TRANSPOSE", inputs, tables.activation(node.output), schema.TransposeOptionsT())


def _resize(tables: Tables, node: Node) -> None:
    size = np.array([node.settings["height"], node.settings["width"]], np.int32)
    half, align = bool(node.settings.get("half_pixel", 0)), bool(node.settings.get("align_corners", 0))
    options = schema.ResizeNearestNeighborOptionsT(alignCorners=align, halfPixelCenters=half)
    inputs = [tables.activation(node.inputs[0]), tables.constant(size)]
    tables.emit("RESIZE_NEAREST_NEIGHBOR", inputs, tables.activation(node.output), options, 3 if half or align else 2)


def _relu(tables: Tables, node: Node) -> None:
    code = _fused(tables, node)
    output = tables.activation(node.output)
    if code == schema.ActivationFunctionType.NONE:
        _requantize(tables, node)
    elif code == schema.ActivationFunctionType.RELU:
        tables.emit("RELU", [tables.activation(node.inputs[0])], output)
    elif code == schema.ActivationFunctionType.RELU6 and len(_quants(tables, node)) == 1:
        tables.emit("RELU6", [tables.activation(node.inputs[0])], output)
    else:
        raise FedtinyError(f"operator {node.name}: .tflite has no operator that clamps to {node.low}..{node.high}")


def _quants(tables: Tables, node: Node) -> set[Quant | None]:
    return {tables.graph_tensors[name].quant for name in (*node.inputs, node.output)}


def _requantize(tables: Tables, node: Node) -> None:
    inputs = [tables.activation(node.inputs[0])]
    tables.emit("QUANTIZE", inputs, tables.activation(node.output), schema.QuantizeOptionsT())


def _unary(tables: Tables, node: Node) -> None:
    inputs, output = [tables.activation(node.inputs[0])], tables.activation(node.output)
    if node.op is Op.LEAKY_RELU:
        tables.emit("LEAKY_RELU", inputs, output, schema.LeakyReluOptionsT(alpha=node.settings["alpha"]))
    elif node.op is Op.SOFTMAX:
        tables.emit("SOFTMAX", inputs, output, schema.SoftmaxOptionsT(beta=node.settings["beta"]))
    elif node.op is Op.HARD_SWISH:
        tables.emit("HARD_SWISH", inputs, output, schema.HardSwishOptionsT(), 1)
    else:
        tables.emit("TANH" if node.op is Op.TANH else "LOGISTIC", inputs, output)


def _with_number(tables: Tables, node: Node) -> None:
    steps, fused = int(node.settings["steps"]), _fused(tables, node)
    zero_point = -128 if steps > 127 else 127 if steps < -128 else 0
    number = tables.number(steps + zero_point, Quant(node.settings["scale"], zero_point))
    inputs, output = [tables.activation(node.inputs[0]), number], tables.activation(node.output)
    if node.op is Op.MUL_NUMBER:
        tables.emit("MUL", inputs, output, schema.MulOptionsT(fusedActivationFunction=fused))
    elif node.settings["sign"] == node.settings["number_sign"] == 1:
        tables.emit("ADD", inputs, output, schema.AddOptionsT(fusedActivationFunction=fused, potScaleInt16=False))
    else:
        options = schema.SubOptionsT(fusedActivationFunction=fused, potScaleInt16=False)
        tables.emit("SUB", inputs if node.settings["sign"] > 0 else inputs[::-1], output, options)


WRITERS: Mapping[Op, Callable[[Tables, Node], None]] = {
    Op.CONV: _conv,
    Op.DEPTHWISE: _depthwise,
    Op.DENSE: _dense,
    Op.ADD: _pair,
    Op.MUL: _pair,
    Op.MEAN: _mean,
    Op.MAX_POOL: _pool,
    Op.AVERAGE_POOL: _pool,
    Op.PAD: _pad,
    Op.CONCAT: _concat,
    Op.RESHAPE: _reshape,
    Op.TRANSPOSE: _transpose,
    Op.RESIZE: _resize,
    Op.RELU: _relu,
    Op.REQUANTIZE: _requantize,
    Op.LEAKY_RELU: _unary,
    Op.HARD_SWISH: _unary,
    Op.LOGISTIC: _unary,
    Op.TANH: _unary,
    Op.SOFTMAX: _unary,
    Op.ADD_NUMBER: _with_number,
    Op.MUL_NUMBER: _with_number,
}
