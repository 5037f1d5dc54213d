"""TensorFlow's own converter on the same network: the same outputs, and a file that is no smaller than ours."""

from __future__ import annotations

import importlib.util
import json
import sys

import networks
import numpy as np
import oracles
import pytest
from benchmark import script
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph import reference
from fedtiny_export.graph.evaluate import Samples, calibrate, to_int8
from fedtiny_export.graph.ir import Graph, Op, Window
from fedtiny_export.quant.quantize import quantize
from fedtiny_export.tflite.read import read_tflite
from fedtiny_export.tflite.write import write_tflite
from networks import Builder
from runs import make_run
from test_export_command import call

HERE = importlib.util.find_spec("tensorflow") is not None


@pytest.fixture
def tensorflow(need_extra):
    need_extra("tensorflow", "tensorflow")
    return importlib.import_module("tensorflow")


def _everything() -> Graph:
    b = Builder((8, 8, 4), 0)
    b.conv(8, 3, 2)
    b.depthwise(2, (3, 3), pads=(1, 1, 1, 1), low=0.0, high=6.0)
    first = b.conv(8, 1, low=None)
    b.add(Op.LEAKY_RELU, settings={"alpha": 0.1})
    b.add(Op.MAX_POOL, window=Window((2, 2), (2, 2)))
    b.add(Op.RESIZE, settings={"height": 4, "width": 4, "half_pixel": 1.0})
    joined = b.add(Op.CONCAT, b.last, first, settings={"axis": 2})
    gate = b.add(Op.LOGISTIC)
    b.add(Op.MUL, joined, gate)
    b.add(Op.PAD, constants={"pads": np.array([[0, 1], [1, 0], [0, 0]])})
    b.add(Op.AVERAGE_POOL, window=Window((2, 2), (1, 1)))
    b.conv(8, 3, pads=(0, 1, 1, 0))
    b.add(Op.MEAN)
    b.dense(6)
    b.add(Op.SOFTMAX, settings={"beta": 1.0})
    return b.float_graph()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "every operator"])
def test_the_outputs_are_the_same_bytes(name, tensorflow, tmp_path):
    from fedtiny_export.tflite.by_tensorflow import convert

    exact = networks.residual_float(2, 0.4) if name == "residual" else _everything()
    shape = exact.tensors["input"].shape
    samples = Samples(np.random.default_rng(0).uniform(-2, 2, (100, *shape)), None)
    coarse = quantize(exact, calibrate(exact, samples))
    theirs, ours = convert(exact, coarse), write_tflite(coarse)
    (tmp_path / "m.tflite").write_bytes(theirs)
    read = read_tflite(tmp_path / "m.tflite")
    inputs = to_int8(coarse, samples.x)
    expected = reference.run(coarse, inputs).reshape(100, -1)
    assert len(np.unique(expected)) > 10
    assert np.array_equal(reference.run(read, inputs).reshape(100, -1), expected)
    assert np.array_equal(oracles.tflite_micro(theirs, inputs), expected)
    assert len(ours) <= 1.01 * len(theirs)
    spent = script("quantised").ledger(theirs)
    assert sum(spent.values()) == len(theirs)
    assert min(spent[name] for name in ("steps of biases", "names", "signature", "metadata", "empty buffers")) > 0
    # nothing else makes the two differ, but that TensorFlow holds equal paddings once: 96 bytes of a file of 6 KB
    assert abs(spent["left"] - len(ours)) <= (0.01 * len(ours) if name == "residual" else 96)
    assert abs(len(write_tflite(read)) - len(ours)) <= 0.01 * len(ours)


@pytest.mark.slow
def test_the_command_writes_tensorflows_file(tensorflow, tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("fedtiny", "tensorflow"):
        for runtime in ("ft", "tflm"):
            folder = tmp_path / f"{name}-{runtime}"
            assert call(run, "--target", "esp32", "--out", folder, "--converter", name, "--runtime", runtime) == 0
    reports = [json.loads((tmp_path / f"{n}-ft/report.json").read_text()) for n in ("fedtiny", "tensorflow")]
    assert abs(reports[0]["accuracy"]["int8"] - reports[1]["accuracy"]["int8"]) <= 0.01
    assert "model.tflite is TensorFlow's own conversion of the same network" in reports[1]["notes"]
    files = [(tmp_path / f"{n}-ft/model.tflite").read_bytes() for n in ("fedtiny", "tensorflow")]
    assert files[0] != files[1]
    golden = np.load(tmp_path / "tensorflow-ft/golden.npz")
    count = len(golden["inputs"])
    assert np.array_equal(oracles.tflite_micro(files[1], golden["inputs"]), golden["outputs"].reshape(count, -1))
    assert (tmp_path / "tensorflow-tflm/model_ops.h").is_file()


def test_without_tensorflow_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    run = make_run(tmp_path / "run")
    assert call(run, "--target", "esp32", "--out", tmp_path / "o", "--converter", "tensorflow") == 6
    assert capsys.readouterr().err.strip() == (
        "error: --converter tensorflow needs TensorFlow: pip install 'fedtiny[tensorflow]'"
    )
    assert not (tmp_path / "o").exists()


def test_what_does_not_go_with_it_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    given = ("--target", "esp32", "--out", tmp_path / "o", "--converter", "tensorflow")
    (tmp_path / "m.tflite").write_bytes(write_tflite(networks.residual(0)))
    assert call(tmp_path / "m.tflite", *given) == 2
    assert call(run, *given, "--explain") == 2
    assert call(run, *given, "--runtime", "tflm-decode") == 2
    assert capsys.readouterr().err.count("leave out --converter") == 3
    assert not (tmp_path / "o").exists()


def test_a_pool_that_tensorflow_has_not_is_refused(monkeypatch):
    """Its padding is asked about before TensorFlow is."""
    from fedtiny_export.tflite.by_tensorflow import _pool

    builder = Builder((6, 6, 2), 0)
    builder.add(Op.MAX_POOL, window=Window((3, 3), (1, 1), (2, 2, 0, 0)))
    node = builder.nodes[0]
    with pytest.raises(FedtinyError, match="has no pool with this padding"):
        _pool("MAX")(None, node, [None], (6, 6, 2))
