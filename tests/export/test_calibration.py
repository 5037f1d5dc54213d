"""Ranges cut by percentile or error, equalised channels, corrected biases: known answers, and what must not change."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError, UsageError
from fedtiny_export.graph import reference
from fedtiny_export.graph.evaluate import Samples, calibrate, run_float, to_int8
from fedtiny_export.graph.ir import WEIGHTED, Graph, Node, Op, Tensor, Window
from fedtiny_export.graph.ops import ARITHMETIC
from fedtiny_export.graph.ops.sums import weighted_sums
from fedtiny_export.quant.bias import correct_biases
from fedtiny_export.quant.calibration import (
    Choice,
    Observed,
    choose_ranges,
    mse_ends,
    observe,
    percentile_ends,
    read_choice,
    read_ranges,
)
from fedtiny_export.quant.equalize import equalize
from fedtiny_export.quant.quantize import quantize
from fedtiny_export.quant.scales import activation_quant
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Builder
from runs import make_run
from test_export_command import call

EDGES = np.arange(101.0)


def test_a_percentile_leaves_out_half_of_the_rest_at_each_end():
    counts = np.array([1.0, 1.0, 6.0, 1.0, 1.0])
    edges = np.arange(-2.0, 4.0)
    assert percentile_ends(counts, edges, 100.0) == (-2.0, 3.0)
    assert percentile_ends(counts, edges, 80.0) == (-1.0, 2.0)
    assert percentile_ends(counts, edges, 60.0) == (0.0, 1.0)
    assert percentile_ends(counts, edges, 81.0) == (-2.0, 3.0)


@pytest.mark.parametrize(("outliers", "high"), [(1, 44.0), (2, 61.0), (100, 98.0), (1000, 99.0), (10_000, 100.0)])
def test_the_least_squared_error_is_where_calculus_says(outliers, high):
    """A million values at 1.5 and k at 99.5: k (99.5 - h)^2 + 10^6 (h / 255)^2 / 12 is least at 99.5 k / (k + 1.2815).

    So many that half a bin of each costs more than a wider step: then nothing is cut.
    """
    counts = np.zeros(100)
    counts[1], counts[99] = 1e6, outliers
    assert mse_ends(counts, EDGES) == (0.0, high)


def test_zeros_of_a_relu_do_not_count_as_rounded():
    """The same values, but nearly all of them in zero's bin: nothing is gained by cutting."""
    counts = np.zeros(100)
    counts[0], counts[1], counts[99] = 1e9, 1e3, 1
    assert mse_ends(counts, EDGES)[1] == 99.0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.sampled_from(["normal", "laplace", "exponential", "uniform"]))
def test_the_range_of_least_error_is_no_worse_than_the_whole(seed, kind):
    random = np.random.default_rng(seed)
    values = getattr(random, kind)(size=4000)
    counts, edges = np.histogram(values, 1024)
    low, high = mse_ends(counts.astype(float), edges)

    def error(quant) -> float:
        steps = np.clip(np.round(values / quant.scale) + quant.zero_point, -128, 127)
        return float((((steps - quant.zero_point) * quant.scale - values) ** 2).sum())

    whole = error(activation_quant(values.min(), values.max()))
    assert error(activation_quant(low, high)) <= 1.05 * whole  # a bin is a quarter of a step


def test_the_federations_histograms_and_samples_go_the_same_way(tmp_path):
    """The same values counted by clients and by us give the same ranges, whichever the way."""
    graph, samples = _network(), _samples()
    found = observe(graph, samples, histograms=True)
    content = {
        name: {"min": o.low, "max": o.high, "histogram": {"edges": [o.first, o.last], "counts": list(o.counts)}}
        for name, o in found.items()
    }
    (tmp_path / "ranges.json").write_text(json.dumps(content))
    assert choose_ranges(graph, found) == choose_ranges(graph, found, Choice("mse"))
    assert choose_ranges(graph, found) != choose_ranges(graph, found, Choice("minmax"))
    for way in ("auto", "minmax", "percentile:99", "mse"):
        choice = read_choice(way)
        ranges = choose_ranges(graph, found, choice)
        assert choose_ranges(graph, read_ranges(tmp_path / "ranges.json"), choice) == ranges
        assert ranges["input"] == (found["input"].low, found["input"].high)
        assert ranges[graph.output] == (found[graph.output].low, found[graph.output].high)
    assert all(sum(one.counts) == 64 * graph.tensors[name].elements for name, one in found.items())
    cut = choose_ranges(graph, found, Choice("percentile", 90.0))
    assert any(cut[name][1] < found[name].high for name in cut)
    assert all(found[name].low <= low <= high <= found[name].high for name, (low, high) in cut.items())


