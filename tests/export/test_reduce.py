"""Reduction: which channels go, by hand; and that no output byte changes, on random networks and a published one."""

from __future__ import annotations

from dataclasses import replace

import networks
import numpy as np
import oracles
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph import reference
from fedtiny_export.graph.bounds import bounds
from fedtiny_export.graph.ir import Graph, Op, Window
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.tflite.read import read_tflite
from fedtiny_export.tflite.write import write_tflite
from networks import Builder
from test_operators import spread
from test_read_tflite import YARDSTICK


def count(graph: Graph) -> int:
    return sum(node.constants["weight"].size for node in graph.nodes if "weight" in node.constants)


def shapes(graph: Graph) -> list[tuple[int, ...]]:
    return [node.constants["weight"].shape for node in graph.nodes if "weight" in node.constants]


def unchanged(graph: Graph, samples: int = 40) -> Graph:
    """The reduced graph, after comparing bytes."""
    smaller = reduce_graph(graph)
    inputs = np.concatenate([spread(graph, samples), networks.samples(graph, samples)])
    expected = reference.run(graph, inputs)
    assert np.array_equal(reference.run(smaller, inputs), expected)
    found = oracles.tflite_micro(write_tflite(smaller), inputs)
    assert np.array_equal(found, expected.reshape(2 * samples, -1))
    return smaller


def edited(graph: Graph, position: int, **constants) -> Graph:
    nodes = list(graph.nodes)
    nodes[position] = replace(nodes[position], constants={**nodes[position].constants, **constants})
    return replace(graph, nodes=tuple(nodes))


def chain(pads=(0, 0, 0, 0)) -> Graph:
    """Two convolutions of 4 and 3 channels; channels 1 and 2 of the first have no weights."""
    builder = Builder((5, 5, 2), 3)
    builder.conv(4, pads=(0, 0, 0, 0))
    builder.conv(3, pads=pads, low=None)
    graph = builder.int8()
    weight = graph.nodes[0].constants["weight"].copy()
    weight[1:3] = 0
    bias = graph.nodes[0].constants["bias"].copy()
    bias[1], bias[2] = -100_000, 900  # below zero, so cut to the zero point; and above zero
    return edited(graph, 0, weight=weight, bias=bias)


def test_constant_channels_go_into_the_next_bias():
    graph = chain()
    smaller = unchanged(graph)
    assert shapes(smaller) == [(2, 3, 3, 2), (3, 3, 3, 2)]
    value = int(reference.run_all(graph, spread(graph, 1))["t0"][0, 0, 0, 2]) - graph.tensors["t0"].quant.zero_point
    assert value > 0
    extra = value * graph.nodes[1].constants["weight"][..., 2].astype(int).sum(axis=(1, 2))
    assert (smaller.nodes[1].constants["bias"] - graph.nodes[1].constants["bias"]).tolist() == extra.tolist()


def test_a_constant_that_padding_makes_uneven_stays():
    smaller = unchanged(chain(pads=(1, 1, 1, 1)))
    assert shapes(smaller) == [(3, 3, 3, 2), (3, 3, 3, 3)], "only the channel at the zero point, as the padding is"


def test_channels_that_nobody_reads_go_and_what_only_they_read_too():
    builder = Builder((4, 4, 2), 1)
    builder.conv(5, 1, low=None)
    builder.depthwise(1, (3, 3))
    builder.conv(6, 1, low=None)
    builder.dense(3)
    graph = builder.int8()
    dense = graph.nodes[3].constants["weight"].copy().reshape(3, -1, 6)
    dense[:, :, 4:] = 0  # nobody reads channels 4 and 5 of the third operator
    middle = graph.nodes[2].constants["weight"].copy()
    middle[:4, ..., 0] = 0  # and nobody but those reads channel 0 of the second
    graph = edited(edited(graph, 3, weight=dense.reshape(3, -1)), 2, weight=middle)
    assert shapes(unchanged(graph)) == [(4, 1, 1, 2), (4, 3, 3, 1), (4, 1, 1, 4), (3, 2 * 2 * 4)]


