"""numpy reference = TFLite Micro = LiteRT (with its one switch) = the C runtime, byte for byte, on random networks."""

from __future__ import annotations

import networks
import numpy as np
import oracles
import pytest
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.file import read_weights, write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.fixed_point import quantize_multiplier, requantize
from fedtiny_export.graph.ir import Graph, Node, Op, Quant, Tensor
from fedtiny_export.graph.ops.sums import weighted_sums
from fedtiny_export.tflite.write import write_tflite
from networks import Builder, residual, samples

CASES = [(seed, density, pad) for seed in range(2) for density in (1.0, 0.3, 0.05) for pad in (0.0, 0.4)]


def agree(graph: Graph, host_runtime, count: int = 60) -> None:
    """TFLite Micro and the C runtime give the reference's bytes."""
    inputs = samples(graph, count)
    expected = reference.run(graph, inputs)
    assert np.array_equal(oracles.tflite_micro(write_tflite(graph), inputs), expected.reshape(count, -1))
    assert host_runtime.run(write_ftm(graph, {}).data, inputs)[2] == expected.tobytes()


@pytest.mark.parametrize(("seed", "density", "pad_value"), CASES)
def test_a_residual_network_agrees_everywhere(seed, density, pad_value, host_runtime):
    graph = residual(seed, density, pad_value, widths=(7, 10) if density > 0.1 else (20, 30))
    inputs = samples(graph, 100)
    expected = reference.run(graph, inputs)
    assert len(np.unique(expected)) > 15, "a saturated network would prove nothing"
    model = write_tflite(graph)
    assert np.array_equal(oracles.tflite_micro(model, inputs), expected.reshape(100, -1))
    once = reference.run(graph, inputs, single_rounding_dense=True)
    assert np.array_equal(oracles.litert(model, inputs), once.reshape(100, -1))
    status, arena, outputs = host_runtime.run(write_ftm(graph, {}).data, inputs)
    assert status == 0
    assert arena == write_ftm(graph, {}).plan.arena_bytes
    assert outputs == expected.tobytes()


@pytest.mark.parametrize("shape", [(2, 2, 6), (3, 4, 5), (5, 5, 3), (7, 8, 1), (1, 1, 9)])
def test_means_of_every_size_agree(shape, host_runtime):
    for seed in range(3):
        builder = Builder(shape, seed)
        builder.add(networks.Op.MEAN)
        graph = builder.int8(low=-1.0 if seed else 0.0)
        agree(graph, host_runtime)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [(1, 1, (0, 0, 0, 0)), (3, 2, (1, 1, 1, 1)), (5, 1, (0, 2, 3, 1)), (2, 3, (1, 0, 0, 1)), (3, 1, (2, 2, 2, 2))],
)
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_any_window_agrees(kernel, stride, pads, density, host_runtime):
    builder = Builder((7, 9, 3), 5, density)
    builder.conv(6, kernel, stride, pads, low=None)
    graph = builder.int8()
    agree(graph, host_runtime)


def test_a_dense_layer_reads_an_image_flat(host_runtime):
    builder = Builder((4, 3, 2), 1, 0.5)
    builder.conv(3)
    builder.dense(4)
    graph = builder.int8()
    agree(graph, host_runtime)


def only(kernel: Kernel) -> dict[Kernel, int]:
    """Code sizes with which every layer that can takes a kernel."""
    return {other: 0 if other is kernel else 10**9 for other in Kernel}


