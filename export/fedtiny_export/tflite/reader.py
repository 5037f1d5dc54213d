"""The state of reading one .tflite file: its tensors, and which of them the int8 graph has by now."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import FedtinyError
from ..graph.ir import Array, Graph, Node, Op, Quant, Tensor, Window, output_shape
from . import schema

_TYPE_NAMES = {number: name for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
INT8, UINT8, FLOAT32 = schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.FLOAT32


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the file; `options` is a table of unknown kind."""

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_kind: int
    options: Any

    @property
    def called(self) -> str:
        """What errors call it."""
        return f"operator {self.index} ({self.kind})"


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    scales: Array
    zero_points: Array
    axis: int
    values: Array | None


@dataclass(slots=True)
class TfliteReader:
    """Collects the graph; an index of the file stands for a tensor of the graph once something has written it."""

    file: list[FileTensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    written: dict[int, str] = field(default_factory=dict)
    float_input: int = -1
    worked_out: dict[int, Array] = field(default_factory=dict)  # shapes and parts of them, which files compute
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # where the file leaves sides open
    apart: dict[int, Window] = field(default_factory=dict)  # dealt out pixels: how far apart they were, how padded
    held: dict[int, Operator] = field(default_factory=dict)  # convolutions of such pixels
    repeated: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # tensor, side of it, how many times

    def enter(
        self,
        index: int,
        name: str,
        shape: tuple[int, ...],
        kind: int,
        scales: tuple[Array, Array, int],
        values: Array | None,
    ) -> None:
        """Note a tensor of the file under a name that is printable and its own."""
        plain = name if name and name.isprintable() else f"tensor {index}"
        self.file.append(FileTensor(f"{plain} ({index})", shape, kind, *scales, values))

    def tensor(self, index: int) -> FileTensor:
        """A tensor of the file."""
        if not 0 <= index < len(self.file):
            raise FedtinyError(f"tensor {index} is named, but there are {len(self.file)}")
        return self.file[index]

    def activation(self, index: int) -> Tensor:
        """A tensor of the file as one of the graph: batch of one left off, uint8 taken 128 lower."""
        found = self.tensor(index)
        if found.kind not in (INT8, UINT8):
            kind = _TYPE_NAMES.get(found.kind, str(found.kind))
            raise FedtinyError(f"tensor {found.name} is {kind}: quantise the whole network to int8, activations too")
        if len(found.shape) < 2 or found.shape[0] != 1:
            raise FedtinyError(
                f"tensor {found.name} has shape {found.shape}; a batch of one and 1 to 3 sides are needed"
            )
        if found.scales.size != 1 or found.zero_points.size != 1:
            raise FedtinyError(f"tensor {found.name} needs one scale and one zero point, has {found.scales.size}")
        lower = 128 if found.kind == UINT8 else 0
        quant = Quant(float(found.scales[0]), int(found.zero_points[0]) - lower)
        return Tensor(found.name, self.shapes.get(index, found.shape[1:]), quant)

    def enter_input(self, index: int) -> str:
        """Begin with the file's input; a float one begins behind its QUANTIZE."""
        if self.tensor(index).kind == FLOAT32:
            self.float_input = index
            return ""
        tensor = self.activation(index)
        self.tensors[tensor.name] = tensor
        self.written[index] = tensor.name
        return tensor.name

    def source(self, operator: Operator, place: int = 0) -> str:
        """The graph's tensor that an operator reads."""
        index = self.index(operator, place)
        if index not in self.written:
            found = self.tensor(index)
            what = "is a constant" if found.values is not None else "is not written before"
            raise FedtinyError(f"{operator.called}: its input {found.name} {what}")
        if index in self.apart:
            raise FedtinyError(f"{operator.called} reads what SPACE_TO_BATCH_ND gives: only one convolution may")
        if self.tensor(index).kind != INT8 and operator.kind not in ("QUANTIZE", "DEQUANTIZE"):
            raise FedtinyError(f"{operator.called} does not read int8: quantise the whole network to int8")
        return self.written[index]

    def constant(self, operator: Operator, place: int, kind: Any = np.int32) -> Array:
        """The constant that an operator reads."""
        found = self.tensor(self.index(operator, place))
        values = self.worked_out.get(self.index(operator, place), found.values)
        if values is None or values.dtype != kind:
            raise FedtinyError(f"{operator.called}: its input {found.name} must be a constant of {np.dtype(kind)}")
        return values

    def is_constant(self, operator: Operator, place: int) -> bool:
        """Whether an input is known before the network runs."""
        index = self.index(operator, place)
        return index in self.worked_out or self.tensor(index).values is not None

    def has(self, operator: Operator, place: int) -> bool:
        """Whether an optional input is given."""
        return len(operator.inputs) > place and operator.inputs[place] >= 0

    def index(self, operator: Operator, place: int) -> int:
        """The tensor of the file that an input names."""
        if not self.has(operator, place):
            raise FedtinyError(f"{operator.called} lacks input {place}")
        return operator.inputs[place]

    def options(self, operator: Operator, table: type) -> Any:
        """The operator's options, or defaults where the file has none."""
        made = table()
        if operator.options is None:
            made.Init(b"\4\0\4\0\4\0\0\0", 4)  # a table without fields
            return made
        if operator.options_kind != getattr(schema.BuiltinOptions, table.__name__):
            raise FedtinyError(f"{operator.called} has options of another operator")
        made.Init(operator.options.Bytes, operator.options.Pos)
        return made

    def add(self, operator: Operator, op: Op, inputs: tuple[str, ...], **fields: Any) -> None:
        """Append an operator; where the file says another shape of as many numbers, reshape behind it."""
        index = operator.outputs[0]
        target = self.activation(index)
        if index in self.written or target.name in self.tensors:
            raise FedtinyError(f"tensor {target.name} is written twice")
        made = Node(op, target.name, inputs, target.name, **fields)
        shape = output_shape(made, [self.tensors[name].shape for name in inputs])
        if _left_open(target.shape, shape):
            target = replace(target, shape=shape)
        if shape != target.shape:
            if int(np.prod(shape)) != target.elements:
                raise FedtinyError(f"{operator.called} gives {shape}, but the file says {target.shape}")
            inner = Tensor(f"{target.name} as made", shape, target.quant)
            self.tensors[inner.name] = inner
            self.nodes.append(Node(op, inner.name, inputs, inner.name, **fields))
            made = Node(Op.RESHAPE, target.name, (inner.name,), target.name, {"shape": np.array(target.shape)})
            output_shape(made, [shape])
        self.tensors[target.name] = target
        self.nodes.append(made)
        self.written[index] = target.name

    def view(self, source: str, shape: tuple[int, ...]) -> str:
        """The same numbers in another shape."""
        name = f"{source} as an image"
        if name not in self.tensors:
            self.tensors[name] = Tensor(name, shape, self.tensors[source].quant)
            self.nodes.append(Node(Op.RESHAPE, name, (source,), name, {"shape": np.array(shape)}))
        return name

    def image(self, source: str) -> str:
        """A signal as an image of one row; other tensors as they are."""
        shape = self.tensors[source].shape
        return self.view(source, (1, *shape)) if len(shape) == 2 else source

    def graph(self, source: str, output: int) -> Graph:
        """Everything read, as a checked value."""
        if self.float_input >= 0:
            source = self.written.get(self.float_input, "")
        if not source or output not in self.written:
            raise FedtinyError("the input is not quantised, or nothing writes the output")
        return Graph(tuple(self.nodes), self.tensors, source, self.written[output])


def _left_open(said: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Whether a file's shape only leaves sides open: it has a 1 for each side that is known at run time alone."""
    return len(said) == len(made) and said != made and all(a in (1, b) for a, b in zip(said, made, strict=True))
