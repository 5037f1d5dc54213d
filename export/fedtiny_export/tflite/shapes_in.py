"""Shapes that a .tflite file computes instead of saying them, and the repetition that is written with them.

Converters leave SHAPE, STRIDED_SLICE, PACK and CONCATENATION of whole numbers in front of a RESHAPE whose result has
sides of 1 in the file. All of it is known while reading. Rows or columns repeated by EXPAND_DIMS, TILE and RESHAPE, as
Keras enlarges images, are a resize to the nearest neighbour.
"""

from __future__ import annotations

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Array, Op
from . import schema
from .reader import Operator, TfliteReader

MAX_SIDES = 8


def is_shape(reader: TfliteReader, operator: Operator) -> bool:
    """Whether an operator computes whole numbers and no activation."""
    return bool(reader.tensor(operator.outputs[0]).kind == schema.TensorType.INT32)


def work_out(reader: TfliteReader, operator: Operator) -> None:
    """Note what an operator on shapes gives, if that is known before the network runs."""
    if operator.kind == "SHAPE":
        index = reader.index(operator, 0)
        if index in reader.written:
            shape = reader.tensors[reader.written[index]].shape
            reader.worked_out[operator.outputs[0]] = np.array([1, *shape], np.int32)
        return
    places = range(len(operator.inputs))
    if not all(reader.is_constant(operator, place) for place in places):
        return
    values = [np.ravel(reader.constant(operator, place)) for place in places]
    if not values or max(value.size for value in values) > MAX_SIDES:
        raise FedtinyError(f"{operator.called} computes a shape of over {MAX_SIDES} sides")
    made = _sliced(reader, operator, values) if operator.kind == "STRIDED_SLICE" else np.concatenate(values)
    reader.worked_out[operator.outputs[0]] = made.astype(np.int32)


def _sliced(reader: TfliteReader, operator: Operator, values: list[Array]) -> Array:
    options = reader.options(operator, schema.StridedSliceOptions)
    if len(values) != 4 or any(part.size != 1 for part in values[1:]):
        raise FedtinyError(f"{operator.called} must cut a shape with one beginning, end and step")
    numbers, (begin, end, step) = values[0], (int(part[0]) for part in values[1:])
    if step == 0:
        raise FedtinyError(f"{operator.called} has steps of 0")
    if options.ShrinkAxisMask() & 1:
        if not -numbers.size <= begin < numbers.size:
            raise FedtinyError(f"{operator.called} takes side {begin} of {numbers.size}")
        return numbers[begin : begin + 1 or None]
    first = None if options.BeginMask() & 1 else begin
    return numbers[first : None if options.EndMask() & 1 else end : step]


def resolve(reader: TfliteReader, operator: Operator) -> None:
    """Note the shape that a RESHAPE gives by a computed target."""
    target = [int(side) for side in np.ravel(reader.worked_out[operator.inputs[1]])]
    elements = reader.tensors[reader.source(operator)].elements
    if -1 in target:
        rest = -int(np.prod(target, dtype=object))
        target[target.index(-1)] = elements // rest if rest > 0 and elements % rest == 0 else 0
    if not target or target[0] != 1 or int(np.prod(target, dtype=object)) != elements:
        raise FedtinyError(f"{operator.called} makes a shape {tuple(target)} of {elements:,} numbers")
    reader.shapes[operator.outputs[0]] = tuple(target[1:])


def repeats(reader: TfliteReader, operator: Operator) -> bool:
    """Take EXPAND_DIMS and RESHAPE around a TILE for what they are; False where they are something else."""
    index = reader.index(operator, 0)
    if operator.kind == "EXPAND_DIMS" and index in reader.written:
        source = reader.source(operator)
        axis = int(np.ravel(reader.constant(operator, 1))[0])
        if len(reader.tensors[source].shape) == 3 and axis in (2, 3, -3, -2):
            reader.repeated[operator.outputs[0]] = (source, axis - 2 if axis > 0 else axis + 3, 1)
            return True
    if operator.kind == "RESHAPE" and index in reader.repeated:
        source, side, times = reader.repeated[index]
        shape = list(reader.tensors[source].shape)
        shape[side] *= times
        settings = {"height": float(shape[0]), "width": float(shape[1])}
        reader.add(operator, Op.RESIZE, (source,), settings=settings)
        return True
    return False


def tile(reader: TfliteReader, operator: Operator) -> None:
    """Rows or columns repeated, each in its place."""
    source, side, times = reader.repeated.get(reader.index(operator, 0), ("", 0, 0))
    counts = [int(count) for count in np.ravel(reader.constant(operator, 1))]
    others = counts[: side + 2] + counts[side + 3 :]
    if not times or len(counts) != 5 or others != [1] * 4 or counts[side + 2] < 1:
        raise FedtinyError(f"{operator.called} is supported where it repeats the rows or columns of an image")
    reader.repeated[operator.outputs[0]] = (source, side, times * counts[side + 2])
