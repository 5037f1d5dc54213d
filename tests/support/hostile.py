"""Damaged and hostile model files: mutations of valid ONNX and .tflite files, and what must happen to them."""

from __future__ import annotations

import contextlib
import copy
import time
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
from fedtiny_export.errors import FedtinyError
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.evaluate import Samples, calibrate
from fedtiny_export.graph.ir import Graph
from fedtiny_export.graph.passes import simplify
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.onnx_in.read import read_onnx
from fedtiny_export.quant.quantize import quantize
from fedtiny_export.tflite import schema
from fedtiny_export.tflite.read import read_tflite
from fedtiny_export.tflite.write import write_tflite

EXTREMES = (-(2**31), -(2**16), -2, -1, 0, 1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1)
SECONDS = 2.0
WORK = 1 << 22  # bigger networks are read and laid out, but not run


def attempt(path: Path) -> str:
    """Export a file: 'exported', or the message it was refused with. Anything else is raised."""
    start = time.process_time()
    try:
        graph = read_tflite(path) if path.suffix == ".tflite" else simplify(read_onnx(path))
        said = _export(graph)
    except FedtinyError as error:
        said = str(error)
        assert "\n" not in said, "one line"
    spent = time.process_time() - start
    assert spent < SECONDS, f"{spent:.1f} seconds"
    return said


def _export(graph: Graph) -> str:
    work = sum(tensor.elements for tensor in graph.tensors.values())
    for node in graph.nodes:
        if "weight" in node.constants:
            work += node.constants["weight"][0].size * graph.tensors[node.output].elements
        work += int(np.prod(node.window.kernel)) * graph.tensors[node.output].elements
    if work > WORK:
        return "exported"
    random = np.random.default_rng(0)
    shape = graph.tensors[graph.input].shape
    if graph.tensors[graph.input].quant is None:
        with np.errstate(all="ignore"):
            graph = quantize(graph, calibrate(graph, Samples(random.normal(size=(2, *shape)), None)))
    smaller = reduce_graph(graph)
    inputs = random.integers(-128, 128, (2, *shape), np.int8)
    assert np.array_equal(reference.run(graph, inputs), reference.run(smaller, inputs))
    write_tflite(smaller)
    with contextlib.suppress(FedtinyError):
        write_ftm(smaller, {})
    return "exported"


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Change a few bytes or aligned words, cut or repeat a piece."""
    edited = bytearray(data)
    for _ in range(int(random.integers(1, 6)) if edited else 0):
        at, kind = int(random.integers(0, len(edited))), int(random.integers(0, 4))
        if kind == 0:
            edited[at] = int(random.integers(0, 256))
        elif kind == 1:
            at -= at % 4
            word = int(random.choice(EXTREMES)) if random.random() < 0.5 else int(random.integers(0, len(data)))
            edited[at : at + 4] = (word & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == 2 and random.random() < 0.2:
            del edited[at : at + int(random.integers(1, 64))]
            if not edited:
                break
        else:
            edited[at] ^= 1 << int(random.integers(0, 8))
    return bytes(edited)


def mutated_onnx(data: bytes, random: np.random.Generator) -> bytes:
    """Change what an ONNX file says, in its own terms."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    for _ in range(int(random.integers(1, 4))):
        node = graph.node[int(random.integers(0, len(graph.node)))]
        kind = int(random.integers(0, 14))
        extreme = int(random.choice(EXTREMES))
        if kind == 0 and node.input:
            node.input[int(random.integers(0, len(node.input)))] = str(random.choice(names))  # cycles too
        elif kind == 1:
            node.output[0] = str(random.choice(names))
        elif kind == 2:
            node.op_type = graph.node[int(random.integers(0, len(graph.node)))].op_type
        elif kind == 3 and node.attribute:
            item = node.attribute[int(random.integers(0, len(node.attribute)))]
            if item.ints:
                item.ints[int(random.integers(0, len(item.ints)))] = extreme
            else:
                item.i, item.f = extreme, float(random.choice([np.nan, np.inf, -1e38, 0.0, 1e-40]))
        elif kind == 4:
            weight = graph.initializer[int(random.integers(0, len(graph.initializer)))]
            if weight.dims:
                weight.dims[int(random.integers(0, len(weight.dims)))] = extreme
        elif kind == 5:
            weight = graph.initializer[int(random.integers(0, len(graph.initializer)))]
            weight.raw_data = damaged(weight.raw_data, random) if weight.raw_data else b"\xff" * 8
        elif kind == 6:
            dims = graph.input[0].type.tensor_type.shape.dim
            dims[int(random.integers(0, len(dims)))].dim_value = extreme
        elif kind == 7:
            graph.initializer[int(random.integers(0, len(graph.initializer)))].data_type = int(random.integers(0, 20))
        elif kind == 8:
            graph.node.append(copy.deepcopy(node))
        elif kind == 9 and len(graph.node) > 1:
            graph.node.remove(node)
        elif kind == 10:
            graph.output[0].name = str(random.choice(names))
        elif kind == 11:
            model.opset_import[0].version = extreme
        elif kind == 12:  # weights that lie in another file, which may be anybody's
            weight = graph.initializer[int(random.integers(0, len(graph.initializer)))]
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=str(random.choice(["../../etc/passwd", "m.onnx", "/", ""])))
        elif node.attribute:
            item = node.attribute[int(random.integers(0, len(node.attribute)))]
            item.type = int(random.integers(0, 15))
    return model.SerializeToString()


