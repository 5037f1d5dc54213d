"""How each operator of a .tflite file is read into the int8 graph: one function and one row an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import tflite_schema as schema
from .errors import FedtinyError
from .ir import Array, Graph, Node, Op, Quant, Tensor, Window, output_shape
from .tflite_out import same_pads

_TYPE_NAMES = {number: name for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
INT8, UINT8, FLOAT32 = schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.FLOAT32
MAX_WINDOW = 255


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

    def enter(
        self, index: int, name: str, shape: tuple[int, ...], kind: int, scales: tuple[Array, Array, int], values: Array | None
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
            raise FedtinyError(f"tensor {found.name} has shape {found.shape}; a batch of one and 1 to 3 sides are needed")
        if found.scales.size != 1 or found.zero_points.size != 1:
            raise FedtinyError(f"tensor {found.name} needs one scale and one zero point, has {found.scales.size}")
        lower = 128 if found.kind == UINT8 else 0
        quant = Quant(float(found.scales[0]), int(found.zero_points[0]) - lower)
        return Tensor(found.name, found.shape[1:], quant)

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
        index = self._index(operator, place)
        if index not in self.written:
            found = self.tensor(index)
            what = "is a constant" if found.values is not None else "is not written before"
            raise FedtinyError(f"{operator.called}: its input {found.name} {what}")
        if self.tensor(index).kind != INT8 and operator.kind not in ("QUANTIZE", "DEQUANTIZE"):
            raise FedtinyError(f"{operator.called} does not read int8: quantise the whole network to int8")
        return self.written[index]

    def constant(self, operator: Operator, place: int, kind: Any = np.int32) -> Array:
        """The constant that an operator reads."""
        found = self.tensor(self._index(operator, place))
        if found.values is None or found.values.dtype != kind:
            raise FedtinyError(f"{operator.called}: its input {found.name} must be a constant of {np.dtype(kind)}")
        return found.values

    def has(self, operator: Operator, place: int) -> bool:
        """Whether an optional input is given."""
        return len(operator.inputs) > place and operator.inputs[place] >= 0

    def _index(self, operator: Operator, place: int) -> int:
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
        if shape != target.shape:
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

    def graph(self, source: str, output: int) -> Graph:
        """Everything read, as a checked value."""
        if self.float_input >= 0:
            source = self.written.get(self.float_input, "")
        if not source or output not in self.written:
            raise FedtinyError("the input is not quantised, or nothing writes the output")
        return Graph(tuple(self.nodes), self.tensors, source, self.written[output])


Read = Callable[[TfliteReader, Operator], None]


def _limits(operator: Operator, function: int) -> dict[str, float | None]:
    names = schema.ActivationFunctionType
    known = {
        names.NONE: (None, None),
        names.RELU: (0.0, None),
        names.RELU6: (0.0, 6.0),
        names.RELU_N1_TO_1: (-1.0, 1.0),
    }
    if function not in known:
        raise FedtinyError(f"{operator.called} has the fused activation {function}, which is not supported")
    low, high = known[function]
    return {"low": low, "high": high}


def _window(reader: TfliteReader, operator: Operator, options: Any, kernel: tuple[int, int], dilated: bool) -> Window:
    stride = (options.StrideH(), options.StrideW())
    dilation = (options.DilationHFactor(), options.DilationWFactor()) if dilated else (1, 1)
    if min(*kernel, *stride, *dilation) < 1 or max(*kernel, *stride, *dilation) > MAX_WINDOW:
        raise FedtinyError(f"{operator.called}: kernel, stride and dilation must lie between 1 and {MAX_WINDOW}")
    window = Window(kernel, stride, dilation=dilation)
    shape = reader.tensors[reader.source(operator)].shape
    if len(shape) != 3:
        raise FedtinyError(f"{operator.called} needs an image, not {shape}")
    if options.Padding() == schema.Padding.VALID:
        return window
    return Window(kernel, stride, same_pads(window, shape[0], shape[1]), dilation)


def _weights(reader: TfliteReader, operator: Operator, sides: int, axis: int) -> tuple[Array, dict[str, Array]]:
    """Weights, and the rest of a weighted operator's constants."""
    weight = reader.constant(operator, 1, np.int8)
    found = reader.tensor(operator.inputs[1])
    if weight.ndim != sides or weight.size == 0:
        raise FedtinyError(f"{operator.called}: weights of shape {weight.shape}; {sides} sides are needed")
    count = weight.shape[axis]
    if found.scales.size not in (1, count) or (found.scales.size > 1 and found.axis != axis):
        raise FedtinyError(f"{operator.called}: {found.scales.size} weight scales along side {found.axis} of {weight.shape}")
    if found.zero_points.any() or not np.all(np.isfinite(found.scales) & (found.scales >= 0)):
        raise FedtinyError(f"{operator.called}: weights must be symmetric (zero point 0) with scales of 0 or more")
    bias = reader.constant(operator, 2) if reader.has(operator, 2) else np.zeros(count, np.int32)
    if bias.size != count:
        raise FedtinyError(f"{operator.called}: {bias.size} biases for {count} outputs")
    return weight, {"weight_scale": found.scales, "bias": bias.reshape(-1).astype(np.int32)}