def test_a_range_without_a_histogram_can_only_be_taken_whole():
    graph = _network()
    known = {name: Observed(-1.0, 1.0) for name in graph.tensors}
    assert set(choose_ranges(graph, known).values()) == {(-1.0, 1.0)}
    assert set(choose_ranges(graph, known, Choice("minmax")).values()) == {(-1.0, 1.0)}
    with pytest.raises(FedtinyError, match=r"tensor t0 has no histogram: export with --ranges minmax"):
        choose_ranges(graph, known, Choice("mse"))


def test_a_constant_tensor_keeps_its_range():
    known = {"t0": Observed(2.0, 2.0, 2.0, 2.0, (9, 0))}
    assert choose_ranges(_network(), known, Choice("mse")) == {"t0": (2.0, 2.0)}


@pytest.mark.parametrize("text", ["", "max", "percentile:", "percentile:x", "percentile:50", "percentile:101", "mse:3"])
def test_other_ways_are_refused(text):
    if text == "percentile:":
        assert read_choice(text) == Choice("percentile", 99.99)
        return
    with pytest.raises(UsageError, match=f"--ranges {text}: give auto, minmax, percentile:SHARE or mse"):
        read_choice(text)


def _network(seed: int = 0) -> Graph:
    """Channels of very different sizes that matter alike: each layer undoes the sizes of the one before."""
    b = Builder((6, 6, 3), seed, density=0.7)
    b.conv(8)
    b.depthwise(1, (3, 3), pads=(1, 1, 1, 1), low=0.0)
    b.conv(8, 1)
    b.add(Op.MAX_POOL, window=Window((2, 2), (2, 2)))
    b.conv(8)
    b.add(Op.MEAN)
    b.dense(5)
    nodes, before = [], np.ones(3)
    for node in b.float_graph().nodes:
        if "weight" in node.constants:
            weight, bias = node.constants["weight"], node.constants["bias"]
            size = 4.0 ** b.random.uniform(-3, 0, len(bias)) if len(bias) == 8 else np.ones(len(bias))
            back = 1 / before if node.op is not Op.DEPTHWISE else (1 / before).reshape(-1, 1, 1, 1)
            weight = weight * back * size.reshape(-1, *[1] * (weight.ndim - 1))
            constants = {"weight": weight.astype(np.float32), "bias": (bias * size).astype(np.float32)}
            node, before = replace(node, constants=constants), size
        nodes.append(node)
    return Graph(tuple(nodes), b.tensors, "input", b.last)


def _samples(count: int = 64) -> Samples:
    return Samples(np.random.default_rng(1).uniform(-1, 1, (count, 6, 6, 3)), None)


def _noise(exact: Graph, coarse: Graph, x: np.ndarray) -> float:
    wanted, quant = run_float(exact, x)[exact.output], coarse.tensors[coarse.output].quant
    given_back = (reference.run(coarse, to_int8(coarse, x)).astype(float) - quant.zero_point) * quant.scale
    return float(((given_back - wanted) ** 2).mean() / (wanted**2).mean())


def test_equalising_changes_no_bit_of_the_float_network_and_moves_no_zero():
    graph = _network()
    other = equalize(graph, _samples())
    x = _samples(16).x
    assert np.array_equal(run_float(graph, x)[graph.output], run_float(other, x)[graph.output])
    changed = 0
    for before, after in zip(graph.nodes, other.nodes, strict=True):
        for name, values in before.constants.items():
            assert np.array_equal(values == 0, after.constants[name] == 0)
            changed += not np.array_equal(values, after.constants[name])
    assert changed >= 8


def test_equalised_channels_lose_less_to_int8():
    for seed in range(4):
        graph, samples = _network(seed), _samples()
        other = equalize(graph, samples)
        before = _noise(graph, quantize(graph, calibrate(graph, samples)), samples.x)
        after = _noise(other, quantize(other, calibrate(other, samples)), samples.x)
        assert after < 0.8 * before, seed


