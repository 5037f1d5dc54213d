"""Every operator alone and in random networks: numpy = TFLite Micro = LiteRT = the C runtime, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import host_runtime
import networks
import numpy as np
import oracles
import pytest
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.file import lacking, write_ftm
from fedtiny_export.ftm.sparse import SPARSE
from fedtiny_export.graph import reference
from fedtiny_export.graph.bounds import bounds
from fedtiny_export.graph.ir import Graph, Op, Quant, Window
from fedtiny_export.tflite.write import write_tflite
from networks import Builder

LACKING = ("addition of two shapes", "transpose")


def spread(graph: Graph, count: int = 100, seed: int = 0) -> np.ndarray:
    """Inputs of several amplitudes around the zero point, so that nothing saturates everywhere."""
    random, zero = np.random.default_rng(seed), graph.tensors[graph.input].quant.zero_point
    shape = graph.tensors[graph.input].shape
    steps = [random.normal(0, 2.0 ** (1 + index % 7), shape) for index in range(count)]
    return np.clip(np.round(np.stack(steps)) + zero, -128, 127).astype(np.int8)


def agree(graph: Graph, count: int = 100, seed: int = 0) -> np.ndarray:
    inputs = spread(graph, count, seed)
    model = write_tflite(graph)
    expected = reference.run(graph, inputs)
    found = oracles.tflite_micro(model, inputs)
    assert np.array_equal(found, expected.reshape(count, -1))
    once = reference.run(graph, inputs, single_rounding_dense=True)
    assert np.array_equal(oracles.litert(model, inputs), once.reshape(count, -1))
    assert len(np.unique(expected)) > 8, "a constant output would prove nothing"
    runtime_agrees(graph, inputs, expected)
    return expected


def runtime_agrees(graph: Graph, inputs: np.ndarray, expected: np.ndarray) -> None:
    """With layers in the encoding that is smallest, and with every weight stored; what it lacks is a short list."""
    reason = lacking(graph)
    if reason is not None:
        assert reason.split("kernel for ")[1] in LACKING
        return
    for every_weight in (False, True):
        costs = {kernel: 10**9 * (every_weight and kernel in SPARSE) for kernel in Kernel}
        status, _, found = host_runtime.run(write_ftm(graph, costs).data, inputs)
        assert status == 0
        assert found == expected.tobytes()


def built(shape: tuple[int, ...], seed: int, op: Op, *, settings=None, before=None, low=None, **fields) -> Graph:
    builder = Builder(shape, seed)
    if before:
        before(builder)
    builder.add(op, settings=settings or {}, low=low, **fields)
    return builder.int8(-3.0, 3.0)


SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("stride", "pads"), [((1, 1), (1, 1, 1, 1)), ((2, 1), (0, 2, 1, 0)), ((2, 2), (0, 0, 1, 1))])
@pytest.mark.parametrize("times", [1, 3])
def test_depthwise(seed, stride, pads, times):
    builder = Builder((7, 6, 5), seed)
    builder.depthwise(times, (3, 3), stride, pads, low=0.0 if seed % 2 else None)
    agree(builder.int8())


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_dilation_and_tall_kernels(seed):
    builder = Builder((9, 8, 6), seed)
    builder.grouped(4, 2, (3, 3), dilation=(2, 1), pads=(2, 1, 2, 1))
    builder.depthwise(2, (3, 2), dilation=(1, 2), pads=(0, 0, 1, 0), low=0.0)
    builder.grouped(4, 4, (1, 1))
    agree(builder.int8())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("stride", "dilation"), [((1, 1), (2, 3)), ((2, 1), (3, 1)), ((1, 2), (1, 4)), ((2, 3), (2, 2)), ((3, 2), (1, 3))]
)
def test_dilation(stride, dilation, seed):
    """With strides that are larger, smaller, and a multiple; of odd and even channels, dense and depthwise."""
    builder = Builder((13, 15, 3 + seed), seed, 0.5)
    window = Window((3, 3), (1, 1), (2, 3, 1, 2), dilation)
    builder.add(Op.CONV, constants=builder._weights(6, 3, 3, 3 + seed), window=window, low=0.0)
    builder.depthwise(1, (3, 2), stride, (dilation[0], 1, 1, dilation[1]), dilation, high=0.7)
    builder.conv(4, 1)
    agree(builder.int8(-2.0, 2.0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("op", [Op.MAX_POOL, Op.AVERAGE_POOL])
@pytest.mark.parametrize(
    "window",
    [
        Window((2, 2), (2, 2)),
        Window((3, 2), (1, 2)),
        Window((3, 3), (2, 2), (0, 0, 1, 1)),
        Window((3, 3), (1, 1), (1, 1, 1, 1)),
    ],
)
def test_pools(op, window, seed):
    size = (6, 8, 3) if window.stride == (2, 2) else (6, 7, 3)
    builder = Builder(size, seed)
    if seed % 2:
        builder.conv(4, low=None)
    builder.add(op, window=window)
    agree(builder.int8(-1.0, 2.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_max_pool_with_padding_that_same_cannot_say(seed):
    builder = Builder((7, 7, 3), seed)
    builder.conv(3, low=None)
    builder.add(Op.MAX_POOL, window=Window((3, 3), (2, 2), (1, 0, 0, 1)))
    agree(builder.int8())


ALONE = {
    "leaky": (Op.LEAKY_RELU, {"alpha": 0.1}),
    "leaky steep": (Op.LEAKY_RELU, {"alpha": 1.7}),
    "hard swish": (Op.HARD_SWISH, {}),
    "logistic": (Op.LOGISTIC, {}),
    "tanh": (Op.TANH, {}),
    "softmax": (Op.SOFTMAX, {"beta": 1.0}),
    "softmax beta": (Op.SOFTMAX, {"beta": 0.3}),
    "mean": (Op.MEAN, {"keep": 1}),
    "mean flat": (Op.MEAN, {"keep": 0}),
    "resize": (Op.RESIZE, {"height": 9, "width": 4}),
    "resize half pixel": (Op.RESIZE, {"height": 10, "width": 9, "half_pixel": 1}),
    "resize align": (Op.RESIZE, {"height": 9, "width": 3, "align_corners": 1}),
}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("case", ALONE)
def test_one_operator_behind_a_convolution(case, seed):
    op, settings = ALONE[case]
    builder = Builder((5, 6, 4), seed)
    builder.conv(6, low=None, kernel=1 + 2 * (seed % 2))
    builder.add(op, settings=settings)
    agree(builder.int8(-0.5 * 2.0 ** (seed % 5), 2.0 ** (seed % 5)))


@pytest.mark.parametrize("ratio", [0.6, 1.3, 2.2, 1e-6, 1e-7])
@pytest.mark.parametrize("scale", [7.9e-9, 1e-7, 3e-7, 1e-5, 0.01, 1.0])
def test_a_hard_swish_of_very_small_steps(scale, ratio):
    """16-bit shifts by 16 bits and more; networks that have collapsed have such steps."""
    builder = Builder((256,), 1)
    builder.add(Op.HARD_SWISH)
    graph = builder.int8()
    steps = {graph.input: scale, graph.output: scale / ratio}
    tensors = {name: replace(graph.tensors[name], quant=Quant(float(np.float32(s)), 3)) for name, s in steps.items()}
    graph = replace(graph, tensors=tensors)
    inputs = np.arange(-128, 128).astype(np.int8)[None]
    expected = reference.run(graph, inputs)
    assert np.array_equal(oracles.tflite_micro(write_tflite(graph), inputs), expected)
    assert np.array_equal(oracles.litert(write_tflite(graph), inputs), expected)


@pytest.mark.parametrize("scale", [0.001, 0.02, 0.1, 0.5, 3.0, 7.0])
@pytest.mark.parametrize("op", [Op.HARD_SWISH, Op.LOGISTIC, Op.TANH, Op.SOFTMAX, Op.LEAKY_RELU])
def test_every_int8_value_through_an_activation_at_every_scale(op, scale):
    builder = Builder((256,), 1)
    builder.add(op, settings={"alpha": 0.2, "beta": 1.0})
    graph = builder.int8(-130 * scale, 125 * scale)
    inputs = np.arange(-128, 128).astype(np.int8)[None]
    expected = reference.run(graph, inputs)
    assert np.array_equal(oracles.tflite_micro(write_tflite(graph), inputs), expected)
    assert np.array_equal(oracles.litert(write_tflite(graph), inputs), expected)
    runtime_agrees(graph, inputs, expected)


NUMBERS = {
    "x + c": (Op.ADD_NUMBER, {"sign": 1.0, "number_sign": 1.0}),
    "x - c": (Op.ADD_NUMBER, {"sign": 1.0, "number_sign": -1.0}),
    "c - x": (Op.ADD_NUMBER, {"sign": -1.0, "number_sign": 1.0}),
    "x * c": (Op.MUL_NUMBER, {}),
}


@pytest.mark.parametrize("number", [(255, 0.004), (-37, 0.3), (-255, 0.01), (0, 1.0), (3, 2.5)])
@pytest.mark.parametrize("case", NUMBERS)
def test_every_int8_value_with_a_number(case, number):
    """Written as .tflite with the number as a constant, in the order that the operator asks for; and read again."""
    op, signs = NUMBERS[case]
    steps, scale = number
    builder = Builder((256,), 1)
    builder.add(Op.RELU, low=0.0)
    graph = builder.int8(-1.3, 1.25)
    settings = {"steps": float(steps), "scale": float(np.float32(scale)), **signs}
    node = replace(graph.nodes[0], op=op, settings=settings, low=None if steps % 2 else 0.0)
    quant = Quant(float(np.float32(0.02 if op is Op.ADD_NUMBER else 0.011)), 7)
    tensors = {**graph.tensors, node.output: replace(graph.tensors[node.output], quant=quant)}
    graph = replace(graph, nodes=(node,), tensors=tensors)
    inputs = np.arange(-128, 128).astype(np.int8)[None]
    model, expected = write_tflite(graph), reference.run(graph, inputs)
    assert np.array_equal(oracles.tflite_micro(model, inputs), expected)
    assert np.array_equal(oracles.litert(model, inputs), expected)
    runtime_agrees(graph, inputs, expected)
    low, high = (end[0] for end in (bounds(graph)[node.output].low[:1], bounds(graph)[node.output].high[:1]))
    assert (low, high) == (expected.min(), expected.max())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("op", [Op.ADD, Op.MUL])
@pytest.mark.parametrize("gate", [False, True])
def test_two_tensors(op, gate, seed):
    builder = Builder((4, 5, 6), seed)
    first = builder.conv(6, low=None)
    second = builder.conv(6, low=0.0, source="input")
    if gate:
        second = builder.add(Op.LOGISTIC, builder.add(Op.MEAN, second))
    builder.add(op, first, second, low=0.0 if seed % 2 else None)
    agree(builder.int8())


@pytest.mark.parametrize("seed", SEEDS)
def test_relu_and_clamps_on_their_own(seed):
    for low, high in ((0.0, None), (0.0, 6.0), (-1.0, 1.0), (-0.3, 0.8), (None, 0.5)):
        builder = Builder((4, 4, 3), seed)
        first = builder.conv(5, low=None)
        clamped = builder.add(Op.RELU, first, low=low, high=high)
        builder.add(Op.ADD, first, clamped)
        agree(builder.int8(-4.0, 4.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_clamps_inside_operators(seed):
    for low, high in ((0.0, 6.0), (-1.0, 1.0), (-0.3, 0.8), (None, 0.5), (0.0, 0.4)):
        builder = Builder((4, 4, 3), seed)
        builder.conv(5, low=low, high=high)
        builder.conv(5, low=low, high=high)
        agree(builder.int8(-9.0, 9.0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concat_of_different_ranges_and_of_a_fixed_scale(axis, seed):
    builder = Builder((4, 4, 3), seed)
    first = builder.conv(3, low=None)
    second = builder.add(Op.LOGISTIC, first)
    third = builder.add(Op.MAX_POOL, first, window=Window((3, 3), (1, 1), (1, 1, 1, 1)))
    joined = builder.add(Op.CONCAT, first, second, third, "input", settings={"axis": axis})
    builder.add(Op.PAD, joined, constants={"pads": np.array([[1, 0], [0, 2], [1, 1]])}, pad_value=0.25)
    builder.conv(4, low=None)
    agree(builder.int8())


@pytest.mark.parametrize("seed", SEEDS)
def test_shapes_change_and_dense_follows(seed):
    builder = Builder((4, 3, 2), seed)
    builder.add(Op.TRANSPOSE, constants={"order": np.array([2, 0, 1])})
    builder.add(Op.RESHAPE, constants={"shape": np.array([3, 4, 2])})
    builder.add(Op.PAD, constants={"pads": np.array([[0, 1], [2, 0], [0, 0]])})
    builder.conv(3)
    builder.dense(7)
    builder.add(Op.SOFTMAX, settings={"beta": 1.0})
    agree(builder.int8())


@pytest.mark.parametrize("seed", range(1, 12))
def test_random_networks(seed):
    agree(networks.anything(seed), 40, seed)