def _conv(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.Conv2DOptions)
    weight, rest = _weights(reader, operator, 4, 0)
    window = _window(reader, operator, options, (weight.shape[1], weight.shape[2]), dilated=True)
    limits = _limits(operator, options.FusedActivationFunction())
    constants = {"weight": weight, **rest}
    reader.add(operator, Op.CONV, (reader.source(operator),), constants=constants, window=window, **limits)


def _depthwise(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.DepthwiseConv2DOptions)
    weight, rest = _weights(reader, operator, 4, 3)
    window = _window(reader, operator, options, (weight.shape[1], weight.shape[2]), dilated=True)
    limits = _limits(operator, options.FusedActivationFunction())
    source = reader.source(operator)
    if weight.shape[0] != 1:
        raise FedtinyError(f"{operator.called}: weights of shape {weight.shape}; the first side must be 1")
    op = Op.DEPTHWISE if reader.tensors[source].shape[2] > 1 else Op.CONV
    constants = {"weight": np.ascontiguousarray(weight.transpose(3, 1, 2, 0)), **rest}
    reader.add(operator, op, (source,), constants=constants, window=window, **limits)


def _dense(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.FullyConnectedOptions)
    if options.WeightsFormat() != 0:
        raise FedtinyError(f"{operator.called}: shuffled weights are not supported")
    weight, rest = _weights(reader, operator, 2, 0)
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, Op.DENSE, (reader.source(operator),), constants={"weight": weight, **rest}, **limits)


def _pair(reader: TfliteReader, operator: Operator) -> None:
    add = operator.kind == "ADD"
    options = reader.options(operator, schema.AddOptions if add else schema.MulOptions)
    inputs = (reader.source(operator, 0), reader.source(operator, 1))
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, Op.ADD if add else Op.MUL, inputs, **limits)


def _pool(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.Pool2DOptions)
    window = _window(reader, operator, options, (options.FilterHeight(), options.FilterWidth()), dilated=False)
    op = Op.MAX_POOL if operator.kind == "MAX_POOL_2D" else Op.AVERAGE_POOL
    limits = _limits(operator, options.FusedActivationFunction())
    reader.add(operator, op, (reader.source(operator),), window=window, **limits)


def _mean(reader: TfliteReader, operator: Operator) -> None:
    source, axes = reader.source(operator), reader.constant(operator, 1)
    shape = reader.tensors[source].shape
    if sorted(int(axis) % (len(shape) + 1) for axis in np.ravel(axes)) != list(range(1, len(shape))):
        raise FedtinyError(f"{operator.called}: a mean must be over height and width of an image")
    if len(shape) == 2:  # a signal is an image of one row
        source = reader.view(source, (1, *shape))
    keep = int(bool(reader.options(operator, schema.ReducerOptions).KeepDims()))
    reader.add(operator, Op.MEAN, (source,), settings={"keep": keep})


def _pad(reader: TfliteReader, operator: Operator) -> None:
    source, pads, steps = reader.source(operator), reader.constant(operator, 1), 0.0
    if pads.ndim != 2 or pads.shape[1] != 2 or pads[0].any():
        raise FedtinyError(f"{operator.called}: pads of shape {pads.shape}, or of the batch")
    if reader.has(operator, 2):
        quant = reader.tensors[source].quant
        assert quant is not None
        steps = float(int(reader.constant(operator, 2, np.int8).reshape(-1)[0]) - quant.zero_point)
    constants = {"pads": pads[1:].astype(np.int64)}
    reader.add(operator, Op.PAD, (source,), constants=constants, pad_value=steps)


def _concat(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.ConcatenationOptions)
    inputs = tuple(reader.source(operator, place) for place in range(len(operator.inputs)))
    if not inputs or options.FusedActivationFunction():
        raise FedtinyError(f"{operator.called} joins nothing, or clamps")
    sides = len(reader.tensors[inputs[0]].shape) + 1
    if not -sides <= options.Axis() < sides or options.Axis() % sides == 0:
        raise FedtinyError(f"{operator.called}: cannot join along side {options.Axis()}")
    reader.add(operator, Op.CONCAT, inputs, settings={"axis": options.Axis() % sides - 1})


def _reshape(reader: TfliteReader, operator: Operator) -> None:
    """What is wanted stands in the output's own shape."""
    target = reader.activation(operator.outputs[0]).shape
    reader.add(operator, Op.RESHAPE, (reader.source(operator),), constants={"shape": np.array(target)})


