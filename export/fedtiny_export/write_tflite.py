"""int8 Graph -> .tflite bytes that TFLite Micro and LiteRT run.

The file is slim: constants are shared nowhere, only the input and output carry names, biases carry no
quantisation of their own. Padding that TensorFlow's SAME and VALID cannot express becomes a PAD operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np

from . import tflite_schema as schema
from .errors import FedtinyError
from .fixed_point import activation_limits
from .ir import Array, Graph, Node, Op, Quant, Tensor, Window

_INT8, _INT32 = schema.TensorType.INT8, schema.TensorType.INT32
_CODES = {
    Op.CONV: schema.BuiltinOperator.CONV_2D,
    Op.DENSE: schema.BuiltinOperator.FULLY_CONNECTED,
    Op.ADD: schema.BuiltinOperator.ADD,
    Op.MEAN: schema.BuiltinOperator.MEAN,
}


def write_tflite(graph: Graph) -> bytes:
    """Lay the graph out as a flatbuffer; equal graphs give equal bytes."""
    writer = _Writer(graph.tensors)
    inputs = [writer.activation(graph.input, "input")]
    outputs = [writer.activation(graph.output, "output")]
    for node in graph.nodes:
        writer.operator(node)
    subgraph = schema.SubGraphT(tensors=writer.tensors, inputs=inputs, outputs=outputs, operators=writer.operators)
    model = schema.ModelT(
        version=3,
        operatorCodes=writer.codes,
        subgraphs=[subgraph],
        description="fedtiny",
        buffers=writer.buffers,
    )
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def same_pads(window: Window, height: int, width: int) -> tuple[int, int, int, int]:
    """TensorFlow's SAME padding of a window over an input: as even as possible, the odd one below and right."""

    def split(size: int, kernel: int, stride: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    top, bottom = split(height, window.kernel[0], window.stride[0])
    left, right = split(width, window.kernel[1], window.stride[1])
    return top, left, bottom, right


@dataclass(slots=True)
class _Writer:
    """Collects the flatbuffer's tables; tensor indices are handed out in order of first use."""

    graph_tensors: Mapping[str, Tensor]
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    codes: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _code_index: dict[int, int] = field(default_factory=dict)

    def activation(self, name: str, shown: str | None = None) -> int:
        if name not in self._index:
            tensor = self.graph_tensors[name]
            self._index[name] = self._activation(tensor.shape, tensor.quant, shown)
        return self._index[name]

    def _activation(self, shape: tuple[int, ...], quant: Quant | None, shown: str | None) -> int:
        assert quant is not None
        parameters = schema.QuantizationParametersT(
            scale=np.array([quant.scale], np.float32), zeroPoint=np.array([quant.zero_point], np.int64)
        )
        return self._tensor((1, *shape), _INT8, 0, parameters, shown)

    def _tensor(self, shape: tuple[int, ...], kind: int, buffer: int, quant: Any, name: str | None = None) -> int:
        self.tensors.append(
            schema.TensorT(
                shape=np.array(shape, np.int32),
                type=kind,
                buffer=buffer,
                name=name,
                quantization=quant,
                hasRank=True,
            )
        )
        return len(self.tensors) - 1

    def _constant(self, values: Array, quant: Any = None) -> int:
        kind = _INT8 if values.dtype == np.int8 else _INT32
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        self.buffers.append(schema.BufferT(data=np.frombuffer(little.tobytes(), np.uint8)))
        return self._tensor(values.shape, kind, len(self.buffers) - 1, quant)

    def _emit(self, code: int, inputs: list[int], output: int, kind: int, options: Any, version: int) -> None:
        if code not in self._code_index:
            self._code_index[code] = len(self.codes)
            self.codes.append(
                schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version)
            )
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self._code_index[code],
                inputs=np.array(inputs, np.int32),
                outputs=np.array([output], np.int32),
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def operator(self, node: Node) -> None:
        emit = {Op.CONV: self._conv, Op.DENSE: self._dense, Op.ADD: self._add, Op.MEAN: self._mean}
        emit[node.op](node, _CODES[node.op])

    def _weights(self, node: Node) -> tuple[int, int]:
        scales = node.constants["weight_scale"]
        quant = schema.QuantizationParametersT(
            scale=np.asarray(scales, np.float32),
            zeroPoint=np.zeros(scales.size, np.int64),
            quantizedDimension=0,
        )
        bias_quant = None
        if scales.size == 1:  # then the kernels insist on a bias scale
            data = self.graph_tensors[node.inputs[0]].quant
            assert data is not None
            product = np.float32(data.scale) * np.asarray(scales, np.float32)
            bias_quant = schema.QuantizationParametersT(scale=product, zeroPoint=np.zeros(1, np.int64))
        return self._constant(node.constants["weight"], quant), self._constant(node.constants["bias"], bias_quant)

    def _conv(self, node: Node, code: int) -> None:
        data = self.graph_tensors[node.inputs[0]]
        window, source = node.window, self.activation(node.inputs[0])
        plain = node.pad_value == 0 or not any(window.pads)
        if plain and window.pads == same_pads(window, *data.shape[:2]):
            padding = schema.Padding.SAME
        else:
            padding = schema.Padding.VALID
            if any(window.pads):
                source = self._pad(node, data, source)
        weight, bias = self._weights(node)
        options = schema.Conv2DOptionsT(
            padding=padding,
            strideH=window.stride[0],
            strideW=window.stride[1],
            fusedActivationFunction=self._activation_function(node),
            dilationHFactor=1,
            dilationWFactor=1,
        )
        inputs = [source, weight, bias]
        self._emit(code, inputs, self.activation(node.output), schema.BuiltinOptions.Conv2DOptions, options, 3)

    def _pad(self, node: Node, data: Tensor, source: int) -> int:
        assert data.quant is not None
        top, left, bottom, right = node.window.pads
        height, width, channels = data.image
        padded = self._activation((height + top + bottom, width + left + right, channels), data.quant, None)
        pads = self._constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
        if node.pad_value == 0:
            kind, options = schema.BuiltinOptions.PadOptions, schema.PadOptionsT()
            self._emit(schema.BuiltinOperator.PAD, [source, pads], padded, kind, options, 2)
        else:
            value = np.array([data.quant.zero_point + int(node.pad_value)], np.int8)
            quant = schema.QuantizationParametersT(
                scale=np.array([data.quant.scale], np.float32),
                zeroPoint=np.array([data.quant.zero_point], np.int64),
            )
            inputs = [source, pads, self._constant(value, quant)]
            kind, options = schema.BuiltinOptions.PadV2Options, schema.PadV2OptionsT()
            self._emit(schema.BuiltinOperator.PADV2, inputs, padded, kind, options, 2)
        return padded

    def _dense(self, node: Node, code: int) -> None:
        weight, bias = self._weights(node)
        options = schema.FullyConnectedOptionsT(fusedActivationFunction=self._activation_function(node))
        inputs = [self.activation(node.inputs[0]), weight, bias]
        kind = schema.BuiltinOptions.FullyConnectedOptions
        self._emit(code, inputs, self.activation(node.output), kind, options, 4)

    def _add(self, node: Node, code: int) -> None:
        options = schema.AddOptionsT(fusedActivationFunction=self._activation_function(node), potScaleInt16=False)
        inputs = [self.activation(name) for name in node.inputs]
        self._emit(code, inputs, self.activation(node.output), schema.BuiltinOptions.AddOptions, options, 2)

    def _mean(self, node: Node, code: int) -> None:
        inputs = [self.activation(node.inputs[0]), self._constant(np.array([1, 2], np.int32))]
        kind, options = schema.BuiltinOptions.ReducerOptions, schema.ReducerOptionsT(keepDims=True)
        self._emit(code, inputs, self.activation(node.output), kind, options, 2)

    def _activation_function(self, node: Node) -> int:
        output = self.graph_tensors[node.output]
        names = schema.ActivationFunctionType
        for low, high, code in ((None, None, names.NONE), (0.0, None, names.RELU), (0.0, 6.0, names.RELU6)):
            trial = Node(node.op, node.name, node.inputs, node.output, low=low, high=high)
            if activation_limits(trial, output) == activation_limits(node, output):
                return int(code)
        raise FedtinyError(f"operator {node.name}: .tflite has no activation that clamps to {node.low}..{node.high}")
