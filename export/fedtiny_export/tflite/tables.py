"""The tables of a .tflite file while it is written: tensors, buffers and operators in order of first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..graph.ir import Array, Quant, Tensor
from ..tflm import decode as tflm_decode
from . import schema

_KINDS = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.uint8): schema.TensorType.UINT8,
}


@dataclass(slots=True)
class Tables:
    """Collects what the file holds; constants are shared nowhere."""

    graph_tensors: Mapping[str, Tensor]
    decode: bool = False  # whether weights are coded where that pays
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    codes: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _code_index: dict[tuple[int, str | None], int] = field(default_factory=dict)

    def activation(self, name: str, shown: str | None = None) -> int:
        """The index of an activation of the graph."""
        if name not in self._index:
            tensor = self.graph_tensors[name]
            self._index[name] = self.unnamed(tensor.shape, tensor.quant, shown)
        return self._index[name]

    def unnamed(self, shape: tuple[int, ...], quant: Quant | None, shown: str | None = None) -> int:
        """The index of a new activation that the graph has no name for."""
        assert quant is not None
        return self._tensor((1, *shape), schema.TensorType.INT8, 0, _parameters(quant), shown)

    def constant(self, values: Array, quant: Any = None) -> int:
        """The index of a new constant of int8 or int32."""
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        self.buffers.append(schema.BufferT(data=np.frombuffer(little.tobytes(), np.uint8)))
        return self._tensor(values.shape, _KINDS[values.dtype], len(self.buffers) - 1, quant)

    def decoded(self, values: Array, quant: Any) -> int:
        """The index of weights that TensorFlow Lite Micro writes out before the operator that is emitted next."""
        parts = [np.frombuffer(part, np.uint8) for part in tflm_decode.encode(values)]
        output = self._tensor(values.shape, schema.TensorType.INT8, 0, quant)
        inputs = [self.constant(part) for part in parts]
        self._append(schema.BuiltinOperator.CUSTOM, inputs, output, 1, custom=tflm_decode.OPERATOR)
        return output

    def number(self, value: int, quant: Quant) -> int:
        """The index of a new int8 constant of one number."""
        return self.constant(np.array([value], np.int8), _parameters(quant))

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

    def emit(self, kind: str, inputs: list[int], output: int, options: Any = None, version: int = 2) -> None:
        """Append an operator; `kind` is its name in the schema, `options` its table."""
        self._append(getattr(schema.BuiltinOperator, kind), inputs, output, version, options)

    def _append(
        self, code: int, inputs: list[int], output: int, version: int, options: Any = None, custom: str | None = None
    ) -> None:
        if (code, custom) not in self._code_index:
            self._code_index[code, custom] = len(self.codes)
            self.codes.append(
                schema.OperatorCodeT(
                    deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version, customCode=custom
                )
            )
        union = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self._code_index[code, custom],
                inputs=np.array(inputs, np.int32),
                outputs=np.array([output], np.int32),
                builtinOptionsType=union,
                builtinOptions=options,
            )
        )


def _parameters(quant: Quant) -> Any:
    return schema.QuantizationParametersT(
        scale=np.array([quant.scale], np.float32), zeroPoint=np.array([quant.zero_point], np.int64)
    )
