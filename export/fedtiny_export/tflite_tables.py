"""The tables of a .tflite file while it is written: tensors, buffers and operators in order of first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import tflite_schema as schema
from .ir import Array, Quant, Tensor

_KINDS = {np.dtype(np.int8): schema.TensorType.INT8, np.dtype(np.int32): schema.TensorType.INT32}


@dataclass(slots=True)
class Tables:
    """Collects what the file holds; constants are shared nowhere."""

    graph_tensors: Mapping[str, Tensor]
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    codes: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _code_index: dict[int, int] = field(default_factory=dict)

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
        code = getattr(schema.BuiltinOperator, kind)
        if code not in self._code_index:
            self._code_index[code] = len(self.codes)
            self.codes.append(
                schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version)
            )
        union = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self._code_index[code],
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
