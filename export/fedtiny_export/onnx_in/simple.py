"""ONNX's pointwise operators and those that only move values. One function and one row an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import MAX_SIDE, Array, Op
from ..graph.ops.moves import nearest
from .layers import Read
from .reader import Attributes, OnnxReader, called


def _relu(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    reader.pointwise(str(node.output[0]), Op.RELU, reader.data(node), limits=(0.0, None))


def _clip(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    limits: list[float | None] = [attributes.get("min"), attributes.get("max")]  # attributes up to opset 10
    for i in (1, 2):
        if reader.has(node, i):
            limits[i - 1] = _number(reader, node, i)
    if any(limit is not None and np.isnan(limit) for limit in limits):
        raise FedtinyError(f"operator {called(node)}: a limit is not a number")
    low, high = (None if limit is None or abs(limit) > 1e30 else float(limit) for limit in limits)
    if low is not None and high is not None and low > high:
        raise FedtinyError(f"operator {called(node)}: the lower limit {low} is above {high}")
    if low is None and high is None:
        reader.same(node, reader.data(node))
    else:
        reader.pointwise(str(node.output[0]), Op.RELU, reader.data(node), limits=(low, high))


def _number(reader: OnnxReader, node: Any, index: int) -> float:
    value = reader.floats(node, index)
    if value.size != 1:
        raise FedtinyError(f"operator {called(node)}: input {index} must be one number")
    return float(value.reshape(()))


def _leaky_relu(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    alpha = float(attributes.get("alpha", 0.01))
    if not 0.0 <= alpha <= 100.0:
        raise FedtinyError(f"operator {called(node)}: alpha {alpha} is not between 0 and 100")
    reader.pointwise(str(node.output[0]), Op.LEAKY_RELU, reader.data(node), settings={"alpha": alpha})


def _hard_swish(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    reader.pointwise(str(node.output[0]), Op.HARD_SWISH, reader.data(node))


def _tanh(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    reader.pointwise(str(node.output[0]), Op.TANH, reader.data(node))


def _hard_sigmoid(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    """Noted until something reads it: x * HardSigmoid(x) is how some exporters write a hard swish."""
    slope, middle = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    if not (0.0 < slope <= 100.0 and abs(middle) <= 100.0):
        raise FedtinyError(f"operator {called(node)}: a HardSigmoid with alpha {slope:g} and beta {middle:g}")
    source, output = reader.data(node), str(node.output[0])
    reader.same(node, output)
    reader.gates[output] = (source, slope, middle)


def _sigmoid(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    reader.pointwise(str(node.output[0]), Op.LOGISTIC, reader.data(node))


def _softmax(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.ordered(reader.data(node))
    sides = reader.rank[source] + 1
    axis = attributes.get("axis", -1 if reader.opset >= 13 else 1)
    if axis % sides != 1:
        raise FedtinyError(f"operator {called(node)}: a softmax must be over the channels (axis 1), not axis {axis}")
    if reader.opset < 13 and int(np.prod(reader.sides(source)[1:])) != 1:
        raise FedtinyError(f"operator {called(node)}: a softmax before opset 13 needs a flat input")
    reader.add(str(node.output[0]), Op.SOFTMAX, (source,), settings={"beta": 1.0})


def _same(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.name(str(node.input[0])) if reader.has(node, 0) else ""
    if source in reader.constants:
        reader.constants[str(node.output[0])] = reader.constants[source]
        return
    if node.op_type == "Dropout" and reader.has(node, 2) and np.any(reader.constant(node, 2)):
        raise FedtinyError(f"operator {called(node)}: dropout in training mode: export the network in evaluation mode")
    if node.op_type == "Cast" and attributes.get("to") not in (1, 10, 11, 16):
        raise FedtinyError(f"operator {called(node)}: only casts between floats are supported")
    reader.same(node, reader.data(node))


def _arithmetic(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    if not reader.has(node, 1):
        raise FedtinyError(f"operator {called(node)} of type {node.op_type} lacks input 1")
    first, second = (reader.name(str(name)) for name in node.input[:2])
    if first not in reader.constants and second not in reader.constants:
        _pair(reader, node, first, second)
        return
    flipped = first in reader.constants
    source = reader.data(node, 1 if flipped else 0)
    values, source = _per_channel(reader, node, reader.floats(node, 0 if flipped else 1), source)
    if node.op_type == "Div" and (flipped or np.any(values == 0.0)):
        raise FedtinyError(f"operator {called(node)}: Div is supported by constants other than zero, as second operand")
    one, none = np.ones_like(values), np.zeros_like(values)
    scale, shift = {
        "Add": (one, values),
        "Sub": (-one, values) if flipped else (one, -values),
        "Mul": (values, none),
        "Div": (1.0 / np.where(values == 0.0, 1.0, values), none),
    }[node.op_type]
    op = Op.AFFINE if values.ndim == 0 else Op.BATCH_NORM
    reader.pointwise(str(node.output[0]), op, source, constants={"scale": scale, "shift": shift})


def _per_channel(reader: OnnxReader, node: Any, values: Array, source: str) -> tuple[Array, str]:
    """A constant operand as one number, or as one a channel."""
    values = values.astype(np.float64)
    if values.size == 1:
        return values.reshape(()), source
    source = reader.ordered(source)
    channels, sides = reader.tensors[source].shape[-1], reader.rank[source] + 1
    wanted = tuple(channels if side == 1 else 1 for side in range(sides))
    if (1,) * (sides - values.ndim) + values.shape != wanted:
        raise FedtinyError(
            f"operator {called(node)}: a constant of shape {values.shape} beside {reader.sides(source)}; one number, "
            "or one a channel is supported"
        )
    return values.reshape(-1), source


def _pair(reader: OnnxReader, node: Any, first: str, second: str) -> None:
    output = str(node.output[0])
    if node.op_type == "Mul":
        for gate, value in ((first, second), (second, first)):
            source, slope, middle = reader.gates.get(gate, ("", 0.0, 0.0))
            if source == value and abs(slope - 1 / 6) <= 1e-4 and abs(middle - 0.5) <= 1e-6:
                reader.pointwise(output, Op.HARD_SWISH, value)
                return
    if node.op_type not in ("Add", "Mul"):
        raise FedtinyError(f"operator {called(node)}: {node.op_type} of two activations is not supported")
    first, second = reader.data(node, 0), reader.data(node, 1)
    if reader.rank[first] != reader.rank[second]:
        raise FedtinyError(
            f"operator {called(node)}: {reader.sides(first)} and {reader.sides(second)} do not go together"
        )
    order = reader.order.get(first)
    if order != reader.order.get(second):
        first, second, order = reader.ordered(first), reader.ordered(second), None
    reader.add(output, Op.ADD if node.op_type == "Add" else Op.MUL, (first, second))
    if order is not None:
        reader.order[output] = order


def _concat(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    inputs = tuple(reader.ordered(reader.data(node, index)) for index in range(len(node.input)))
    if len({reader.rank[name] for name in inputs}) != 1:
        raise FedtinyError(f"operator {called(node)}: joins tensors of different ranks")
    axis = _graph_side(reader, node, inputs[0], attributes.get("axis", 1))
    reader.add(str(node.output[0]), Op.CONCAT, inputs, settings={"axis": axis})


def _graph_side(reader: OnnxReader, node: Any, source: str, axis: int) -> int:
    """Where an ONNX axis lies in the Graph's shape."""
    sides = reader.rank[source] + 1
    places = {2: {1: 0}, 3: {1: 2, 2: 1}, 4: {1: 2, 2: 0, 3: 1}}[sides]
    if not -sides <= axis < sides or axis % sides not in places:
        raise FedtinyError(f"operator {called(node)}: axis {axis} is not one of a sample's")
    return places[axis % sides]


