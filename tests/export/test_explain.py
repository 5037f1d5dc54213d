"""Signal over noise: numbers by hand, and the layer that was harmed on purpose is the one that is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import export
from fedtiny_export.board.budget import read_report
from fedtiny_export.graph.evaluate import Samples, calibrate
from fedtiny_export.graph.ir import Graph, Node, Op, Tensor
from fedtiny_export.quant.explain import explain, worst
from fedtiny_export.quant.quantize import quantize
from networks import Builder, residual_float
from runs import make_run


def _identity() -> tuple[Graph, Graph]:
    constants = {"weight": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}
    tensors = {name: Tensor(name, (1,)) for name in ("input", "y")}
    graph = Graph((Node(Op.DENSE, "d", ("input",), "y", constants),), tensors, "input", "y")
    return graph, quantize(graph, {"input": (0.0, 255.0), "y": (0.0, 255.0)})


def test_numbers_by_hand():
    """10.4 becomes 10: 20 log10(10.4 / 0.4) = 28.30 dB, all of it the input's fault; the layer itself is exact."""
    exact, coarse = _identity()
    given, layer = explain(exact, coarse, Samples(np.array([[10.4]]), None))
    assert (given.gathered_db, given.output_db) == (28.3, 28.3)
    assert (layer.name, layer.gathered_db, layer.output_db) == ("d", 28.3, None)


def test_nothing_lost_is_said_so():
    exact, coarse = _identity()
    rows = explain(exact, coarse, Samples(np.array([[10.0], [255.0]]), None))
    assert worst(rows) is None
    assert {row.output_db for row in rows} == {None}


@pytest.mark.parametrize("harmed", [0, 1, 2, 4, 5, 6, 8])
def test_the_layer_that_was_harmed_is_named(harmed):
    """One tensor's range is made forty times too wide, so that a handful of steps are left to it."""
    graph = residual_float(3)
    samples = Samples(np.random.default_rng(0).uniform(-1, 1, (40, 8, 8, 1)), None)
    ranges, node = calibrate(graph, samples), graph.nodes[harmed]
    before = worst(explain(graph, quantize(graph, ranges), samples))
    low, high = ranges[node.output]
    rows = explain(graph, quantize(graph, ranges | {node.output: (40 * low, 40 * high)}), samples)
    found = worst(rows)
    assert found.name == node.name
    assert found.output_db < before.output_db - 6.0
    assert rows[0].output_db > found.output_db


def test_noise_gathers_from_layer_to_layer():
    graph = residual_float(1)
    samples = Samples(np.random.default_rng(0).uniform(-1, 1, (40, 8, 8, 1)), None)
    rows = explain(graph, quantize(graph, calibrate(graph, samples)), samples)
    assert len(rows) == 1 + len(graph.nodes)
    assert rows[-1].gathered_db < min(row.output_db for row in rows if row.output_db is not None)
    assert rows[-1].gathered_db > 20.0


def test_an_operator_that_only_changes_steps_has_a_row():
    builder = Builder((4, 4, 3), 0)
    first = builder.conv(3, 1)
    gate = builder.add(Op.LOGISTIC, first)
    builder.add(Op.CONCAT, first, gate, settings={"axis": 2})
    builder.dense(4)
    graph = builder.float_graph()
    samples = Samples(builder.random.uniform(-1, 1, (20, 4, 4, 3)), None)
    coarse = quantize(graph, calibrate(graph, samples))
    rows = explain(graph, coarse, samples)
    assert "requantize" in {row.op for row in rows}
    assert len(rows) == 1 + len(coarse.nodes)


def test_the_command_prints_the_table_and_keeps_it_in_the_report(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert export(run, "--target", "esp32", "--out", tmp_path / "o", "--explain") == 0
    said = capsys.readouterr().out
    assert "signal over noise" in said
    assert " hurts most: alone it leaves " in said
    text = (tmp_path / "o/report.json").read_text()
    noise = json.loads(text)["noise"]
    named = min((row for row in noise if row["output_db"] is not None), key=lambda row: row["output_db"])
    assert f"{named['name']} ({named['op']}) hurts most" in said
    assert read_report(text, "report.json").noise[0].name == "input"
    assert "<h2>Signal over noise</h2>" in (tmp_path / "o/report.html").read_text()


def test_what_cannot_be_explained_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert export(run, "--target", "esp32", "--out", tmp_path / "o") == 0
    assert json.loads((tmp_path / "o/report.json").read_text())["noise"] == []
    capsys.readouterr()
    assert export(tmp_path / "o/model.tflite", "--target", "esp32", "--out", tmp_path / "p", "--explain") == 2
    assert "has no float network to compare it with" in capsys.readouterr().err
    (run / "samples.npz").unlink()
    assert export(run, "--target", "esp32", "--out", tmp_path / "p", "--explain") == 2
    assert "--explain needs samples" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
