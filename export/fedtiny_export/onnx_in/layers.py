"""ONNX's layers: convolutions, dense layers, batch norm, pools, means. One function and one row an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Array, Op, Window
from .reader import Attributes, OnnxReader, called

MAX_WINDOW = 255
Read = Callable[[OnnxReader, Any, Attributes], None]


def _window(reader: OnnxReader, node: Any, attributes: Attributes, kernel: tuple[int, ...], source: str) -> Window:
    """A window over one or two sides, checked; one side is the width of a one-row image."""
    count = reader.rank[source] - 1
    strides = tuple(attributes.get("strides") or [1] * count)
    dilations = tuple(attributes.get("dilations") or [1] * count)
    pads = tuple(attributes.get("pads") or [0] * 2 * count)
    if count not in (1, 2) or len(kernel) != count or len(strides) != count or len(dilations) != count:
        raise FedtinyError(f"operator {called(node)}: kernel {list(kernel)} does not fit {reader.sides(source)}")
    low = min(*kernel, *strides, *dilations)
    if len(pads) != 2 * count or max(*kernel, *strides, *dilations, *pads) > MAX_WINDOW or low < 1 or min(pads) < 0:
        raise FedtinyError(f"operator {called(node)}: kernel, strides, dilations and pads must lie between 0 and 255")
    if count == 1:
        kernel, strides, dilations = (1, *kernel), (1, *strides), (1, *dilations)
        pads = (0, pads[0], 0, pads[1])
    window = Window(_two(kernel), _two(strides), (pads[0], pads[1], pads[2], pads[3]), _two(dilations))
    return _auto_padded(reader, node, attributes, window, source)


def _two(sides: tuple[int, ...]) -> tuple[int, int]:
    return int(sides[0]), int(sides[1])


def _auto_padded(reader: OnnxReader, node: Any, attributes: Attributes, window: Window, source: str) -> Window:
    kind = attributes.get("auto_pad", b"NOTSET")
    if kind in (b"NOTSET", b"VALID"):
        return window
    if kind not in (b"SAME_UPPER", b"SAME_LOWER"):
        raise FedtinyError(f"operator {called(node)}: auto_pad {kind!r} is unknown")
    pads = []
    for size, reach, stride in zip(reader.tensors[source].shape, window.reach, window.stride, strict=False):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if kind == b"SAME_UPPER" else (more, less))
    (top, bottom), (left, right) = pads
    return Window(window.kernel, window.stride, (top, left, bottom, right), window.dilation)


def _conv(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    weight, source, group = reader.floats(node, 1), reader.data(node), attributes.get("group", 1)
    if weight.ndim != reader.rank[source] + 1 or weight.ndim not in (3, 4):
        raise FedtinyError(f"operator {called(node)}: weights of shape {weight.shape} are no 1-D or 2-D convolution's")
    window = _window(reader, node, attributes, weight.shape[2:], source)
    bias = np.ravel(reader.floats(node, 2)) if reader.has(node, 2) else np.zeros(weight.shape[0], np.float32)
    weight = weight[:, :, None] if weight.ndim == 3 else weight
    channels = reader.tensors[source].shape[-1]
    if group < 1 or weight.shape[1] * group != channels or weight.shape[0] % group:
        raise FedtinyError(
            f"operator {called(node)}: weights of shape {weight.shape} in {group} groups do not fit {channels} channels"
        )
    constants = {"weight": np.ascontiguousarray(weight.transpose(0, 2, 3, 1)), "bias": bias}
    op = Op.DEPTHWISE if weight.shape[1] == 1 and group > 1 else Op.CONV
    reader.add(str(node.output[0]), op, (source,), constants=constants, window=window)


def _gemm(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    if attributes.get("transA", 0):
        raise FedtinyError(f"operator {called(node)}: transA is not supported")
    weight = reader.floats(node, 1) * np.float32(attributes.get("alpha", 1.0))
    weight = weight if attributes.get("transB", 0) else weight.T
    bias = reader.floats(node, 2) * np.float32(attributes.get("beta", 1.0)) if reader.has(node, 2) else None
    _dense(reader, node, weight, bias)


def _matmul(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    _dense(reader, node, reader.floats(node, 1).T, None)


def _dense(reader: OnnxReader, node: Any, weight: Array, bias: Array | None) -> None:
    source = reader.data(node)
    if weight.ndim != 2:
        raise FedtinyError(f"operator {called(node)}: weights of shape {weight.shape} are not a matrix")
    if reader.rank[source] != 1:
        sides = reader.sides(source)
        raise FedtinyError(f"operator {called(node)}: a dense layer needs a flat input, not {sides}: flatten it before")
    image = reader.order.get(source)
    if image is not None and weight.shape[1] == int(np.prod(image)):
        height, width, channels = image
        weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(weight.shape)
    filled = np.zeros(weight.shape[0], np.float32) if bias is None else np.ravel(bias)
    if filled.size == 1:
        filled = np.repeat(filled, weight.shape[0])
    constants = {"weight": np.ascontiguousarray(weight), "bias": filled}
    reader.add(str(node.output[0]), Op.DENSE, (source,), constants=constants, rank=1)


def _batch_norm(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.ordered(reader.data(node))
    gamma, beta, mean, variance = (np.ravel(reader.floats(node, i)).astype(np.float64) for i in range(1, 5))
    channels = reader.tensors[source].shape[-1]
    if any(values.shape != (channels,) for values in (gamma, beta, mean, variance)):
        raise FedtinyError(f"operator {called(node)}: batch norm needs {channels} numbers of each kind")
    if attributes.get("training_mode", 0) or np.any(variance < 0):
        raise FedtinyError(f"operator {called(node)}: batch norm must be in inference mode with variances >= 0")
    scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    constants = {"scale": scale, "shift": beta - mean * scale}
    reader.add(str(node.output[0]), Op.BATCH_NORM, (source,), constants=constants)


def _pool(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source, output = reader.data(node), str(node.output[0])
    kernel = tuple(attributes.get("kernel_shape") or ())
    window = _window(reader, node, attributes, kernel, source)
    if window.dilation != (1, 1) or len([name for name in node.output if name]) > 1:
        raise FedtinyError(f"operator {called(node)}: dilated pools and indices of maxima are not supported")
    if attributes.get("ceil_mode", 0):
        window = _ceiled(window, reader.tensors[source].shape)
    if node.op_type == "MaxPool":
        reader.add(output, Op.MAX_POOL, (source,), window=window)
        return
    top, left, bottom, right = window.pads
    if attributes.get("count_include_pad", 0) and any(window.pads):
        if attributes.get("ceil_mode", 0):
            raise FedtinyError(f"operator {called(node)}: ceil_mode and count_include_pad together are not supported")
        pads = {"pads": np.array([[top, bottom], [left, right], [0, 0]])}
        source = reader.add(f"{output} padded", Op.PAD, (source,), constants=pads)
        window = Window(window.kernel, window.stride)
    reader.add(output, Op.AVERAGE_POOL, (source,), window=window)


def _ceiled(window: Window, shape: tuple[int, ...]) -> Window:
    """Pad below and right so that a last, partial window fits; one that would begin in padding is left out."""
    pads = list(window.pads)
    for side in (0, 1):
        before, after = pads[side], pads[side + 2]
        size, kernel, stride = shape[side], window.kernel[side], window.stride[side]
        over = (size + before + after - kernel) % stride
        starts = (size + before + after - kernel) // stride + 1
        if over and starts * stride < size + before:
            pads[side + 2] = after + stride - over
    return Window(window.kernel, window.stride, (pads[0], pads[1], pads[2], pads[3]))


def _global_pool(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source, output = reader.data(node), str(node.output[0])
    if reader.rank[source] < 2:
        raise FedtinyError(f"operator {called(node)} needs an image, not {reader.sides(source)}")
    if node.op_type == "GlobalAveragePool":
        reader.add(output, Op.MEAN, (source,), settings={"keep": 1})
        return
    height, width, _ = reader.tensors[source].shape
    reader.add(output, Op.MAX_POOL, (source,), window=Window((height, width)))


def _reduce(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.data(node)
    axes = reader.integers(node, 1) if reader.has(node, 1) else list(attributes.get("axes") or [])
    sides = reader.rank[source] + 1
    if sides < 3 or sorted(axis % sides for axis in axes) != list(range(2, sides)):
        raise FedtinyError(f"operator {called(node)}: it must be over height and width of an image")
    keep, output = int(bool(attributes.get("keepdims", 1))), str(node.output[0])
    rank = reader.rank[source] if keep else 1
    if node.op_type == "ReduceMean":
        reader.add(output, Op.MEAN, (source,), settings={"keep": keep}, rank=rank)
        return
    height, width, channels = reader.tensors[source].shape
    window = Window((height, width))
    if keep:
        reader.add(output, Op.MAX_POOL, (source,), window=window)
        return
    pooled = reader.add(f"{output} pooled", Op.MAX_POOL, (source,), window=window)
    reader.add(output, Op.RESHAPE, (pooled,), constants={"shape": np.array([channels])}, rank=1)


LAYERS: Mapping[str, Read] = {
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
}
