"""Small networks for tests: int8 graphs built from float ones with random weights and measured ranges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.graph.evaluate import run_float
from fedtiny_export.graph.ir import Graph, Node, Op, Tensor, Window, output_shape
from fedtiny_export.quant.quantize import quantize


class Builder:
    """Adds one operator after another and keeps track of shapes."""

    def __init__(self, shape: tuple[int, ...], seed: int, density: float = 1.0, block: int = 1) -> None:
        self.random = np.random.default_rng(seed)
        self.block = block  # input channels that live and die together
        self.density = density
        self.tensors = {"input": Tensor("input", shape)}
        self.nodes: list[Node] = []
        self.last = "input"

    def add(self, op: Op, *inputs: str, **fields) -> str:
        name = f"t{len(self.nodes)}"
        names = inputs or (self.last,)
        node = Node(op, name, names, name, **fields)
        self.tensors[name] = Tensor(name, output_shape(node, [self.tensors[n].shape for n in names]))
        self.nodes.append(node)
        self.last = name
        return name

    def _weights(self, *shape: int) -> dict[str, np.ndarray]:
        block = self.block if shape[-1] % self.block == 0 else 1
        weight = self.random.normal(size=shape)
        weight *= np.repeat(self.random.random((*shape[:-1], shape[-1] // block)) < self.density, block, axis=-1)
        fan = max(1.0, np.prod(shape[1:]) * self.density)
        return {
            "weight": (weight / np.sqrt(fan)).astype(np.float32),
            "bias": self.random.normal(size=shape[0]).astype(np.float32) * 0.2,
        }

    def conv(
        self,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        pads=None,
        low=0.0,
        source: str | None = None,
        **fields,
    ) -> str:
        source = source or self.last
        pads = (kernel // 2,) * 4 if pads is None else pads
        constants = self._weights(channels, kernel, kernel, self.tensors[source].shape[2])
        window = Window((kernel, kernel), (stride, stride), pads)
        return self.add(Op.CONV, source, constants=constants, window=window, low=low, **fields)

    def grouped(
        self, channels: int, groups: int, kernel, stride=(1, 1), pads=(0,) * 4, dilation=(1, 1), **fields
    ) -> str:
        """`channels` times `groups` outputs; as many groups as inputs is left a convolution too."""
        fan_in = self.tensors[self.last].shape[2] // groups
        constants = self._weights(channels * groups, *kernel, fan_in)
        return self.add(Op.CONV, constants=constants, window=Window(kernel, stride, pads, dilation), **fields)

    def depthwise(self, times: int, kernel, stride=(1, 1), pads=(0,) * 4, dilation=(1, 1), **fields) -> str:
        constants = self._weights(times * self.tensors[self.last].shape[2], *kernel, 1)
        return self.add(Op.DEPTHWISE, constants=constants, window=Window(kernel, stride, pads, dilation), **fields)

    def dense(self, features: int, **fields) -> str:
        return self.add(Op.DENSE, constants=self._weights(features, self.tensors[self.last].elements), **fields)

    def float_graph(self) -> Graph:
        return Graph(tuple(self.nodes), self.tensors, "input", self.last)

    def int8(self, low: float = -1.0, high: float = 1.0) -> Graph:
        """Quantise with ranges as a calibration finds them, a little too narrow or too wide as they always are."""
        graph = self.float_graph()
        shape = graph.tensors["input"].shape
        values = run_float(graph, self.random.uniform(low, high, (64, *shape)))
        ranges = {"input": (low, high)}
        for node in self.nodes:
            factor = float(self.random.uniform(0.7, 1.2))
            ranges[node.output] = (factor * float(values[node.output].min()), factor * float(values[node.output].max()))
        return quantize(graph, ranges)


def _residual(seed: int, density: float = 1.0, pad_value: float = 0.0, shape=(8, 8, 1), widths=(6, 8)) -> Builder:
    """A small residual network with every operator we have, odd channel counts and a strided shortcut."""
    b = Builder(shape, seed, density)
    first = b.conv(widths[0], pad_value=pad_value)
    b.conv(widths[0])
    b.conv(widths[0], low=None)
    joined = b.add(Op.ADD, b.last, first, low=0.0)
    b.conv(widths[1], stride=2, pads=(0, 0, 1, 1))
    left = b.conv(widths[1], low=None)
    right = b.conv(widths[1], kernel=1, stride=2, pads=(0, 0, 0, 0), low=None, source=joined)
    b.add(Op.ADD, left, right, low=0.0)
    b.add(Op.MEAN)
    b.dense(5)
    return b


def residual(*arguments, **options) -> Graph:
    """The int8 network."""
    return _residual(*arguments, **options).int8()


def residual_float(*arguments, **options) -> Graph:
    """The same before quantisation."""
    return _residual(*arguments, **options).float_graph()


def anything(seed: int, layers: int = 9) -> Graph:
    """A random chain of operators of every kind, with a branch now and then, ending in a classifier."""
    b = Builder((8, 9, 4), seed, density=0.6)
    random, before = b.random, None
    for _ in range(layers):
        height, width, channels = b.tensors[b.last].shape
        small = min(height, width) < 4
        kind = int(random.integers(0, 11))
        pads = tuple(int(v) for v in random.integers(0, 2, 4))
        stride = (1, 1) if small else (int(random.integers(1, 3)), int(random.integers(1, 3)))
        if kind <= 1:
            b.conv(int(random.integers(2, 9)), 1 if small else 3, low=random.choice([None, 0.0]))
        elif kind == 2:
            b.depthwise(1 + int(channels < 5), (2, 2), stride, (1, 1, pads[2], pads[3]), low=0.0)
        elif kind == 3 and channels % 2 == 0:
            b.grouped(3, 2, (1, 1), stride)
        elif kind == 4:
            b.add(Op.MAX_POOL, window=Window((2, 2), (1, 1), pads))
        elif kind == 5 and not small:
            b.add(Op.AVERAGE_POOL, window=Window((3, 2), stride))
        elif kind == 6:
            last, op = b.last, (Op.HARD_SWISH, Op.LOGISTIC, Op.LEAKY_RELU, Op.RELU)[seed % 4]
            b.add(op, settings={"alpha": 0.2}, low=0.0 if op is Op.RELU else None)
            if op is Op.LOGISTIC:
                b.add(Op.MUL, last, b.last)
        elif kind == 7 and before and b.tensors[before].shape == b.tensors[b.last].shape:
            b.add(Op.MUL if seed % 2 else Op.ADD, before, b.last)
        elif kind == 8 and before and b.tensors[before].shape[:2] == b.tensors[b.last].shape[:2]:
            b.add(Op.CONCAT, before, b.last, settings={"axis": 2})
        elif kind == 9 and small:
            b.add(Op.RESIZE, settings={"height": 2 * height, "width": 2 * width})
        else:
            before = b.conv(channels, 1, low=None)
            b.conv(channels, 3)
    b.dense(6)
    b.add(Op.SOFTMAX, settings={"beta": 1.0})
    return b.int8(-2.0, 2.0)


def streamed(seed: int, density: float = 1.0, shape=(16, 16, 3), width: int = 8) -> Graph:
    """One residual block at full size, whose rows the planner hands from operator to operator, and a smaller end."""
    b = Builder(shape, seed, density)
    first = b.conv(width)
    b.conv(width)
    b.conv(width, low=None)
    b.add(Op.ADD, b.last, first, low=0.0)
    b.conv(width, stride=2, pads=(0, 0, 1, 1))
    b.add(Op.MEAN)
    b.dense(5)
    return b.int8()


def separable(seed: int, shape=(12, 12, 3), width: int = 8, times: int = 1) -> Graph:
    """Depthwise and 1x1 convolutions in turn, as MobileNets have them, with strides and channels of their own."""
    b = Builder(shape, seed)
    b.conv(width, stride=2, pads=(0, 0, 1, 1))
    b.depthwise(times, (3, 3), pads=(1, 1, 1, 1), low=0.0)
    b.conv(2 * width, 1)
    b.depthwise(1, (3, 3), (2, 2), (0, 0, 1, 1), low=0.0)
    b.conv(2 * width, 1)
    b.depthwise(1, (2, 3), (1, 2), (1, 0, 0, 2), high=0.8)
    b.add(Op.AVERAGE_POOL, window=Window((2, 2), (2, 1)))
    b.dense(10)
    b.add(Op.SOFTMAX, settings={"beta": 1.0})
    return b.int8()


def every_operator(seed: int, side: int = 8) -> Graph:
    """All operators without weights, joined and repeated in every way."""
    b = Builder((side, side + 1, 4), seed)
    b.add(Op.PAD, constants={"pads": np.array([[1, 0], [0, 2], [0, 0]])})
    first = b.conv(6, 3, low=None)
    gate = b.add(Op.LOGISTIC)
    left = b.add(Op.MUL, first, gate)
    right = b.add(Op.HARD_SWISH, b.conv(6, 1, low=None, source=first))
    joined = b.add(Op.CONCAT, left, right, first, settings={"axis": 2})
    b.add(Op.MEAN)
    b.conv(18, 1, pads=(0,) * 4, low=None)
    b.add(Op.LOGISTIC)
    b.add(Op.MUL, joined, b.last)
    b.add(Op.MAX_POOL, window=Window((3, 2), (2, 2), (1, 0, 1, 1)))
    b.add(Op.LEAKY_RELU, settings={"alpha": 0.2})
    high, wide, _ = b.tensors[b.last].shape
    b.add(Op.RESIZE, settings={"height": 2 * high, "width": wide + 2})
    b.add(Op.AVERAGE_POOL, window=Window((3, 3), (2, 2), (1, 1, 0, 0)))
    b.add(Op.RELU, high=0.5)
    b.add(Op.CONCAT, b.last, b.last, settings={"axis": 0})
    elements = b.tensors[b.last].elements
    b.add(Op.RESHAPE, constants={"shape": np.array([elements])})
    b.dense(7)
    b.add(Op.SOFTMAX, settings={"beta": 1.5})
    return b.int8()


def every_shape() -> Graph:
    """Layers of every shape that the kernels tell apart: odd channels and widths, strides, a window of one pixel,
    clamped outputs, rows handed on, and a dense layer."""
    b = Builder((9, 11, 3), 7, 0.5)
    first = b.conv(4)
    b.conv(5)
    b.conv(4, low=None)
    b.add(Op.ADD, b.last, first, low=0.0)
    b.conv(7, stride=2)
    b.conv(6, 1, high=0.4)
    b.conv(8, 3, 1, (0, 0, 0, 0), low=None)
    b.dense(6)
    return b.int8(-2.0, 2.0)


def one_way_each() -> list[tuple[Graph, Kernel | None]]:
    """Networks that take one way through the kernels (depth.py), the encoding it takes them in; tables beside some."""

    def conv(width: int, density: float) -> Graph:
        b = Builder((8, width, 4), 1, density)
        b.conv(8, low=None)
        return b.int8(-2.0, 2.0)

    def depthwise(width: int) -> Graph:
        b = Builder((8, width, 8), 1)
        b.depthwise(1, (3, 3), pads=(1, 1, 1, 1), low=None)
        return b.int8(-2.0, 2.0)

    def vectors(density: float, kernel: Kernel) -> list[tuple[Graph, Kernel]]:
        b = Builder((40,), 1, density)
        b.dense(7)
        graph = b.int8()
        return [(graph, kernel), (clamped(graph, graph.output), kernel)]

    def plain(op: Op, shape: tuple[int, ...] = (8, 8, 4), **fields) -> Graph:
        b = Builder(shape, 0)
        b.add(op, **fields)
        return b.int8()

    def gated(op: Op) -> Graph:
        b = Builder((8, 8, 4), 1)
        b.add(op, "input", b.add(Op.LOGISTIC))
        return b.int8()

    weighted = [(conv(8, 1.0), Kernel.CONV_DENSE), (conv(3, 1.0), Kernel.CONV_DENSE)]
    weighted += vectors(1.0, Kernel.CONV_DENSE) + vectors(1.0, Kernel.VECTOR)
    weighted += [(depthwise(width), Kernel.CONV_DENSE) for width in (8, 3)]
    for kernel in CONV_KERNELS[1:]:
        weighted += [(conv(8, 0.3), kernel), (conv(5, 0.3), kernel), *vectors(0.3, kernel)]
    pool = Window((2, 2), (2, 2))
    bare = [plain(Op.MAX_POOL, window=pool), plain(Op.AVERAGE_POOL, window=pool), plain(Op.MEAN), plain(Op.LOGISTIC)]
    bare += [plain(Op.SOFTMAX, (10,), settings={"beta": 1.0}), gated(Op.ADD), gated(Op.MUL)]
    bare.append(plain(Op.RESIZE, settings={"height": 16, "width": 16}))
    bare.append(plain(Op.PAD, constants={"pads": np.array([[1, 1], [1, 1], [0, 0]])}))
    return [*weighted, *((graph, None) for graph in bare)]


def ic01(density: float, seed: int = 0, block: int = 1) -> Graph:
    """MLPerf Tiny's image classification network with random weights, the first convolution dense."""
    b = Builder((32, 32, 3), seed, block=block)
    first = b.conv(16)
    b.density = density
    b.conv(16)
    b.conv(16, low=None)
    last = b.add(Op.ADD, b.last, first, low=0.0)
    for width in (32, 64):
        b.conv(width, stride=2, pads=(0, 0, 1, 1))
        left = b.conv(width, low=None)
        right = b.conv(width, kernel=1, stride=2, pads=(0, 0, 0, 0), low=None, source=last)
        last = b.add(Op.ADD, left, right, low=0.0)
    b.add(Op.MEAN)
    b.dense(10)
    return b.int8()