def _pad(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.ordered(reader.data(node))
    if attributes.get("mode", b"constant") != b"constant":
        raise FedtinyError(f"operator {called(node)}: only padding with a constant is supported")
    sides = reader.rank[source] + 1
    pads = reader.integers(node, 1) if len(node.input) > 1 else list(attributes.get("pads") or [])
    axes = reader.integers(node, 3) if reader.has(node, 3) else list(range(sides))
    value = _number(reader, node, 2) if reader.has(node, 2) else float(attributes.get("value", 0.0))
    if len(pads) != 2 * len(axes) or min(pads, default=0) < 0 or max(pads, default=0) > MAX_SIDE:
        raise FedtinyError(f"operator {called(node)}: pads {pads[:8]} do not fit {sides} sides, or cut")
    table = np.zeros((len(reader.tensors[source].shape), 2), np.int64)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if axis % sides or before or after:
            table[_graph_side(reader, node, source, axis)] = before, after
    if not np.isfinite(value):
        raise FedtinyError(f"operator {called(node)}: pads with {value}")
    reader.add(str(node.output[0]), Op.PAD, (source,), constants={"pads": table}, pad_value=value)


def _flatten(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.data(node)
    if attributes.get("axis", 1) % (reader.rank[source] + 1) != 1:
        raise FedtinyError(f"operator {called(node)}: only flattening from axis 1 is supported")
    reader.reshape(node, source, (reader.tensors[source].elements,))


def _reshape(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    if len(node.input) < 2:
        raise FedtinyError(f"operator {called(node)}: a reshape needs its target as second input (opset 5 or newer)")
    source = reader.data(node)
    wanted, before = reader.integers(node, 1), (1, *reader.sides(source))
    if attributes.get("allowzero", 0) == 0:
        wanted = [before[i] if side == 0 and i < len(before) else side for i, side in enumerate(wanted)]
    elements, known = int(np.prod(before, dtype=object)), int(np.prod([s for s in wanted if s != -1], dtype=object))
    if wanted.count(-1) == 1 and known > 0 and wanted[0] == -1 and known == elements:
        wanted[0] = 1
    elif wanted.count(-1) == 1 and known > 0:
        wanted[wanted.index(-1)] = elements // known
    if len(wanted) < 2 or wanted[0] != 1 or min(wanted) < 1:
        raise FedtinyError(f"operator {called(node)}: a reshape to {wanted} does not keep the batch as its first side")
    reader.reshape(node, source, tuple(wanted[1:]))


def _squeeze(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.data(node)
    sides = [1, *reader.sides(source)]
    axes = reader.integers(node, 1) if reader.has(node, 1) else list(attributes.get("axes") or [])
    grown = len(sides) + len(axes)
    if node.op_type == "Unsqueeze":
        for axis in sorted(axis % grown for axis in axes):
            sides.insert(axis, 1)
    else:
        gone = {axis % len(sides) for axis in axes}
        if not gone or 0 in gone or any(sides[axis] != 1 for axis in gone):
            raise FedtinyError(f"operator {called(node)}: sides {sorted(gone)} of {tuple(sides)} cannot be left out")
        sides = [side for index, side in enumerate(sides) if index not in gone]
    reader.reshape(node, source, tuple(sides[1:]))


def _transpose(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.ordered(reader.data(node))
    sides = reader.rank[source] + 1
    order = list(attributes.get("perm") or reversed(range(sides)))
    if sorted(order) != list(range(sides)) or order[0] != 0:
        raise FedtinyError(f"operator {called(node)}: a transpose by {order} must keep the batch first")
    if order == list(range(sides)):
        reader.same(node, source)
        return
    if sides == 4 and order == [0, 2, 3, 1] and str(node.output[0]) in reader.outputs:
        reader.same(node, source)  # artifacts are channels last anyway
        return
    if sides == 3:  # (channels, length), held as an image of one row
        turn = [0, 2, 1]
    else:
        first = {1: 2, 2: 0, 3: 1}  # ONNX's side -> the Graph's
        turn = [first[order[2]], first[order[3]], first[order[1]]]
    reader.add(str(node.output[0]), Op.TRANSPOSE, (source,), constants={"order": np.array(turn)})


def _resize(reader: OnnxReader, node: Any, attributes: Attributes) -> None:
    source = reader.data(node)
    if reader.rank[source] != 3 or attributes.get("mode", b"nearest") != b"nearest":
        raise FedtinyError(f"operator {called(node)}: only nearest-neighbour resizing of images is supported")
    height, width, _ = reader.tensors[source].shape
    rows, columns = _resized(reader, node, attributes, (height, width))
    settings = {"height": float(rows), "width": float(columns)}
    for size, wanted in ((height, rows), (width, columns)):
        if not np.array_equal(_onnx_nearest(node, attributes, size, wanted), nearest(size, wanted, {})):
            raise FedtinyError(
                f"operator {called(node)}: resizing {size} to {wanted} by these rounding rules has no TensorFlow Lite "
                "equivalent: use coordinate_transformation_mode asymmetric and nearest_mode floor"
            )
    reader.add(str(node.output[0]), Op.RESIZE, (source,), settings=settings)


def _resized(reader: OnnxReader, node: Any, attributes: Attributes, size: tuple[int, int]) -> tuple[int, int]:
    if attributes.get("axes") or attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise FedtinyError(f"operator {called(node)}: axes and aspect ratio policies are not supported")
    sizes = reader.integers(node, 3) if reader.has(node, 3) else []
    place = len(node.input) - 1 if node.op_type == "Upsample" else 2
    scales = np.zeros(0, np.float32) if sizes else np.ravel(reader.floats(node, place))
    if len(sizes) == 4:
        wanted = (sizes[2], sizes[3])
    elif len(scales) == 4 and scales[0] == scales[1] == 1 and np.all(np.isfinite(scales)):
        wanted = (int(size[0] * min(scales[2], 1e6)), int(size[1] * min(scales[3], 1e6)))
    else:
        raise FedtinyError(f"operator {called(node)}: needs four sizes or scales that leave batch and channels alone")
    if min(wanted) < 1 or max(wanted) > MAX_SIDE:
        raise FedtinyError(f"operator {called(node)}: resizes to {wanted}; 1 to {MAX_SIDE:,} is supported")
    return wanted


def _onnx_nearest(node: Any, attributes: Attributes, size: int, wanted: int) -> Array:
    """The source index of each output index by ONNX's rules."""
    places = np.arange(wanted, dtype=np.float64)
    kind = (
        b"asymmetric" if node.op_type == "Upsample" else attributes.get("coordinate_transformation_mode", b"half_pixel")
    )
    rounding = b"floor" if node.op_type == "Upsample" else attributes.get("nearest_mode", b"round_prefer_floor")
    if kind == b"asymmetric":
        places = places * size / wanted
    elif kind in (b"half_pixel", b"pytorch_half_pixel"):
        one = kind == b"pytorch_half_pixel" and wanted == 1
        places = np.zeros(1) if one else (places + 0.5) * size / wanted - 0.5
    elif kind == b"align_corners":
        places = places * (size - 1) / max(wanted - 1, 1)
    else:
        raise FedtinyError(f"operator {called(node)}: coordinate_transformation_mode {kind!r} is not supported")
    rules: dict[bytes, Callable[[Array], Array]] = {
        b"floor": np.floor,
        b"ceil": np.ceil,
        b"round_prefer_floor": lambda x: np.ceil(x - 0.5),
        b"round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    if rounding not in rules:
        raise FedtinyError(f"operator {called(node)}: nearest_mode {rounding!r} is unknown")
    return np.asarray(np.clip(rules[rounding](places).astype(np.int64), 0, size - 1))


SIMPLE: Mapping[str, Read] = {
    "Add": _arithmetic,
    "Cast": _same,
    "Clip": _clip,
    "Concat": _concat,
    "Div": _arithmetic,
    "Dropout": _same,
    "Flatten": _flatten,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "Mul": _arithmetic,
    "Pad": _pad,
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _arithmetic,
    "Tanh": _tanh,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
    "Upsample": _resize,
}
