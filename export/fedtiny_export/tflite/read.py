"""int8 .tflite file -> int8 Graph, as any converter writes it.

The flatbuffer is read field by field and nothing in it is believed: counts, offsets and shapes are checked before
they are used. Float or uint8 edges are left off: the Graph begins and ends with int8. What the operators mean is in
layers_in.py; whatever has no row there is refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import FedtinyError, printable
from ..graph.ir import MAX_ELEMENTS, Array, Graph
from ..graph.passes import fold_views
from ..quant.quantize import check_int8
from ..untrusted import guarded
from . import schema
from .layers_in import READERS
from .reader import Operator, TfliteReader

MAX_FILE_BYTES = 1 << 28
MAX_TENSORS, MAX_OPERATORS, MAX_INPUTS, MAX_TEXT = 20_000, 10_000, 256, 256
T = TypeVar("T")


def read_tflite(path: Path) -> Graph:
    """Read a network of int8 operators with one input and one output."""

    def read() -> bytes:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FedtinyError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes")
        return path.read_bytes()

    return parse_tflite(guarded(path, "a readable file", read), path)


def parse_tflite(data: bytes, path: Path) -> Graph:
    """As read_tflite, from the bytes of a file; `path` is what errors name."""
    try:
        return guarded(path, "a usable .tflite file", lambda: _without_struct_errors(lambda: _read_model(data)))
    except FedtinyError as error:
        raise FedtinyError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _without_struct_errors(read: Callable[[], T]) -> T:
    try:
        return read()
    except struct.error as error:
        raise ValueError(f"an offset leaves the file ({error})") from None


@dataclass(frozen=True, slots=True)
class _File:
    """The file's bytes, its only subgraph, and its buffers."""

    data: bytes
    model: Any
    subgraph: Any


def _count(number: int, most: int, what: str) -> int:
    if number > most:
        raise FedtinyError(f"{number:,} {what}; the limit is {most:,}")
    return number


def _read_model(data: bytes) -> Graph:
    if data[4:8] != b"TFL3":
        raise FedtinyError("not a .tflite file: TFL3 is missing")
    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() != 1:
        raise FedtinyError(f"{model.SubgraphsLength()} subgraphs; one is supported (no control flow)")
    subgraph = model.Subgraphs(0)
    if subgraph.InputsLength() != 1 or subgraph.OutputsLength() != 1:
        raise FedtinyError(
            f"needs one input and one output, has {subgraph.InputsLength()} and {subgraph.OutputsLength()}"
        )
    file = _File(data, model, subgraph)
    reader = TfliteReader()
    for index in range(_count(subgraph.TensorsLength(), MAX_TENSORS, "tensors")):
        _enter_tensor(reader, file, index)
    codes = _operator_names(model)
    source = reader.enter_input(subgraph.Inputs(0))
    for index in range(_count(subgraph.OperatorsLength(), MAX_OPERATORS, "operators")):
        _read_operator(reader, _operator(subgraph.Operators(index), codes, index))
    graph = fold_views(reader.graph(source, subgraph.Outputs(0)))
    check_int8(graph)
    return graph


def _operator_names(model: Any) -> list[str]:
    known = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    names = []
    for index in range(_count(model.OperatorCodesLength(), MAX_OPERATORS, "operator codes")):
        code = model.OperatorCodes(index)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())  # older files have the second only
        names.append(known.get(number, f"number {number}"))
    return names


def _operator(table: Any, codes: list[str], index: int) -> Operator:
    code = table.OpcodeIndex()
    if code >= len(codes):
        raise FedtinyError(f"operator {index} has code {code} of {len(codes)}")
    inputs = [table.Inputs(i) for i in range(_count(table.InputsLength(), MAX_INPUTS, "inputs of an operator"))]
    outputs = [table.Outputs(i) for i in range(_count(table.OutputsLength(), MAX_INPUTS, "outputs of an operator"))]
    return Operator(
        index, codes[code], tuple(inputs), tuple(outputs), table.BuiltinOptionsType(), table.BuiltinOptions()
    )


def _read_operator(reader: TfliteReader, operator: Operator) -> None:
    read = READERS.get(operator.kind)
    if read is None:
        known = ", ".join(sorted(READERS))
        raise FedtinyError(f"operator {operator.index} of type {operator.kind} is not supported (supported: {known})")
    if len(operator.outputs) != 1:
        raise FedtinyError(
            f"operator {operator.index} ({operator.kind}) has {len(operator.outputs)} outputs; one is supported"
        )
    read(reader, operator)


def _enter_tensor(reader: TfliteReader, file: _File, index: int) -> None:
    table = file.subgraph.Tensors(index)
    name = printable((table.Name() or b"")[:MAX_TEXT].decode("utf-8", "replace"))
    shape = tuple(table.Shape(i) for i in range(_count(table.ShapeLength(), 8, "sides of a tensor")))
    if table.Sparsity() is not None or table.IsVariable():
        raise FedtinyError(
            f"tensor {name or index} is sparse or a state, which is not supported: convert without either"
        )
    values = _values(file, table, shape, name or str(index))
    reader.enter(index, name, shape, table.Type(), _scales(table), values)


def _scales(table: Any) -> tuple[Array, Array, int]:
    """Scales, zero points and the side they go along."""
    found = table.Quantization()
    if found is None or found.ScaleLength() == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    _count(found.ScaleLength(), MAX_ELEMENTS >> 8, "scales of a tensor")
    zeros = found.ZeroPointAsNumpy() if found.ZeroPointLength() else np.zeros(1, np.int64)
    return np.asarray(found.ScaleAsNumpy(), np.float32), np.asarray(zeros, np.int64), found.QuantizedDimension()


_KINDS: dict[int, np.dtype[Any]] = {
    schema.TensorType.INT8: np.dtype(np.int8),
    schema.TensorType.INT32: np.dtype("<i4"),
    schema.TensorType.INT64: np.dtype("<i8"),
}


def _values(file: _File, table: Any, shape: tuple[int, ...], name: str) -> Array | None:
    """What a constant holds, wherever it lies; None for an activation."""
    index = table.Buffer()
    if index == 0 or table.ExternalBuffer():
        if table.ExternalBuffer():
            raise FedtinyError(f"tensor {name} lies in another file, which is not supported")
        return None
    if index >= file.model.BuffersLength():
        raise FedtinyError(f"tensor {name} has buffer {index} of {file.model.BuffersLength()}")
    buffer = file.model.Buffers(index)
    start, size = buffer.Offset(), buffer.Size()
    if start > 1:  # behind the flatbuffer: files of over 2 GB, and some converters always
        if start + size > len(file.data):
            raise FedtinyError(f"tensor {name}: bytes {start} to {start + size} are not in the file")
        content = np.frombuffer(file.data, np.uint8, size, start)  # views: many tensors may share a buffer
    elif buffer.DataLength() == 0:
        return None
    else:
        content = buffer.DataAsNumpy()
    kind = _KINDS.get(table.Type())
    if kind is None:
        return np.asarray(content)  # refused where an operator reads it
    elements = int(np.prod(shape, dtype=object)) if shape else 1
    if min(shape, default=1) < 0 or elements * kind.itemsize != content.size:
        raise FedtinyError(f"tensor {name} of shape {shape} holds {content.size:,} bytes")
    return np.asarray(content.view(kind).reshape(shape))
