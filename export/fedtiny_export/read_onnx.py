"""ONNX file -> float Graph. Channels-first layouts end here: weights and shapes leave this module channels last.

Supports what fedtiny-train writes and the same operators from elsewhere; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .abi import MAX_KERNEL_HEIGHT
from .errors import FedtinyError
from .ir import MAX_ELEMENTS, Array, Graph, Node, Op, Tensor, Window, output_shape

MAX_FILE_BYTES = 1 << 30
Floats = NDArray[np.float32]


def read_onnx(path: Path) -> Graph:
    """Read a network with one float input and one float output."""
    import onnx

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FedtinyError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes")
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model)
        return _Reader(model.graph).graph()
    except FedtinyError as error:
        raise FedtinyError(f"{path}: {error}") from None
    except OSError as error:
        raise FedtinyError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # the parser and the checker raise many types of their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FedtinyError(f"{path}: not a usable ONNX file: {first[:200]}") from None


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[1], shape[2], shape[0]) if len(shape) == 3 else shape


class _Reader:
    """Walks the ONNX nodes once, in file order, and collects operators and shapes."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._constants: dict[str, Array] = {}
        self._nodes: list[Node] = []
        self._tensors: dict[str, Tensor] = {}
        self._flat_from: dict[str, tuple[int, ...]] = {}
        for initializer in graph.initializer:
            self._constants[initializer.name] = self._array(initializer)

    @staticmethod
    def _array(proto: Any) -> Array:
        import onnx

        if proto.data_location == onnx.TensorProto.EXTERNAL:
            raise FedtinyError(f"initializer {proto.name} is stored outside the file, which is not supported")
        if int(np.prod([int(d) for d in proto.dims], dtype=object) if proto.dims else 1) > MAX_ELEMENTS:
            raise FedtinyError(f"initializer {proto.name} is too large")
        return np.asarray(onnx.numpy_helper.to_array(proto))

    def graph(self) -> Graph:
        inputs = [item for item in self._graph.input if item.name not in self._constants]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise FedtinyError(f"needs one input and one output, has {len(inputs)} and {len(self._graph.output)}")
        name = inputs[0].name
        dims = [int(dim.dim_value) for dim in inputs[0].type.tensor_type.shape.dim]
        if len(dims) not in (2, 4) or min(dims[1:], default=0) < 1:
            raise FedtinyError(f"input {name} has shape {dims}; (N,C,H,W) or (N,F) with known sizes is needed")
        self._tensors[name] = Tensor(name, _channels_last(tuple(dims[1:])))
        for node in self._graph.node:
            self._read(node)
        return Graph(tuple(self._nodes), self._tensors, name, self._graph.output[0].name)

    def _read(self, node: Any) -> None:
        if node.op_type == "Constant":
            attributes = _attributes(node)
            if "value" not in attributes:
                raise FedtinyError(f"constant {node.output[0]} is not given as a tensor, which is not supported")
            self._constants[node.output[0]] = self._array(attributes["value"])
            return
        reader = _READERS.get(node.op_type)
        name = node.name or node.output[0]
        if reader is None:
            known = ", ".join(sorted(_READERS))
            raise FedtinyError(f"operator {name} of type {node.op_type} is not supported (supported: {known})")
        for given in node.input:
            if given and given not in self._constants and given not in self._tensors:
                raise FedtinyError(f"operator {name} reads {given}, which nothing before it writes")
        reader(self, node, _attributes(node))

    def _data(self, node: Any, index: int) -> str:
        name = str(node.input[index])
        if name not in self._tensors:
            raise FedtinyError(f"operator {node.name or node.output[0]}: input {index} must not be a constant")
        return name

    def _constant(self, node: Any, index: int) -> Floats:
        name = str(node.input[index])
        if name not in self._constants:
            raise FedtinyError(f"operator {node.name or node.output[0]}: input {index} ({name}) must be a constant")
        return np.asarray(self._constants[name], dtype=np.float32)

    def _add(
        self,
        node: Any,
        op: Op,
        inputs: tuple[str, ...],
        constants: Mapping[str, Array] | None = None,
        window: Window | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        output = str(node.output[0])  # unique in a file, which node names need not be
        if output in self._tensors or output in self._constants:
            raise FedtinyError(f"tensor {output} is written twice")
        made = Node(op, output, inputs, output, constants or {}, window or Window(), low, high)
        shape = output_shape(made, [self._tensors[name].shape for name in inputs])
        self._nodes.append(made)
        self._tensors[output] = Tensor(output, shape)

    def conv(self, node: Any, attributes: dict[str, Any]) -> None:
        weight = self._constant(node, 1)
        if weight.ndim != 4:
            raise FedtinyError(f"operator {node.name}: only 2-D convolutions are supported")
        if attributes.get("group", 1) != 1 or set(attributes.get("dilations", [1])) != {1}:
            raise FedtinyError(f"operator {node.name}: grouped and dilated convolutions are not supported")
        if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise FedtinyError(f"operator {node.name}: give explicit pads instead of auto_pad")
        pads, strides = list(attributes.get("pads", [0] * 4)), list(attributes.get("strides", [1, 1]))
        sizes = [*weight.shape[2:], *strides]
        if weight.shape[2] > MAX_KERNEL_HEIGHT:
            raise FedtinyError(f"operator {node.name}: the kernel is {weight.shape[2]} high, over {MAX_KERNEL_HEIGHT}")
        if len(pads) != 4 or len(strides) != 2 or max(pads + sizes) > 255 or min(sizes) < 1 or min(pads) < 0:
            raise FedtinyError(f"operator {node.name}: kernel, strides and pads must lie between 0 and 255")
        window = Window(
            (weight.shape[2], weight.shape[3]), (strides[0], strides[1]), (pads[0], pads[1], pads[2], pads[3])
        )
        bias = self._constant(node, 2) if len(node.input) > 2 else np.zeros(weight.shape[0], np.float32)
        constants = {"weight": np.ascontiguousarray(weight.transpose(0, 2, 3, 1)), "bias": bias}
        self._add(node, Op.CONV, (self._data(node, 0),), constants, window)

    def gemm(self, node: Any, attributes: dict[str, Any]) -> None:
        weight = self._constant(node, 1)
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            raise FedtinyError(f"operator {node.name}: alpha, beta and transA are not supported")
        weight = weight if attributes.get("transB", 0) else weight.T
        self._dense(node, weight, self._constant(node, 2) if len(node.input) > 2 else None)

    def matmul(self, node: Any, attributes: dict[str, Any]) -> None:
        self._dense(node, self._constant(node, 1).T, None)

    def _dense(self, node: Any, weight: Floats, bias: Floats | None) -> None:
        source = self._data(node, 0)
        if weight.ndim != 2:
            raise FedtinyError(f"operator {node.name}: weights of shape {weight.shape} are not a matrix")
        image = self._flat_from.get(source)
        if image is not None and weight.shape[1] == int(np.prod(image)):
            height, width, channels = image
            weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(weight.shape)
        filled = np.zeros(weight.shape[0], np.float32) if bias is None else np.ravel(bias)
        if filled.size == 1:
            filled = np.repeat(filled, weight.shape[0])
        self._add(node, Op.DENSE, (source,), {"weight": np.ascontiguousarray(weight), "bias": filled})

    def batch_norm(self, node: Any, attributes: dict[str, Any]) -> None:
        gamma, beta, mean, variance = (np.ravel(self._constant(node, i)).astype(np.float64) for i in range(1, 5))
        channels = self._tensors[self._data(node, 0)].shape[-1]
        if any(values.shape != (channels,) for values in (gamma, beta, mean, variance)):
            raise FedtinyError(f"operator {node.name}: batch norm needs {channels} numbers of each kind")
        if attributes.get("training_mode", 0) or np.any(variance < 0):
            raise FedtinyError(f"operator {node.name}: batch norm must be in inference mode with variances >= 0")
        scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        self._add(node, Op.BATCH_NORM, (self._data(node, 0),), {"scale": scale, "shift": beta - mean * scale})

    def relu(self, node: Any, attributes: dict[str, Any]) -> None:
        self._add(node, Op.RELU, (self._data(node, 0),), low=0.0)

    def clip(self, node: Any, attributes: dict[str, Any]) -> None:
        limits = [attributes.get("min"), attributes.get("max")]  # attributes up to opset 10, inputs since
        for i in (1, 2):
            if len(node.input) > i and node.input[i]:
                limits[i - 1] = self._number(node, i)
        if any(limit is not None and np.isnan(limit) for limit in limits):
            raise FedtinyError(f"operator {node.name}: a limit is not a number")
        low, high = (None if limit is None or np.isinf(limit) else float(limit) for limit in limits)
        self._add(node, Op.CLIP, (self._data(node, 0),), low=low, high=high)

    def _number(self, node: Any, index: int) -> float:
        value = self._constant(node, index)
        if value.size != 1:
            raise FedtinyError(f"operator {node.name or node.output[0]}: input {index} must be one number")
        return float(value.reshape(()))

    def global_mean(self, node: Any, attributes: dict[str, Any]) -> None:
        self._add(node, Op.MEAN, (self._data(node, 0),))

    def reduce_mean(self, node: Any, attributes: dict[str, Any]) -> None:
        axes = attributes.get("axes")
        if axes is None and len(node.input) > 1 and str(node.input[1]) in self._constants:
            axes = [int(axis) for axis in np.ravel(self._constants[str(node.input[1])])]
        if sorted(axis % 4 for axis in axes or []) != [2, 3]:
            raise FedtinyError(f"operator {node.name}: a mean must be over height and width")
        self._add(node, Op.MEAN, (self._data(node, 0),))

    def flatten(self, node: Any, attributes: dict[str, Any]) -> None:
        source = self._data(node, 0)
        shape = self._tensors[source].shape
        if node.op_type == "Flatten" and attributes.get("axis", 1) != 1:
            raise FedtinyError(f"operator {node.name}: only flattening from axis 1 is supported")
        if node.op_type == "Reshape":
            if len(node.input) < 2:
                raise FedtinyError(
                    f"operator {node.name}: a reshape needs its target as second input (opset 5 or newer)"
                )
            batch, *sides = [int(side) for side in np.ravel(self._constant(node, 1))]
            if batch not in (-1, 0, 1) or sides not in ([-1], [int(np.prod(shape))]) or [batch, *sides] == [-1, -1]:
                raise FedtinyError(f"operator {node.name}: only a reshape to (batch, features) is supported")
        self._add(node, Op.FLATTEN, (source,))
        if len(shape) == 3:
            self._flat_from[str(node.output[0])] = shape

    def identity(self, node: Any, attributes: dict[str, Any]) -> None:
        self._affine(node, self._data(node, 0), 1.0, 0.0)

    def arithmetic(self, node: Any, attributes: dict[str, Any]) -> None:
        first, second = (str(name) for name in node.input)
        if first in self._tensors and second in self._tensors:
            if node.op_type != "Add":
                raise FedtinyError(f"operator {node.name}: {node.op_type} of two activations is not supported")
            self._add(node, Op.ADD, (first, second))
            return
        constant_first = first in self._constants
        value = self._constant(node, 0 if constant_first else 1)
        if value.size != 1 or (constant_first and node.op_type in ("Sub", "Div")):
            raise FedtinyError(f"operator {node.name}: {node.op_type} is supported with one number as second operand")
        number = float(value.reshape(()))
        if node.op_type == "Div" and number == 0.0:
            raise FedtinyError(f"operator {node.name}: division by zero")
        scale, shift = {
            "Add": (1.0, number),
            "Sub": (1.0, -number),
            "Mul": (number, 0.0),
            "Div": (1.0 / (number or 1.0), 0.0),
        }[node.op_type]
        self._affine(node, second if constant_first else first, scale, shift)

    def _affine(self, node: Any, source: str, scale: float, shift: float) -> None:
        constants = {"scale": np.array(scale, np.float64), "shift": np.array(shift, np.float64)}
        self._add(node, Op.AFFINE, (source,), constants)


_READERS: dict[str, Callable[[_Reader, Any, dict[str, Any]], None]] = {
    "Add": _Reader.arithmetic,
    "BatchNormalization": _Reader.batch_norm,
    "Clip": _Reader.clip,
    "Conv": _Reader.conv,
    "Div": _Reader.arithmetic,
    "Dropout": _Reader.identity,
    "Flatten": _Reader.flatten,
    "Gemm": _Reader.gemm,
    "GlobalAveragePool": _Reader.global_mean,
    "Identity": _Reader.identity,
    "MatMul": _Reader.matmul,
    "Mul": _Reader.arithmetic,
    "ReduceMean": _Reader.reduce_mean,
    "Relu": _Reader.relu,
    "Reshape": _Reader.flatten,
    "Sub": _Reader.arithmetic,
}
