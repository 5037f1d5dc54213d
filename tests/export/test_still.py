"""Channels that no input moves: found by hand, and read with weights that undo how int8 rounds them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from fedtiny_export.export import quantized, settled
from fedtiny_export.graph import reference
from fedtiny_export.graph.evaluate import Samples, calibrate, run_float, to_int8
from fedtiny_export.graph.ir import Graph, Op
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.quant.quantize import quantize
from fedtiny_export.quant.still import moving_channels, settle
from fedtiny_export.source import PLAIN
from fedtiny_export.tflite.write import write_tflite
from networks import Builder


def _changed(graph: Graph, name: str, **constants: np.ndarray) -> Graph:
    nodes = [
        replace(node, constants={**node.constants, **constants}) if node.output == name else node
        for node in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


def _dead_filter(gain: float = 300.0, value: float = 0.013, side: int = 5) -> Graph:
    """Channel 1 of the first layer is `value` whatever comes; filter 0 behind it reads nothing else, amplified."""
    b = Builder((side, side, 2), 0)
    first = b.conv(3)
    second = b.conv(2, 3, pads=(1, 1, 1, 1))
    b.dense(3)
    graph = b.float_graph()
    weights = {node.output: node.constants["weight"].copy() for node in graph.nodes}
    weights[first][1] = 0.0
    weights[second][0] = 0.0
    weights[second][0, :, :, 1] = gain / 9
    graph = _changed(graph, first, weight=weights[first], bias=np.array([0.1, value, 0.2], np.float32))
    bias = np.array([1.5 - gain * value, 0.0], np.float32)
    return _changed(graph, second, weight=weights[second], bias=bias)


def _source(graph: Graph, x: np.ndarray) -> SimpleNamespace:
    ranges = calibrate(graph, Samples(x, None))
    return SimpleNamespace(is_int8=False, graph=graph, ranges=ranges, wishes=PLAIN, calibration=None)


def test_what_moves_is_found_by_the_weights_that_are_left():
    graph = _dead_filter()
    first, second, last = (node.output for node in graph.nodes)
    # padding with another value than zero, as folded normalisation does, moves nothing either
    padded = replace(graph.nodes[0], pad_value=0.7)
    moving = moving_channels(replace(graph, nodes=(padded, *graph.nodes[1:])))
    assert moving[graph.input].tolist() == [True, True]
    assert moving[first].tolist() == [True, False, True]
    assert moving[second].tolist() == [False, True]  # a plane that differs at its border, but never with the input
    assert moving[last].all()
    values = [run_float(graph, np.full((1, 5, 5, 2), x))[second][0, :, :, 0] for x in (-3.0, 0.5, 7.0)]
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0], values[2])


def test_what_goes_through_a_depthwise_layer_an_addition_and_pools_is_followed():
    b = Builder((8, 8, 2), 0)
    first = b.conv(4)
    b.depthwise(1, (3, 3), pads=(1, 1, 1, 1), low=0.0)
    middle = b.add(Op.ADD, b.last, first)
    b.add(Op.MEAN)
    graph = b.float_graph()
    weight = graph.nodes[0].constants["weight"].copy()
    weight[[0, 2]] = 0.0
    graph = _changed(graph, first, weight=weight)
    weight = graph.nodes[1].constants["weight"].copy()
    weight[[1, 2]] = 0.0
    graph = _changed(graph, graph.nodes[1].output, weight=weight)
    moving = moving_channels(graph)
    assert moving[first].tolist() == [False, True, False, True]
    assert moving[graph.nodes[1].output].tolist() == [False, False, False, True]
    assert moving[middle].tolist() == [False, True, False, True]
    assert moving[graph.output].tolist() == [False, True, False, True]


@pytest.mark.parametrize("value", [0.013, 0.2, 0.0])
def test_a_filter_that_reads_only_a_still_channel_keeps_its_value(value):
    graph = _dead_filter(value=value)
    x = np.random.default_rng(1).normal(size=(40, 5, 5, 2))
    source = _source(graph, x)
    coarse, plain = quantized(source), quantize(graph, source.ranges)
    second = graph.nodes[1].output
    quant = coarse.tensors[second].quant
    wanted = run_float(graph, x[:1])[second][0, :, :, 0]

    def off(network: Graph) -> float:
        held = reference.run_all(network, to_int8(network, x[:1]))[second][0, :, :, 0].astype(np.float64)
        return float(np.abs((held - quant.zero_point) * quant.scale - wanted).max())

    step = plain.tensors[graph.nodes[0].output].quant.scale
    steps_off = abs(round(value / step) * step - value)  # of the channel, which the filter takes 300 times
    if steps_off > 2 * quant.scale / 300:
        assert off(plain) > 300 * steps_off / 2
    assert off(coarse) <= 1.01 * quant.scale  # borders included
    for before, after in zip(graph.nodes, coarse.nodes, strict=True):
        assert not after.constants["weight"][before.constants["weight"] == 0].any()


def test_the_settled_network_agrees_with_tflite_micro():
    x = np.random.default_rng(2).normal(size=(60, 5, 5, 2))
    whole = quantized(_source(_dead_filter(), x))
    graph, inputs = reduce_graph(whole), to_int8(whole, x)
    expected = reference.run(whole, inputs).reshape(60, -1)
    assert len(np.unique(expected)) > 10
    assert np.array_equal(reference.run(graph, inputs).reshape(60, -1), expected)
    assert np.array_equal(oracles.tflite_micro(write_tflite(graph), inputs), expected)


def test_a_network_that_moves_throughout_is_left_as_it_is():
    b = Builder((6, 6, 2), 0)
    b.conv(4)
    b.dense(3)
    graph = b.float_graph()
    source = _source(graph, np.random.default_rng(0).normal(size=(20, 6, 6, 2)))
    assert settled(source) is graph


def test_a_channel_that_int8_has_as_nothing_is_left_alone():
    """No factor makes something of zero: its reader keeps its weights."""
    graph = _dead_filter(value=1e-5, gain=2.0)
    ranges = calibrate(graph, Samples(np.random.default_rng(1).normal(size=(40, 5, 5, 2)), None))
    found = settle(graph, quantize(graph, ranges))
    assert all(a is b for a, b in zip(found.nodes[:2], graph.nodes[:2], strict=True))