def mutated_tflite(data: bytes, random: np.random.Generator) -> bytes:
    """Change what a .tflite file says, in its own terms."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    sub = model.subgraphs[0]
    for _ in range(int(random.integers(1, 4))):
        operator = sub.operators[int(random.integers(0, len(sub.operators)))]
        tensor = sub.tensors[int(random.integers(0, len(sub.tensors)))]
        kind, extreme = int(random.integers(0, 13)), int(random.choice(EXTREMES))
        if kind == 0:
            places = [int(i) for i in operator.inputs]
            places[int(random.integers(0, len(places)))] = int(random.integers(-2, len(sub.tensors) + 2))
            operator.inputs = np.array(places, np.int32)
        elif kind == 1:
            operator.outputs = np.array([int(random.integers(-1, len(sub.tensors)))], np.int32)
        elif kind == 2:
            operator.opcodeIndex = int(random.integers(0, len(model.operatorCodes) + 1))
        elif kind == 3 and tensor.shape is not None and len(tensor.shape):
            shape = [int(i) for i in tensor.shape]
            shape[int(random.integers(0, len(shape)))] = extreme
            tensor.shape = np.array(shape, np.int32)
        elif kind == 4:
            tensor.buffer = int(random.integers(0, len(model.buffers) + 2))
        elif kind == 5:
            tensor.type = int(random.integers(0, 18))
        elif kind == 6 and tensor.quantization is not None and tensor.quantization.scale is not None:
            scale = np.array(tensor.quantization.scale)
            scale[0] = random.choice(np.array([0.0, -1.0, np.nan, np.inf, 1e-38, 1e38, 1e-5, 100.0], np.float32))
            tensor.quantization.scale = scale
            tensor.quantization.zeroPoint = np.array([extreme] * len(tensor.quantization.zeroPoint), np.int64)
        elif kind == 7:
            held = model.buffers[int(random.integers(0, len(model.buffers)))]
            held.data = np.frombuffer(damaged(bytes(held.data), random), np.uint8) if held.data is not None else None
        elif kind == 8 and len(sub.operators) > 1:
            sub.operators.remove(operator)
        elif kind == 9:
            sub.operators.insert(int(random.integers(0, len(sub.operators))), operator)
        elif kind == 10:
            ends = np.array([int(random.integers(-1, len(sub.tensors) + 1))], np.int32)
            sub.inputs, sub.outputs = (ends, sub.outputs) if random.random() < 0.5 else (sub.inputs, ends)
        elif kind == 11 and tensor.quantization is not None:
            tensor.quantization.quantizedDimension = extreme
        elif operator.builtinOptions is not None:
            fields = [k for k, v in vars(operator.builtinOptions).items() if type(v) is int]
            if fields:
                setattr(operator.builtinOptions, str(random.choice(fields)), max(-128, min(127, extreme)))
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def mutate(data: bytes, suffix: str, seed: int) -> bytes:
    """The mutation of a seed: in the format's own terms, or of its bytes."""
    random = np.random.default_rng(seed)
    if seed % 2:
        return damaged(data, random)
    return mutated_tflite(data, random) if suffix == ".tflite" else mutated_onnx(data, random)