def test_an_addition_keeps_what_either_side_needs():
    builder = Builder((4, 4, 2), 2)
    first = builder.conv(4, 1)
    second = builder.conv(4, 1, source="input")
    builder.add(Op.ADD, first, second)
    builder.conv(2, 1, low=None)
    graph = builder.int8()
    for position, dead in ((0, [0, 1]), (1, [1, 2])):
        weight = graph.nodes[position].constants["weight"].copy()
        weight[dead] = 0
        graph = edited(graph, position, weight=weight)
    assert shapes(unchanged(graph)) == [(3, 1, 1, 2), (3, 1, 1, 2), (2, 1, 1, 3)]


def test_joined_channels_go_one_by_one():
    builder = Builder((4, 4, 2), 2)
    first = builder.conv(3, 1)
    second = builder.add(Op.MAX_POOL, first, window=Window((3, 3), (1, 1), (1, 1, 1, 1)))
    builder.add(Op.CONCAT, first, second, settings={"axis": 2})
    builder.conv(4, 1)
    graph = builder.int8()
    weight = graph.nodes[0].constants["weight"].copy()
    weight[1] = 0
    smaller = unchanged(edited(graph, 0, weight=weight))
    assert shapes(smaller) == [(2, 1, 1, 2), (4, 1, 1, 4)]


def test_a_branch_that_is_dead_keeps_one_channel():
    builder = Builder((4, 4, 2), 2)
    first = builder.conv(3, 1)
    second = builder.conv(3, 1, source="input")
    builder.add(Op.CONCAT, first, second, settings={"axis": 2})
    builder.conv(4, 1)
    graph = builder.int8()
    weight = np.zeros_like(graph.nodes[0].constants["weight"])
    assert shapes(unchanged(edited(graph, 0, weight=weight))) == [(1, 1, 1, 2), (3, 1, 1, 2), (4, 1, 1, 4)]


def test_a_network_that_ignores_its_input_is_refused():
    graph = chain()
    dead = edited(graph, 0, weight=np.zeros_like(graph.nodes[0].constants["weight"]))
    with pytest.raises(FedtinyError, match="one and the same output"):
        reduce_graph(dead)


@pytest.mark.parametrize("seed", range(1, 9))
def test_bounds_hold_in_random_networks(seed):
    graph = networks.anything(seed)
    known, inputs = bounds(graph), networks.samples(graph, 60)
    for name, values in reference.run_all(graph, inputs).items():
        assert np.all(values >= known[name].low), name
        assert np.all(values <= known[name].high), name


@pytest.mark.parametrize("seed", range(1, 9))
def test_random_networks_with_dead_channels_keep_every_byte(seed):
    graph, random = networks.anything(seed), np.random.default_rng(seed)
    for position, node in enumerate(graph.nodes):
        if "weight" in node.constants and position < len(graph.nodes) - 2:
            weight = node.constants["weight"].copy()
            weight[random.random(weight.shape[0]) < 0.4] = 0
            weight[..., random.random(weight.shape[-1]) < 0.2] = 0
            graph = edited(graph, position, weight=weight)
    if bounds(graph)[graph.output].constant.all():
        with pytest.raises(FedtinyError, match="one and the same output"):
            reduce_graph(graph)
    else:
        assert count(unchanged(graph)) < count(graph)


if YARDSTICK:

    @pytest.mark.parametrize("path", [p for p in YARDSTICK if p.stem.startswith("vww01")], ids=lambda p: p.stem)
    def test_the_published_sparse_model_shrinks_to_a_seventh(path):
        graph = read_tflite(path)
        smaller = reduce_graph(graph)
        assert count(graph) == 208_112
        assert count(smaller) == 29_066
        inputs = np.concatenate([spread(graph, 60), networks.samples(graph, 40)])
        expected = oracles.tflite_micro(path.read_bytes(), inputs)
        assert len(np.unique(expected)) > 8
        assert np.array_equal(oracles.tflite_micro(write_tflite(smaller), inputs), expected)
