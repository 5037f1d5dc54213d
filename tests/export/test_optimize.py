"""Encodings for speed: fewer instructions within the room there is, the same answers, and where pruning pays."""

from __future__ import annotations

from dataclasses import replace

import host_runtime
import numpy as np
import pytest
from fedtiny_export.ftm import sparse
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.code_sizes import load_code_sizes
from fedtiny_export.ftm.cost import features, planned_instructions
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.ftm.optimize import Aim, break_even, expected_bytes, faster, instructions_by_kernel
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import WEIGHTED
from networks import Builder, every_shape, perceptron, residual, samples

M4 = load_code_sizes("cortex-m4")
CODE = M4.kernel_bytes()


def half_dense():
    """A network whose layers are smaller sparse and faster dense."""
    return residual(0, 0.6, shape=(16, 16, 4), widths=(12, 16))


def linked(ftm) -> int:
    return len(ftm.data) + sparse.linked_bytes(CODE, {packed.kernel for packed in ftm.packed.values()})


def instructions(ftm) -> int:
    return planned_instructions(ftm.plan, ftm.packed, M4)


@pytest.mark.parametrize("aim", [Aim.BALANCED, Aim.SPEED])
def test_faster_encodings_give_the_same_answers(aim):
    graph = half_dense()
    small = write_ftm(graph, CODE)
    quick = faster(graph, small, CODE, aim, 1 << 20)
    assert instructions(quick) < instructions(small)
    assert linked(small) < linked(quick)
    inputs = samples(graph, 10)
    assert host_runtime.run(quick.data, inputs)[2] == reference.run(graph, inputs).tobytes()
    if aim is Aim.BALANCED:
        assert linked(quick) <= 1.1 * linked(small)
    else:
        layers = [node for node in graph.nodes if node.op in WEIGHTED]
        best = [min(instructions_by_kernel(small.plan, node).values()) for node in layers]
        now = [instructions_by_kernel(small.plan, node)[quick.packed[node.name].kernel] for node in layers]
        assert now == best


def test_speed_stays_within_the_room():
    graph = half_dense()
    small = write_ftm(graph, CODE)
    most = linked(faster(graph, small, CODE, Aim.SPEED, 1 << 20)) - linked(small)
    assert faster(graph, small, CODE, Aim.SPEED, 0).data == small.data
    part = faster(graph, small, CODE, Aim.SPEED, most - 1)
    assert linked(part) - linked(small) < most
    assert instructions(part) < instructions(small)


def test_a_network_of_dense_layers_links_no_convolution():
    assert write_ftm(perceptron(0, (64, 32, 10)), CODE).kernels == (Kernel.VECTOR,)
    assert CODE[Kernel.VECTOR] < CODE[Kernel.CONV_DENSE]
    assert Kernel.VECTOR not in write_ftm(every_shape(), CODE).kernels, "where one is linked, it does dense layers too"


def test_speed_takes_the_faster_kernel_for_a_dense_layer_behind_convolutions():
    builder = Builder((8, 8, 4), 0)
    builder.conv(8)
    builder.dense(40)
    graph = builder.int8()
    small = write_ftm(graph, CODE)
    assert small.kernels == (Kernel.CONV_DENSE,)
    quick = faster(graph, small, CODE, Aim.SPEED, 1 << 20)
    assert quick.packed["t1"].kernel is Kernel.VECTOR
    assert len(quick.data) == len(small.data)
    # 8 * 8 * 8 * 40 products
    assert instructions(small) - instructions(quick) > 3 * 20_480
    inputs = samples(graph, 10)
    assert host_runtime.run(quick.data, inputs)[2] == reference.run(graph, inputs).tobytes()


def test_the_steps_of_dense_layers():
    """39 inputs of 50 channels, in 13 fours: 9 words and three more; 50 of 10, in 3 fours: 12 words and two more."""
    graph = perceptron(0, (39, 50, 10), 0.5)
    nonzero = sum(int(np.count_nonzero(node.constants["weight"])) for node in graph.nodes)
    found = {
        kernel: {name: count for name, count in features(ftm.plan, ftm.packed).items() if count}
        for kernel in (Kernel.VECTOR, Kernel.CONV_DENSE, Kernel.CONV_RICE)
        for ftm in [write_ftm(graph, {other: 0 if other is kernel else 10**9 for other in Kernel})]
    }
    words, tails = 13 * 9 + 3 * 12, 13 * 3 + 3 * 2
    layers = {"passes": 2, "operators": 2}
    blocks = {"vector_words": words, "vector_tails": tails, "vector_blocks": 16, "vector_channels": 60}
    assert found[Kernel.VECTOR] == layers | blocks
    assert found[Kernel.CONV_DENSE] == layers | {"vector_lines": 60, "vector_dense": 39 * 50 + 50 * 10}
    weights = {"vector_sparse": nonzero, "decoded": nonzero, "rice_decoded": nonzero}
    assert found[Kernel.CONV_RICE] == layers | {"vector_lines": 60} | weights


def test_bytes_expected_of_random_positions():
    random = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.3, 0.8):
        weights = (random.random(40_000) < density).astype(np.int8)
        real = min(size for kernel, size in sparse.sizes(weights).items() if kernel in sparse.SPARSE)
        assert expected_bytes(40_000, density) == pytest.approx(real, rel=0.02)


def test_where_pruning_pays():
    graph = half_dense()
    ftm = write_ftm(graph, CODE)
    node = next(node for node in graph.nodes if node.op in WEIGHTED and node.constants["weight"].shape[-1] > 8)
    pays = break_even(ftm.plan, node)
    assert pays.size == pytest.approx(0.875, abs=0.001)  # a bitmap: an eighth of a byte a weight, and the weights
    random = np.random.default_rng(1)
    shape = node.constants["weight"].shape
    for density, dense_wins in ((pays.speed * 0.9, False), (pays.speed * 1.1, True)):
        weight = (random.random(shape) < density).astype(np.int8)
        again = replace(node, constants={**node.constants, "weight": weight})
        changed = replace(graph, nodes=tuple(again if one is node else one for one in graph.nodes))
        costs = instructions_by_kernel(write_ftm(changed, CODE).plan, again)
        assert (costs[Kernel.CONV_DENSE] < costs[Kernel.CONV_RICE]) == dense_wins
