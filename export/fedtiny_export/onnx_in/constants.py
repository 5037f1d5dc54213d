"""ONNX operators on constants, worked out while reading: what exporters leave of shape arithmetic.

A sample's batch side counts as 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Array
from .reader import Attributes, OnnxReader, called, read_constant

MAX_SIDES = 8
MAX_FOLDED = 1 << 10  # shapes and small tables; weights are never computed here
FOLDED = frozenset(
    {"Cast", "Concat", "Constant", "ConstantOfShape", "Gather", "Identity", "Mul", "Reshape", "Shape", "Slice"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)


def fold(reader: OnnxReader, node: Any, attributes: Attributes) -> bool:
    """Work a node out if all it reads is constant; say whether it was."""
    if node.op_type == "Constant":
        _enter(reader, node, _given(node, attributes))
        return True
    if node.op_type == "Shape":
        sides = (1, *reader.sides(reader.data(node)))
        _enter(reader, node, np.array(sides[attributes.get("start", 0) : attributes.get("end", len(sides))], np.int64))
        return True
    values = [reader.constants.get(reader.name(str(name))) for name in node.input if name]
    if not values or any(value is None or value.size > MAX_FOLDED for value in values):
        return False
    _enter(reader, node, _worked_out(node, attributes, [value for value in values if value is not None]))
    return True


def _enter(reader: OnnxReader, node: Any, value: Array) -> None:
    name = str(node.output[0])
    if name in reader.constants or name in reader.tensors or name in reader.alias:
        raise FedtinyError(f"tensor {name} is written twice")
    reader.constants[name] = value


def _given(node: Any, attributes: Attributes) -> Array:
    if "value" in attributes:
        return read_constant(attributes["value"])
    for name, kind in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in attributes:
            return np.array(attributes[name], kind)
    raise FedtinyError(f"constant {called(node)} is not given as numbers, which is not supported")


def _worked_out(node: Any, attributes: Attributes, values: list[Array]) -> Array:
    first, kind = values[0], node.op_type
    axes = [int(v) for v in np.ravel(values[1])] if len(values) > 1 else list(attributes.get("axes") or [])
    if kind == "Gather":
        return np.asarray(np.take(first, values[1].astype(np.int64), axis=attributes.get("axis", 0)))
    if kind == "Concat":
        return np.concatenate(values, axis=attributes["axis"])
    if kind == "Mul":
        return np.asarray(first * values[1])
    if kind == "Unsqueeze":
        return np.expand_dims(first, tuple(axes))
    if kind == "Squeeze":
        return np.squeeze(first, tuple(axes) if axes else None)
    if kind == "Slice":
        return _sliced(node, values)
    if kind == "ConstantOfShape":
        return _filled(node, attributes, first)
    if kind == "Transpose":
        return np.transpose(first, attributes.get("perm"))
    if kind == "Reshape":
        return np.reshape(first, [int(side) for side in np.ravel(values[1])])
    if kind == "Cast":
        import onnx

        return first.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    return first  # Identity


def _sliced(node: Any, values: list[Array]) -> Array:
    first, (starts, ends) = values[0], (np.ravel(value) for value in values[1:3])
    axis = int(np.ravel(values[3])[0]) if len(values) > 3 else 0
    step = int(np.ravel(values[4])[0]) if len(values) > 4 else 1
    if any(np.size(value) != 1 for value in values[1:]) or axis != 0 or step == 0:
        raise FedtinyError(f"operator {called(node)}: only slices along the first side of a constant are supported")
    return first[int(starts[0]) : int(ends[0]) : step]


def _filled(node: Any, attributes: Attributes, shape: Array) -> Array:
    sides = [int(side) for side in np.ravel(shape)]
    if len(sides) > MAX_SIDES:
        raise FedtinyError(f"operator {called(node)} makes a constant of {len(sides)} sides; the limit is {MAX_SIDES}")
    if min(sides, default=1) < 0 or int(np.prod(sides, dtype=object)) > MAX_FOLDED:
        raise FedtinyError(f"operator {called(node)} makes a constant of shape {sides}; the limit is {MAX_FOLDED:,}")
    value = read_constant(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.full(sides, value.reshape(-1)[0] if value.size else 0, value.dtype)
