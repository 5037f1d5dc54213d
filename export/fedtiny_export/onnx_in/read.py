"""ONNX file -> float Graph: the file, its constants, and one walk over its operators.

What the operators mean is in layers.py and simple.py; whatever has no row there is refused by name.
Constants outside the file are read from the model's own folder only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Graph
from .constants import FOLDED, fold
from .layers import LAYERS
from .reader import OnnxReader, called, read_constant
from .simple import SIMPLE

MAX_FILE_BYTES = 1 << 30
_READERS = {**LAYERS, **SIMPLE}


def read_onnx(path: Path) -> Graph:
    """Read a network with one float input and one float output."""
    import onnx

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FedtinyError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes")
        model = onnx.load_model_from_string(path.read_bytes())
        _load_external(model, path.parent)
        onnx.checker.check_model(model)
        return _read_graph(model)
    except FedtinyError as error:
        raise FedtinyError(f"{path}: {error}") from None
    except OSError as error:
        raise FedtinyError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # the parser and the checker raise many types of their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FedtinyError(f"{path}: not a usable ONNX file: {first[:200]}") from None


def _load_external(model: Any, folder: Path) -> None:
    """Put constants that lie in files beside the model into it."""
    import onnx

    left = MAX_FILE_BYTES
    tensors = [*model.graph.initializer]
    tensors += [item.t for node in model.graph.node for item in node.attribute if item.HasField("t")]
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        content = _external_bytes(folder, str(tensor.name), entries, left)
        left -= len(content)
        tensor.raw_data = content
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_bytes(folder: Path, name: str, entries: dict[str, str], most: int) -> bytes:
    where = entries.get("location", "")
    file = (folder / where).resolve()
    if not where or Path(where).is_absolute() or not file.is_relative_to(folder.resolve()):
        raise FedtinyError(f"initializer {name} lies at {where!r}, outside the model's folder")
    if not file.is_file():
        raise FedtinyError(f"initializer {name} lies in {where!r}, which is not beside the model")
    size = file.stat().st_size
    numbers = [entries.get("offset", "0"), entries.get("length", "")]
    if not all(number.isascii() and (number.isdigit() or not number) and len(number) < 16 for number in numbers):
        raise FedtinyError(f"initializer {name}: offset and length in {where!r} are not numbers")
    offset = int(numbers[0] or 0)
    length = int(numbers[1]) if numbers[1] else size - offset
    if not 0 <= offset <= offset + length <= size or length > most:
        raise FedtinyError(
            f"initializer {name}: bytes {offset} to {offset + length} are not in {where!r} ({size:,} bytes)"
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _read_graph(model: Any) -> Graph:
    opsets = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    reader, graph = OnnxReader(max(opsets, default=1)), model.graph
    if graph.sparse_initializer:
        raise FedtinyError("sparse initializers are not supported: store them dense, zeros and all")
    for initializer in graph.initializer:
        reader.constants[str(initializer.name)] = read_constant(initializer)
    inputs = [item for item in graph.input if item.name not in reader.constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise FedtinyError(f"needs one input and one output, has {len(inputs)} and {len(graph.output)}")
    source, output = str(inputs[0].name), str(graph.output[0].name)
    reader.outputs = frozenset({output})
    dims = [int(dim.dim_value) for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) not in (2, 3, 4) or min(dims[1:], default=0) < 1:
        raise FedtinyError(f"input {source} has shape {dims}; (N,C,H,W), (N,C,L) or (N,F) with known sizes is needed")
    _declare_input(reader, graph, source, dims)
    for node in graph.node:
        _read_node(reader, node)
    return reader.graph(source, output)


def _declare_input(reader: OnnxReader, graph: Any, source: str, dims: list[int]) -> None:
    """An input that is channels last in the file and turned at once is taken as it is."""
    readers = [node for node in graph.node if source in node.input]
    turned = len(dims) == 4 and len(readers) == 1 and readers[0].op_type == "Transpose"
    if turned and [list(item.ints) for item in readers[0].attribute if item.name == "perm"] == [[0, 3, 1, 2]]:
        _, height, width, channels = dims
        reader.declare(source, (channels, height, width))
        reader.turned = str(readers[0].output[0])
    else:
        reader.declare(source, tuple(dims[1:]))


def _read_node(reader: OnnxReader, node: Any) -> None:
    import onnx

    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in FOLDED and fold(reader, node, attributes):
        return
    read = _READERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if read is None:
        known = ", ".join(sorted(_READERS))
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise FedtinyError(f"operator {called(node)} of type {kind} is not supported (supported: {known})")
    for given in node.input:
        name = reader.name(str(given))
        if given and name not in reader.constants and name not in reader.tensors and name not in reader.gates:
            raise FedtinyError(f"operator {called(node)} reads {given}, which nothing before it writes")
    if reader.turned and str(node.output[0]) == reader.turned:
        reader.same(node, reader.data(node))
        return
    with np.errstate(all="ignore"):  # what is not finite is refused by the Graph
        read(reader, node, attributes)