def perceptron(seed: int, widths: tuple[int, ...], density: float = 1.0) -> Graph:
    """Dense layers only, clamped from below but for the last."""
    b = Builder((1, 1, widths[0]), seed, density)
    for width in widths[1:-1]:
        b.dense(width, low=0.0)
    b.dense(widths[-1])
    return b.int8()


def every_vector(seed: int = 0, density: float = 1.0) -> Graph:
    """Dense layers that end in the middle of a word, of fewer channels than are made at once, and two that clamp."""
    b = Builder((1, 1, 37), seed, density)
    for width in (50, 10, 3, 64, 9, 2, 11):
        b.dense(width)
    return clamped(clamped(b.int8(), "t2"), "t3")


def clamped(graph: Graph, name: str) -> Graph:
    """A layer that clamps its outputs to -60..40: a calibration leaves none that would."""
    quant = graph.tensors[name].quant
    low, high = (quant.scale * (value - quant.zero_point) for value in (-60, 40))
    nodes = (replace(node, low=low, high=high) if node.name == name else node for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def ad01(density: float = 1.0, seed: int = 0) -> Graph:
    """MLPerf Tiny's anomaly detection network, an autoencoder, with random weights."""
    return perceptron(seed, (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640), density)


def dscnn(seed: int = 0) -> Graph:
    """MLPerf Tiny's keyword spotting network with random weights."""
    b = Builder((49, 10, 1), seed)
    b.add(Op.CONV, constants=b._weights(64, 10, 4, 1), window=Window((10, 4), (2, 2), (4, 1, 5, 1)), low=0.0)
    for _ in range(4):
        b.depthwise(1, (3, 3), pads=(1, 1, 1, 1), low=0.0)
        b.conv(64, 1)
    b.add(Op.AVERAGE_POOL, window=Window((25, 5), (25, 5)))
    b.dense(12)
    b.add(Op.SOFTMAX, settings={"beta": 1.0})
    return b.int8()


def samples(graph: Graph, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (count, *graph.tensors[graph.input].shape), np.int8)


CONV_KERNELS = (Kernel.CONV_DENSE, Kernel.CONV_BITMAP, Kernel.CONV_GAP, Kernel.CONV_RICE)
