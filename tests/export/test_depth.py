"""The ways through the kernels' code that a network takes, worked out by hand, and the stack planned for them."""

from __future__ import annotations

from dataclasses import replace

import networks
import numpy as np
import pytest
from benchmark import script
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.code_sizes import CodeSizes
from fedtiny_export.ftm.depth import quick_channels, ways
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.graph.ir import Graph, Op
from networks import Builder


def conv(width: int = 8, channels: int = 8, density: float = 1.0) -> Graph:
    builder = Builder((6, width, 4), 2, density)
    builder.conv(channels, low=None)
    return builder.int8(-2.0, 2.0)


def clamped(graph: Graph) -> Graph:
    return networks.clamped(graph, graph.output)


def depthwise(times: int, width: int = 8, channels: int = 6) -> Graph:
    builder = Builder((6, width, channels), 2)
    builder.depthwise(times, (3, 3), pads=(1, 1, 1, 1), low=None)
    return builder.int8(-2.0, 2.0)


def taken(graph: Graph, kernel: Kernel) -> set[str]:
    wanted = {kernel, Kernel.DEPTHWISE if kernel is Kernel.CONV_DENSE else kernel}
    return set(ways(write_ftm(graph, {k: 0 if k in wanted else 1 << 30 for k in Kernel})))


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (conv(), {"conv_dense"}),
        (conv(width=4), {"conv_dense"}),
        (conv(width=3), {"conv_dense", "conv_dense.slow"}),
        (conv(channels=7), {"conv_dense", "conv_dense.slow"}),
        (clamped(conv()), {"conv_dense", "conv_dense.slow"}),
        (depthwise(1), {"depthwise"}),
        (depthwise(1, width=3), {"depthwise", "depthwise.slow"}),
        (depthwise(1, channels=5), {"depthwise", "depthwise.slow"}),
        (depthwise(2), {"depthwise", "depthwise.slow"}),
    ],
    ids=["blocks", "width 4", "width 3", "odd", "clamped", "pairs", "narrow", "odd pairs", "several"],
)
def test_kernels_with_every_weight(graph, expected):
    assert taken(graph, Kernel.CONV_DENSE) == expected


@pytest.mark.parametrize("kernel", [Kernel.CONV_BITMAP, Kernel.CONV_GAP, Kernel.CONV_RICE])
def test_sparse_kernels(kernel):
    name = kernel.name.lower()
    assert taken(conv(density=0.3), kernel) == {name}
    assert taken(conv(density=0.3, channels=7), kernel) == {name}
    assert taken(conv(width=7, density=0.3), kernel) == {name, f"{name}.slow"}
    assert taken(clamped(conv(density=0.3)), kernel) == {name, f"{name}.slow"}


def test_one_pixel_is_a_way_of_its_own_and_operators_without_weights_are_their_kernel_s():
    builder = Builder((6, 8, 4), 0)
    builder.add(Op.MEAN)
    builder.conv(6, 1, pads=(0, 0, 0, 0), low=None)
    builder.dense(5)
    builder.add(Op.SOFTMAX, settings={"beta": 1.0})
    assert taken(builder.int8(), Kernel.CONV_DENSE) == {"mean", "conv_dense.vector", "softmax"}


def test_a_bias_that_leaves_no_room_in_31_bits_is_rescaled_one_by_one():
    graph = conv(channels=2)
    (node,) = graph.nodes
    most = (1 << 30) - 3 * 3 * 4 * (1 << 14)
    zero_point = graph.tensors[graph.input].quant.zero_point
    folding = zero_point * node.constants["weight"].astype(np.int64).reshape(2, -1).sum(axis=1)
    for bias, expected in ((most - 1, True), (most, False), (1 - most, True), (-most, False)):
        constants = {**node.constants, "bias": (folding + bias).astype(np.int32)}
        plan = write_ftm(replace(graph, nodes=(replace(node, constants=constants),)), {}).plan
        assert quick_channels(plan, plan.graph.nodes[0]).tolist() == [expected] * 2


def test_the_stack_is_that_of_the_deepest_way():
    sizes = CodeSizes("any", "", False, {}, {"mean": 300, "conv_gap": 700, "conv_gap.slow": 760}, {})
    assert sizes.stack_bytes(["mean"]) == 300
    assert sizes.stack_bytes({"mean", "conv_gap"}) == 700
    assert sizes.stack_bytes({"mean", "conv_gap", "conv_gap.slow"}) == 760
    assert CodeSizes("any", "", False, {}, {}, {}).stack_bytes(["mean"]) is None


def test_runs_are_told_apart_by_way():
    module = script("code_sizes")
    runs = [
        (frozenset({"table"}), 400),
        (frozenset({"add", "table"}), 600),
        (frozenset({"conv_gap", "add"}), 850),
        (frozenset({"conv_gap", "conv_gap.slow"}), 900),
        (frozenset({"conv_gap"}), 840),
    ]
    slack = module.MAIN_DIFFERS
    assert module.stack_by_way(runs) == {
        "table": 400 + slack,
        "add": 600 + slack,
        "conv_gap": 850 + slack,
        "conv_gap.slow": 900 + slack,
    }


def test_every_way_has_a_network_that_it_is_measured_with():
    found = set()
    for graph, kernel in networks.one_way_each():
        found |= taken(graph, kernel) if kernel else set(ways(write_ftm(graph, {})))
    convolutions = ["conv_dense", "conv_bitmap", "conv_gap", "conv_rice"]
    expected = {kernel.name.lower() for kernel in Kernel}
    expected |= {f"{name}.vector" for name in convolutions}
    expected |= {f"{name}.slow" for name in (*convolutions, "depthwise")}
    assert found == expected
