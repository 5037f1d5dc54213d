"""The same network through TensorFlow's own converter, to compare with or to fall back on.

The float graph is built from TensorFlow's operators, every activation with the range it has here as a fake
quantisation, so that the converter needs no data either. TensorFlow is an optional package: the extra `tensorflow`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import FedtinyError, ToolMissingError
from ..graph.ir import WEIGHTED, Graph, Node, Op, Tensor
from .layers_out import same_pads


def convert(exact: Graph, coarse: Graph) -> bytes:
    """The float graph as an int8 .tflite file of TensorFlow's making, in the int8 graph's steps."""
    tf = _tensorflow()
    known = {node.name: node for node in exact.nodes}

    def run(x: Any) -> Any:
        values = {coarse.input: _rounded(tf, x, coarse.tensors[coarse.input])}
        for node in coarse.nodes:
            output = coarse.tensors[node.output]
            made = _result(tf, known.get(node.name, node), [values[name] for name in node.inputs], coarse, node)
            values[node.output] = _rounded(tf, tf.reshape(made, (1, *output.shape)), output)
        return values[coarse.output]

    shape = (1, *coarse.tensors[coarse.input].shape)
    function = tf.function(run, input_signature=[tf.TensorSpec(shape, tf.float32, name="input")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    try:
        with warnings.catch_warnings(action="ignore"):  # it expects samples; the ranges are in the graph
            return bytes(converter.convert())
    except Exception as error:  # its errors are of many kinds, and of many lines
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FedtinyError(
            f"TensorFlow's converter refuses this network: {said[:200]}: leave out --converter"
        ) from error


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError:
        raise ToolMissingError("--converter tensorflow needs TensorFlow: pip install 'fedtiny[tensorflow]'") from None
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return tf


def _rounded(tf: Any, value: Any, tensor: Tensor) -> Any:
    assert tensor.quant is not None
    scale, zero = tensor.quant.scale, tensor.quant.zero_point
    return tf.quantization.fake_quant_with_min_max_args(value, scale * (-128 - zero), scale * (127 - zero))


def _result(tf: Any, exact: Node, inputs: list[Any], graph: Graph, coarse: Node) -> Any:
    """One operator on float values, its clamp included; `coarse` has the inputs' names and the clamp that is left."""
    shape = graph.tensors[coarse.inputs[0]].shape
    if exact.op in WEIGHTED:
        made = _weighted(tf, exact, inputs[0], shape)
    else:
        made = _PLAIN[exact.op](tf, exact, inputs, shape)
    return _clamped(tf, made, coarse.low, coarse.high)


def _clamped(tf: Any, value: Any, low: float | None, high: float | None) -> Any:
    if (low, high) == (0.0, None):
        return tf.nn.relu(value)
    if (low, high) == (0.0, 6.0):
        return tf.nn.relu6(value)
    assert (low, high) == (None, None), "what .tflite has no activation for is in the range"
    return value


def _padded(tf: Any, node: Node, value: Any, shape: tuple[int, ...]) -> tuple[Any, str]:
    if not any(node.window.pads):
        return value, "VALID"
    if node.pad_value == 0 and node.window.pads == same_pads(node.window, *shape[:2]):
        return value, "SAME"
    top, left, bottom, right = node.window.pads
    return tf.pad(value, [[0, 0], [top, bottom], [left, right], [0, 0]], constant_values=node.pad_value), "VALID"


def _weighted(tf: Any, node: Node, value: Any, shape: tuple[int, ...]) -> Any:
    weight, bias = node.constants["weight"], node.constants["bias"]
    if node.op is Op.DENSE:
        return tf.nn.bias_add(tf.matmul(tf.reshape(value, (1, -1)), np.ascontiguousarray(weight.T)), bias)
    value, padding = _padded(tf, node, value, shape)
    if node.op is Op.CONV:
        made = tf.nn.conv2d(
            value, weight.transpose(1, 2, 3, 0), node.window.stride, padding, dilations=node.window.dilation
        )
        return tf.nn.bias_add(made, bias)
    channels = shape[2]
    laid = weight[..., 0].transpose(1, 2, 0).reshape(*node.window.kernel, channels, -1)
    strides = (1, *node.window.stride, 1)
    made = tf.nn.depthwise_conv2d(value, laid, strides, padding, dilations=node.window.dilation)
    return tf.nn.bias_add(made, bias)


def _pool(kind: str) -> Callable[[Any, Node, list[Any], tuple[int, ...]], Any]:
    def make(tf: Any, node: Node, inputs: list[Any], shape: tuple[int, ...]) -> Any:
        window = node.window
        if any(window.pads) and window.pads != same_pads(window, *shape[:2]):
            raise FedtinyError(f"operator {node.name}: TensorFlow has no pool with this padding: leave out --converter")
        padding = "SAME" if any(window.pads) else "VALID"
        return tf.nn.pool(inputs[0], window.kernel, kind, window.stride, padding)

    return make


def _mean(tf: Any, node: Node, inputs: list[Any], _: tuple[int, ...]) -> Any:
    return tf.reduce_mean(inputs[0], (1, 2), keepdims=bool(node.settings.get("keep", 1)))


def _pad(tf: Any, node: Node, inputs: list[Any], _: tuple[int, ...]) -> Any:
    return tf.pad(inputs[0], [[0, 0], *node.constants["pads"].tolist()], constant_values=node.pad_value)


def _resize(tf: Any, node: Node, inputs: list[Any], _: tuple[int, ...]) -> Any:
    size = (int(node.settings["height"]), int(node.settings["width"]))
    corners, half = bool(node.settings.get("align_corners")), bool(node.settings.get("half_pixel"))
    return tf.raw_ops.ResizeNearestNeighbor(images=inputs[0], size=size, align_corners=corners, half_pixel_centers=half)


def _transpose(tf: Any, node: Node, inputs: list[Any], _: tuple[int, ...]) -> Any:
    return tf.transpose(inputs[0], [0, *(int(side) + 1 for side in node.constants["order"])])


_PLAIN: Mapping[Op, Callable[[Any, Node, list[Any], tuple[int, ...]], Any]] = {
    Op.ADD: lambda tf, node, inputs, shape: tf.add(*inputs),
    Op.MUL: lambda tf, node, inputs, shape: tf.multiply(*inputs),
    Op.MEAN: _mean,
    Op.MAX_POOL: _pool("MAX"),
    Op.AVERAGE_POOL: _pool("AVG"),
    Op.PAD: _pad,
    Op.CONCAT: lambda tf, node, inputs, shape: tf.concat(inputs, int(node.settings["axis"]) + 1),
    Op.RESHAPE: lambda tf, node, inputs, shape: inputs[0],
    Op.TRANSPOSE: _transpose,
    Op.RESIZE: _resize,
    Op.RELU: lambda tf, node, inputs, shape: inputs[0],
    Op.LEAKY_RELU: lambda tf, node, inputs, shape: tf.nn.leaky_relu(inputs[0], node.settings["alpha"]),
    Op.HARD_SWISH: lambda tf, node, inputs, shape: inputs[0] * tf.nn.relu6(inputs[0] + 3.0) * (1.0 / 6.0),
    Op.LOGISTIC: lambda tf, node, inputs, shape: tf.sigmoid(inputs[0]),
    Op.TANH: lambda tf, node, inputs, shape: tf.tanh(inputs[0]),
    Op.SOFTMAX: lambda tf, node, inputs, shape: tf.nn.softmax(inputs[0] * node.settings["beta"]),
    Op.REQUANTIZE: lambda tf, node, inputs, shape: inputs[0],
}
