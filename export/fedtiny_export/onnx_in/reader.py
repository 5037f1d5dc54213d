"""The state of reading one ONNX graph: constants, tensors and operators so far, and how ONNX saw each tensor.

Channels-first layouts end here: shapes in the Graph are channels last, a one-dimensional signal is an image of one
row. A flattened image keeps the order of channels last until something asks for ONNX's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError
from ..graph.ir import MAX_ELEMENTS, Array, Graph, Node, Op, Tensor, Window, output_shape

Floats = NDArray[np.float32]
Attributes = Mapping[str, Any]


def channels_last(sides: tuple[int, ...]) -> tuple[int, ...]:
    """ONNX's sides without the batch as the Graph has them."""
    if len(sides) == 3:
        return (sides[1], sides[2], sides[0])
    return (1, sides[1], sides[0]) if len(sides) == 2 else sides


def called(node: Any) -> str:
    """What an error calls an ONNX node."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


class OnnxReader:
    """Collects operators and shapes; the functions in layers.py and simple.py fill it."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.alias: dict[str, str] = {}  # ONNX name -> name in the Graph, where they differ
        self.rank: dict[str, int] = {}  # how many sides ONNX gives a tensor, without the batch
        self.order: dict[str, tuple[int, ...]] = {}  # flat tensors in channels-last order: the image they came from
        self.gates: dict[str, tuple[str, float, float]] = {}  # a hard sigmoid that may become a hard swish: of what
        self.outputs: frozenset[str] = frozenset()
        self.turned = ""  # what the file turns its channels-last input into

    def name(self, given: str) -> str:
        """The Graph's name of an ONNX tensor."""
        return self.alias.get(given, given)

    def data(self, node: Any, index: int = 0) -> str:
        """The activation that an input names."""
        name = self._settled(self.name(self._input(node, index)))
        if name not in self.tensors:
            raise FedtinyError(f"operator {called(node)}: input {index} must not be a constant")
        return name

    def _settled(self, name: str) -> str:
        """The same name, of a tensor that is there: a hard sigmoid that is read as such is clamped arithmetic."""
        if name in self.gates:
            source, slope, middle = self.gates.pop(name)
            del self.alias[name]
            sloped, constants = self._fresh(f"{name} sloped"), {"scale": np.array(slope), "shift": np.array(middle)}
            self.pointwise(sloped, Op.AFFINE, source, constants=constants)
            self.pointwise(name, Op.RELU, sloped, limits=(0.0, 1.0))
        return name

    def constant(self, node: Any, index: int) -> Array:
        """The constant that an input names."""
        name = self._input(node, index)
        if name not in self.constants:
            raise FedtinyError(f"operator {called(node)}: input {index} ({name}) must be a constant")
        return self.constants[name]

    def floats(self, node: Any, index: int) -> Floats:
        """The same as 32-bit floats."""
        values = self.constant(node, index)
        if values.dtype.kind not in "fiub":
            raise FedtinyError(f"operator {called(node)}: input {index} holds {values.dtype}, not numbers")
        return values.astype(np.float32)

    def integers(self, node: Any, index: int) -> list[int]:
        """The same as a list of whole numbers."""
        values = self.constant(node, index)
        if values.dtype.kind not in "iu" or values.size > 64:
            raise FedtinyError(f"operator {called(node)}: input {index} must be a few whole numbers")
        return [int(value) for value in np.ravel(values)]

    def has(self, node: Any, index: int) -> bool:
        """Whether an optional input is given."""
        return len(node.input) > index and bool(node.input[index])

    def _input(self, node: Any, index: int) -> str:
        if not self.has(node, index):
            raise FedtinyError(f"operator {called(node)} of type {node.op_type} lacks input {index}")
        return str(node.input[index])

    def sides(self, name: str) -> tuple[int, ...]:
        """A tensor's sides in ONNX's order, without the batch."""
        height, width, channels = self.tensors[name].shape if self.rank[name] > 1 else (1, 1, 1)
        by_rank = {2: (channels, width), 3: (channels, height, width)}
        return by_rank.get(self.rank[name], self.tensors[name].shape)

    def declare(self, name: str, sides: tuple[int, ...]) -> None:
        """Enter the input."""
        self.tensors[name] = Tensor(name, channels_last(sides))
        self.rank[name] = len(sides)

    def add(
        self,
        output: str,
        op: Op,
        inputs: tuple[str, ...],
        *,
        constants: Mapping[str, Array] | None = None,
        window: Window | None = None,
        limits: tuple[float | None, float | None] = (None, None),
        settings: Mapping[str, float] | None = None,
        pad_value: float = 0.0,
        rank: int | None = None,
    ) -> str:
        """Append an operator named after its output, which is unique in a file; node names need not be."""
        if output in self.tensors or output in self.constants or output in self.alias:
            raise FedtinyError(f"tensor {output} is written twice")
        made = Node(op, output, inputs, output, constants or {}, window or Window(), *limits, pad_value, settings or {})
        shape = output_shape(made, [self.tensors[name].shape for name in inputs])
        self.tensors[output] = Tensor(output, shape)
        self.nodes.append(made)
        self.rank[output] = self.rank[inputs[0]] if rank is None else rank
        return output

    def pointwise(self, output: str, op: Op, source: str, **fields: Any) -> None:
        """Append an operator that does not care how its input is ordered."""
        self.add(output, op, (source,), **fields)
        if source in self.order:
            self.order[output] = self.order[source]

    def same(self, node: Any, source: str) -> None:
        """The node's output is a name for what another tensor holds."""
        output = str(node.output[0])
        if output in self.tensors or output in self.constants or output in self.alias:
            raise FedtinyError(f"tensor {output} is written twice")
        self.alias[output] = source

    def _fresh(self, stem: str) -> str:
        while stem in self.tensors or stem in self.outputs:
            stem += "'"
        return stem

    def ordered(self, name: str) -> str:
        """The tensor in ONNX's order, by operators of its own where that differs."""
        if name not in self.order:
            return name
        image = self.order[name]
        shape = self.add(
            self._fresh(f"{name} unflat"), Op.RESHAPE, (name,), constants={"shape": np.array(image)}, rank=3
        )
        turned = self._fresh(f"{name} turned")
        self.add(turned, Op.TRANSPOSE, (shape,), constants={"order": np.array([2, 0, 1])}, rank=3)
        size = np.array([self.tensors[name].elements])
        return self.add(self._fresh(f"{name} ordered"), Op.RESHAPE, (turned,), constants={"shape": size}, rank=1)

    def reshape(self, node: Any, source: str, target: tuple[int, ...]) -> None:
        """Give a tensor other sides, in ONNX's order, without the batch."""
        output, before = str(node.output[0]), self.sides(source)
        if int(np.prod(target, dtype=object)) != int(np.prod(before)) or not 1 <= len(target) <= 3 or min(target) < 1:
            raise FedtinyError(
                f"operator {called(node)}: sides {before} cannot become {target} (1 to 3 after the batch)"
            )
        if target == before:
            self.same(node, source)
        elif len(target) == 1:
            self.add(output, Op.FLATTEN, (source,), rank=1)
            height, width, channels = self.tensors[source].shape
            if channels > 1 and height * width > 1:
                self.order[output] = (height, width, channels)
        elif len(before) > 1 and target[0] == before[0]:  # each channel's pixels stay in their order
            shape = np.array(channels_last(target))
            self.add(output, Op.RESHAPE, (source,), constants={"shape": shape}, rank=len(target))
        else:
            self._unflatten(output, self._flat(source), target)

    def _flat(self, source: str) -> str:
        if self.rank[source] == 1:
            return self.ordered(source)
        flat = self.add(self._fresh(f"{source} flat"), Op.FLATTEN, (source,), rank=1)
        height, width, channels = self.tensors[source].shape
        if channels > 1 and height * width > 1:
            self.order[flat] = (height, width, channels)
        return self.ordered(flat)

    def _unflatten(self, output: str, flat: str, target: tuple[int, ...]) -> None:
        height, width, channels = last = channels_last(target)
        if channels == 1 or height * width == 1:
            self.add(output, Op.RESHAPE, (flat,), constants={"shape": np.array(last)}, rank=len(target))
            return
        first = {"shape": np.array((channels, height, width))}
        shaped = self.add(self._fresh(f"{output} unturned"), Op.RESHAPE, (flat,), constants=first, rank=3)
        turn = {"order": np.array([1, 2, 0])}
        self.add(output, Op.TRANSPOSE, (shaped,), constants=turn, rank=len(target))

    def graph(self, source: str, output: str) -> Graph:
        """Everything read, as a checked value."""
        output = self._settled(self.name(output))
        if output not in self.tensors:
            raise FedtinyError(f"nothing writes the output {output}")
        output = self.ordered(output)
        return Graph(tuple(self.nodes), self.tensors, source, output)


def read_constant(proto: Any) -> Array:
    """An initialiser or constant as an array."""
    import onnx

    if int(np.prod([int(d) for d in proto.dims], dtype=object) if proto.dims else 1) > MAX_ELEMENTS:
        raise FedtinyError(f"initializer {proto.name} is too large")
    return np.asarray(onnx.numpy_helper.to_array(proto))
