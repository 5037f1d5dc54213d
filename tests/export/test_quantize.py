"""Quantisation: zeros stay zeros, zero is exact, sums fit 32 bits, and pads carry a folded shift."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph.ir import Graph, Node, Op, Tensor, Window
from fedtiny_export.quant.calibration import Observed, read_ranges
from fedtiny_export.quant.quantize import quantize
from fedtiny_export.quant.scales import activation_quant
from hypothesis import given
from hypothesis import strategies as st
from networks import residual, residual_float

REAL = st.floats(-1e4, 1e4, allow_nan=False)


@given(REAL, REAL)
def test_zero_is_a_whole_number_and_the_range_is_covered(a, b):
    quant = activation_quant(min(a, b), max(a, b))
    assert -128 <= quant.zero_point <= 127
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    reach = (quant.scale * (-128 - quant.zero_point), quant.scale * (127 - quant.zero_point))
    assert reach[0] <= low + quant.scale
    assert reach[1] >= high - quant.scale


def test_the_digits_input_is_sixteen_over_255():
    quant = activation_quant(0.0, 16.0)
    assert quant.scale == float(np.float32(16 / 255))
    assert quant.zero_point == -128


def test_a_mask_survives_in_every_tensor():
    for density in (0.01, 0.1, 0.5):
        pairs = zip(residual_float(0, density).nodes, residual(0, density).nodes, strict=True)
        for before, after in ((b.constants["weight"], a.constants["weight"]) for b, a in pairs if b.constants):
            assert after.dtype == np.int8
            assert not np.any(after[before == 0]), "a pruned weight came back"
            large = np.abs(before) > np.abs(before).max() / 2
            assert np.all(after[large] != 0), "a weight that matters was lost"


def _dense(weight, bias) -> Graph:
    constants = {"weight": np.asarray(weight, np.float32), "bias": np.asarray(bias, np.float32)}
    node = Node(Op.DENSE, "d", ("input",), "y", constants)
    return Graph((node,), {"input": Tensor("input", (2,)), "y": Tensor("y", (len(bias),))}, "input", "y")


def test_zero_weights_stay_zero_beside_tiny_ones():
    graph = quantize(_dense([[1.0, 0.0], [0.0, 1e-3]], [0, 0]), {"input": (0, 1), "y": (0, 1)})
    assert graph.nodes[0].constants["weight"].tolist() == [[127, 0], [0, 127]]


def test_a_bias_far_larger_than_its_weights_still_fits():
    graph = quantize(_dense([[1e-9, 0.0], [1.0, 1.0]], [100.0, 0]), {"input": (0, 1), "y": (0, 100)})
    bias, scale = graph.nodes[0].constants["bias"], graph.nodes[0].constants["weight_scale"]
    assert abs(int(bias[0])) < 2**31
    assert bias[0] * float(scale[0]) / 255 == pytest.approx(100.0, rel=1e-6)


def test_a_channel_without_weights_keeps_a_precise_bias():
    graph = quantize(_dense([[0.0, 0.0], [0.5, 0.1]], [0.3, 0]), {"input": (0, 1), "y": (0, 1)})
    scale = float(graph.nodes[0].constants["weight_scale"][0]) / 255
    assert abs(int(graph.nodes[0].constants["bias"][0]) * scale - 0.3) < 1e-4


def test_a_missing_range_names_the_tensor():
    with pytest.raises(FedtinyError, match="no range for tensor y"):
        quantize(_dense([[1.0, 0.0]], [0]), {"input": (0, 1)})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "[" * 100_000,
        '{"a": {"min": 1' + "0" * 400 + ', "max": 1}}',
        '{"a": 3}',
        '{"a": {"min": 1}}',
        '{"a": {"min": 2, "max": 1}}',
        '{"a": {"min": 0, "max": NaN}}',
        '{"a": {"min": 0, "max": 1, "histogram": 3}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, 1]}}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [1, 0], "counts": [1]}}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, Infinity], "counts": [1]}}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, 1], "counts": [0, 0]}}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, 1], "counts": [2, -1]}}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, 1], "counts": [0.5]}}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, 1], "counts": [true]}}}',
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, 1], "counts": [1' + "0" * 30 + "]}}}",
        '{"a": {"min": 0, "max": 1, "histogram": {"edges": [0, 1], "counts": [' + "1," * 2048 + "1]}}}",
    ],
)
def test_broken_range_files_are_refused(content, tmp_path):
    (tmp_path / "ranges.json").write_text(content)
    with pytest.raises(FedtinyError, match=r"ranges\.json"):
        read_ranges(tmp_path / "ranges.json")


def test_ranges_are_read(tmp_path):
    drawn = {"edges": [-1, 2], "counts": [3, 0, 4]}
    content = {"a": {"min": -1, "max": 2, "histogram": {}}, "b": {"min": -1, "max": 2, "histogram": drawn}}
    (tmp_path / "ranges.json").write_text(json.dumps(content))
    found = read_ranges(tmp_path / "ranges.json")
    assert found == {"a": Observed(-1.0, 2.0), "b": Observed(-1.0, 2.0, -1.0, 2.0, (3, 0, 4))}


def test_the_range_is_widened_to_what_is_padded():
    """x + 10 before a padded convolution: the folded one pads with -10, far outside the sensor's range."""
    constants = {"weight": np.ones((1, 3, 3, 1), np.float32), "bias": np.zeros(1, np.float32)}
    node = Node(Op.CONV, "y", ("input",), "y", constants, Window((3, 3), (1, 1), (1, 1, 1, 1)), pad_value=-10.0)
    tensors = {"input": Tensor("input", (4, 4, 1)), "y": Tensor("y", (4, 4, 1))}
    graph = quantize(Graph((node,), tensors, "input", "y"), {"input": (0, 1), "y": (-50, 10)})
    quant = graph.tensors["input"].quant
    assert quant.scale * graph.nodes[0].pad_value == pytest.approx(-10.0, abs=quant.scale)


@pytest.mark.parametrize("name", ["t3", "t8", "t9"])
def test_a_range_far_too_fine_is_refused_by_the_tensors_name(name):
    """An addition, a mean and a dense layer whose result would need a left shift that overflows."""
    graph = residual_float(0)
    ranges = dict.fromkeys(graph.tensors, (-1.0, 1.0)) | {name: (-1e-11, 1e-11)}
    with pytest.raises(FedtinyError, match=f"tensor {name} .* far finer"):
        quantize(graph, ranges)