def test_factors_by_hand():
    """Channels that reach 1 and 1/16 before weights 1 and 1: sqrt gives factors 1 and 1/4."""
    one = {"weight": np.array([[1.0, 0.0], [0.0, 0.0625]], np.float32), "bias": np.zeros(2, np.float32)}
    two = {"weight": np.array([[1.0, 1.0]], np.float32), "bias": np.zeros(1, np.float32)}
    nodes = (Node(Op.DENSE, "a", ("input",), "a", one, low=0.0), Node(Op.DENSE, "b", ("a",), "b", two))
    tensors = {"input": Tensor("input", (2,)), "a": Tensor("a", (2,)), "b": Tensor("b", (1,))}
    graph = equalize(Graph(nodes, tensors, "input", "b"), Samples(np.array([[1.0, 1.0], [0.5, -1.0]]), None))
    assert graph.nodes[0].constants["weight"].tolist() == [[1.0, 0.0], [0.0, 0.25]]
    assert graph.nodes[1].constants["weight"].tolist() == [[1.0, 0.25]]


def test_a_clamp_at_six_and_a_second_reader_are_left_alone():
    for high, second_reader in ((6.0, False), (None, True)):
        b = Builder((4, 4, 2), 0)
        first = b.conv(4, 1, high=high)
        b.conv(4, 1, low=None)
        if second_reader:
            b.add(Op.ADD, b.last, first)
        graph = b.float_graph()
        other = equalize(graph, Samples(np.random.default_rng(0).normal(size=(8, 4, 4, 2)), None))
        for before, after in zip(graph.nodes, other.nodes, strict=True):
            for name, values in before.constants.items():
                assert np.array_equal(values, after.constants[name])


def test_a_corrected_bias_by_hand():
    """0.3 beside 1 becomes 38/127 = 0.2992: over an input of 100 the output lacks 0.0787, and gets it back."""
    constants = {"weight": np.array([[1.0, 0.3]], np.float32), "bias": np.zeros(1, np.float32)}
    tensors = {"input": Tensor("input", (2,)), "y": Tensor("y", (1,))}
    graph = Graph((Node(Op.DENSE, "y", ("input",), "y", constants),), tensors, "input", "y")
    coarse = quantize(graph, {"input": (0.0, 255.0), "y": (0.0, 255.0)})
    corrected = correct_biases(graph, coarse, Samples(np.array([[0.0, 100.0]]), None))
    assert coarse.nodes[0].constants["bias"].tolist() == [0]
    assert corrected.nodes[0].constants["bias"].tolist() == [round((30.0 - 38 / 127 * 100) * 127)]
    assert np.array_equal(corrected.nodes[0].constants["weight"], coarse.nodes[0].constants["weight"])


@pytest.mark.parametrize("seed", range(3))
def test_corrected_layers_have_the_float_networks_means_to_half_a_step(seed):
    graph, samples = _network(seed), _samples()
    coarse = quantize(graph, calibrate(graph, samples))
    corrected = correct_biases(graph, coarse, samples)
    real, off = run_float(graph, samples.x), [0.0, 0.0]
    for place, one in enumerate((coarse, corrected)):
        values = reference.run_all(one, to_int8(one, samples.x))
        for node, exact in zip(one.nodes, graph.nodes, strict=True):
            if node.op in WEIGHTED:
                wanted = ARITHMETIC[exact.op].real(exact, [real[exact.inputs[0]]])
                sums = weighted_sums(node, values[node.inputs[0]].astype(np.int64), one.tensors)
                step = one.tensors[node.inputs[0]].quant.scale * node.constants["weight_scale"].astype(float)
                means = [v.reshape(-1, v.shape[-1]).mean(axis=0) for v in (sums * step, wanted)]
                off[place] = max(off[place], float((np.abs(means[0] - means[1]) / step).max()))
    assert off[1] < 0.5 + 1e-6
    assert off[0] > 5.0


def test_the_command_takes_all_of_it_and_says_so(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    x = np.random.default_rng(3).integers(0, 17, (40, 8, 8))
    np.savez(tmp_path / "c.npz", x=x)
    given = ("--calibration", tmp_path / "c.npz", "--ranges", "mse", "--equalize", "--correct-bias")
    assert call(run, "--target", "esp32", "--out", tmp_path / "o", *given) == 0
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert {"activation ranges: mse", "channels were equalised between layers", "biases were corrected"} <= set(
        report["notes"]
    )
    assert report["accuracy"]["int8"] >= report["accuracy"]["float"] - 0.05
    capsys.readouterr()
    assert call(run, "--target", "esp32", "--out", tmp_path / "p", "--equalize") == 2
    assert "give --calibration FILE.npz" in capsys.readouterr().err
    assert call(run, "--target", "esp32", "--out", tmp_path / "p", "--ranges", "mse") == 1
    assert "has no histogram" in capsys.readouterr().err
    assert call(tmp_path / "o/model.tflite", "--target", "esp32", "--out", tmp_path / "p", "--correct-bias") == 2
    assert "is int8 already: leave out" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