def _transpose(reader: TfliteReader, operator: Operator) -> None:
    order = [int(side) for side in np.ravel(reader.constant(operator, 1))]
    if not order or order[0] != 0:
        raise FedtinyError(f"{operator.called}: the batch must stay first, not {order}")
    constants = {"order": np.array(order[1:]) - 1}
    reader.add(operator, Op.TRANSPOSE, (reader.source(operator),), constants=constants)


def _resize(reader: TfliteReader, operator: Operator) -> None:
    options = reader.options(operator, schema.ResizeNearestNeighborOptions)
    size = np.ravel(reader.constant(operator, 1))
    if size.size != 2 or size.min() < 1:
        raise FedtinyError(f"{operator.called}: the new size must be two numbers above 0")
    settings = {"height": float(size[0]), "width": float(size[1])}
    settings |= {"half_pixel": float(options.HalfPixelCenters()), "align_corners": float(options.AlignCorners())}
    reader.add(operator, Op.RESIZE, (reader.source(operator),), settings=settings)


def _unary(reader: TfliteReader, operator: Operator) -> None:
    source = (reader.source(operator),)
    if operator.kind == "LEAKY_RELU":
        alpha = float(reader.options(operator, schema.LeakyReluOptions).Alpha())
        if not 0.0 <= alpha <= 100.0:
            raise FedtinyError(f"{operator.called}: alpha {alpha} is not between 0 and 100")
        reader.add(operator, Op.LEAKY_RELU, source, settings={"alpha": alpha})
    elif operator.kind == "SOFTMAX":
        beta = float(reader.options(operator, schema.SoftmaxOptions).Beta())
        if not 0.0 < beta <= 100.0:
            raise FedtinyError(f"{operator.called}: beta {beta} is not between 0 and 100")
        reader.add(operator, Op.SOFTMAX, source, settings={"beta": beta})
    else:
        reader.add(operator, Op.HARD_SWISH if operator.kind == "HARD_SWISH" else Op.LOGISTIC, source)


def _relu(reader: TfliteReader, operator: Operator) -> None:
    source = reader.source(operator)
    high = 6.0 if operator.kind == "RELU6" else None
    if high and reader.tensors[source].quant != reader.activation(operator.outputs[0]).quant:
        raise FedtinyError(f"{operator.called} changes the scale, which the kernel does not do")
    reader.add(operator, Op.RELU, (source,), low=0.0, high=high)


def _quantize(reader: TfliteReader, operator: Operator) -> None:
    """Float or uint8 to int8 at the edge, or other steps in between."""
    index, output = reader._index(operator, 0), operator.outputs[0]
    target = reader.activation(output)
    if index == reader.float_input and index not in reader.written:
        reader.tensors[target.name] = target
        reader.written[index] = reader.written[output] = target.name
        return
    if reader.tensor(index).kind == FLOAT32:
        raise FedtinyError(f"{operator.called} quantises a float tensor inside the network: quantise all of it")
    source = reader.source(operator)
    if output in reader.written:
        raise FedtinyError(f"tensor {target.name} is written twice")
    if reader.tensors[source].quant == target.quant and reader.tensors[source].shape == target.shape:
        reader.written[output] = source
    else:
        reader.add(operator, Op.REQUANTIZE, (source,))


def _dequantize(reader: TfliteReader, operator: Operator) -> None:
    if operator.outputs[0] in reader.written:
        raise FedtinyError(f"{operator.called} writes a tensor twice")
    reader.written[operator.outputs[0]] = reader.source(operator)


def _shape_arithmetic(reader: TfliteReader, operator: Operator) -> None:
    """What makes the target of a reshape at run time; the output's own shape says it too."""
    if reader.tensor(operator.outputs[0]).kind != schema.TensorType.INT32:
        raise FedtinyError(f"{operator.called} is supported on shapes only")


READERS: Mapping[str, Read] = {
    "ADD": _pair,
    "AVERAGE_POOL_2D": _pool,
    "CONCATENATION": _concat,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEQUANTIZE": _dequantize,
    "EXPAND_DIMS": _reshape,
    "FULLY_CONNECTED": _dense,
    "HARD_SWISH": _unary,
    "LEAKY_RELU": _unary,
    "LOGISTIC": _unary,
    "MAX_POOL_2D": _pool,
    "MEAN": _mean,
    "MUL": _pair,
    "PACK": _shape_arithmetic,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RELU6": _relu,
    "RESHAPE": _reshape,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SHAPE": _shape_arithmetic,
    "SOFTMAX": _unary,
    "SQUEEZE": _reshape,
    "STRIDED_SLICE": _shape_arithmetic,
    "TRANSPOSE": _transpose,
}