WIDTHS = [(12, 9, 4), (37, 50, 10), (8, 3), (5, 1), (7, 2, 65, 7), (640, 128, 8, 640), (700, 2)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_dense_layers_of_every_size_agree_in_every_encoding(widths, host_runtime):
    for density in (1.0, 0.2):
        graph = networks.perceptron(len(widths), widths, density)
        inputs = samples(graph, 40)
        expected = reference.run(graph, inputs)
        assert np.array_equal(oracles.tflite_micro(write_tflite(graph), inputs), expected.reshape(40, -1))
        for kernel in (Kernel.VECTOR, *networks.CONV_KERNELS):
            written = write_ftm(graph, only(kernel))
            assert written.kernels == (kernel,)
            assert host_runtime.run(written.data, inputs)[2] == expected.tobytes(), kernel


def test_dense_layers_that_clamp_agree_in_every_encoding(host_runtime):
    for seed in range(4):
        graph = networks.every_vector(seed, 0.5)
        inputs = samples(graph, 40)
        expected = reference.run(graph, inputs)
        assert len(np.unique(expected)) > 15
        for kernel in (Kernel.VECTOR, *networks.CONV_KERNELS):
            assert host_runtime.run(write_ftm(graph, only(kernel)).data, inputs)[2] == expected.tobytes(), kernel


def test_a_dense_layer_of_the_largest_products(host_runtime):
    """Nine times -128 * -128 is 147,456, and the bias -147,392; half of the difference of 64 is 32."""
    constants = {
        "weight": np.full((5, 9), -128, np.int8),
        "weight_scale": np.ones(5, np.float32),
        "bias": np.full(5, -147_392, np.int32),
    }
    tensors = {"input": Tensor("input", (1, 1, 9), Quant(1.0, 0)), "y": Tensor("y", (5,), Quant(2.0, 0))}
    graph = Graph((Node(Op.DENSE, "y", ("input",), "y", constants),), tensors, "input", "y")
    inputs = np.full((1, 1, 1, 9), -128, np.int8)
    for kernel in (Kernel.VECTOR, *networks.CONV_KERNELS):
        assert host_runtime.run(write_ftm(graph, only(kernel)).data, inputs)[2] == bytes([32] * 5), kernel


def test_flash_that_allows_only_word_loads_gives_the_same_bytes(host_runtime):
    cases = [(residual(3, density), {}) for density in (1.0, 0.3, 0.05)]
    vectors = (networks.every_vector(), networks.perceptron(1, (640, 12, 5)))
    for graph, code in [*cases, *((graph, only(Kernel.VECTOR)) for graph in vectors)]:
        inputs = samples(graph, 20)
        model = write_ftm(graph, code).data
        words_only = host_runtime.run(model, inputs, "-DFT_MODEL_WORDS_ONLY=1")
        assert words_only == host_runtime.run(model, inputs)


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_every_encoding_gives_the_same_outputs_and_loses_no_weight(density, host_runtime):
    graph = residual(7, density)
    inputs = samples(graph, 20)
    expected = reference.run(graph, inputs).tobytes()
    kernels = networks.CONV_KERNELS
    for forced in kernels:
        written = write_ftm(graph, {kernel: 0 if kernel is forced else 10**9 for kernel in kernels})
        assert host_runtime.run(written.data, inputs)[2] == expected
        for index, weights in read_weights(written.data).items():
            assert np.array_equal(weights, written.plan.graph.nodes[index].constants["weight"].reshape(weights.shape))


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_single_output_is_exact_too(kind, host_runtime):
    """One scale is per-tensor quantisation to TFLite's kernels: they then insist on a scale for the bias."""
    for seed in range(12):
        builder = Builder((5, 5, 3), seed)
        builder.dense(1) if kind == "dense" else builder.conv(1, low=None)
        graph = builder.int8()
        agree(graph, host_runtime)


def test_a_tensor_added_to_itself_and_read_twice_agrees(host_runtime):
    builder = Builder((6, 6, 4), 2)
    first = builder.conv(4, low=None)
    twice = builder.add(networks.Op.ADD, first, first)
    builder.conv(4, source=twice)
    builder.add(networks.Op.ADD, builder.last, first, low=0.0)
    graph = builder.int8()
    agree(graph, host_runtime)


def _one_weight(data_scale: float, weight_scale: float, output_scale: float, bias: int) -> Graph:
    constants = {
        "weight": np.array([[1]], np.int8),
        "weight_scale": np.array([weight_scale], np.float32),
        "bias": np.array([bias], np.int32),
    }
    tensors = {
        "input": Tensor("input", (1,), Quant(data_scale, 0)),
        "y": Tensor("y", (1,), Quant(output_scale, 0)),
    }
    return Graph((Node(Op.DENSE, "y", ("input",), "y", constants),), tensors, "input", "y")


def test_a_single_dense_output_multiplies_its_scales_in_double_precision():
    """Sums are placed where a 32-bit product of the scales would round to another int8 than the 64-bit one."""
    random, found = np.random.default_rng(0), 0
    while found < 5:
        scales = [float(np.float32(v)) for v in random.uniform(0.001, 0.1, 2)]
        output_scale = float(np.float32(scales[0] * scales[1] * 8000))
        multiplier, shift = quantize_multiplier(scales[0] * scales[1] / output_scale)
        sums = np.arange(-1_000_000, 1_000_000, dtype=np.int64)
        short = quantize_multiplier(float(np.float32(scales[0]) * np.float32(scales[1])) / output_scale)
        apart = sums[requantize(sums, multiplier, shift) != requantize(sums, *short)]
        if not apart.size:
            continue
        graph = _one_weight(*scales, output_scale, int(apart[0]))
        zero = np.zeros((1, 1), np.int8)
        assert oracles.tflite_micro(write_tflite(graph), zero)[0, 0] == reference.run(graph, zero)[0, 0]
        found += 1


@pytest.mark.parametrize("weights", [517, 520, 2000])
def test_sums_are_whole_whatever_floats_add_them(weights):
    """255 * 127 * 518 is just over 2^24, where 32-bit floats begin to leave out odd numbers."""
    random = np.random.default_rng(weights)
    constants = {"weight": np.full((3, weights), 127, np.int8), "bias": np.array([1, -1, 0], np.int32)}
    constants["weight"][1:, 0] = [126, -127]
    node = Node(Op.DENSE, "d", ("input",), "y", constants)
    tensors = {"input": Tensor("input", (weights,), Quant(1.0, -128))}
    data = np.full((40, weights), 127)
    data[1:] -= random.integers(0, 3, (39, weights))
    wanted = (data + 128) @ constants["weight"].astype(np.int64).T + constants["bias"]
    assert np.array_equal(weighted_sums(node, data, tensors), wanted)
    assert wanted.max() > (1 << 24) - (1 << 18)
