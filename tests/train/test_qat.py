"""Rounding in training is the exporter's rounding: the same tensors, the same steps, nearly the same answers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fedtiny_export.graph import reference
from fedtiny_export.graph.evaluate import to_int8
from fedtiny_export.graph.passes import simplify
from fedtiny_export.onnx_in.read import read_onnx
from fedtiny_export.quant.calibration import Choice
from fedtiny_export.quant.quantize import quantize
from fedtiny_export.source import PLAIN, Wishes, read_source

from fedtiny_train import calibrate, models, onnx_out, qat
from fedtiny_train.models import ModelSpec
from fedtiny_train.trace import steps

NETWORKS = {
    "resnet8": (3, 16, 16),
    "resnet18": (3, 16, 16),
    "vgg11": (3, 32, 32),
    "mobilenetv1": (3, 32, 32),
    "mobilenetv2": (3, 32, 32),
    "dscnn": (1, 49, 10),
    "cnn": (3, 20, 20),
    "mlp": (20,),
}


def test_weights_are_rounded_by_output_channel():
    weight = torch.tensor([[1.0, -0.5, 0.003, 0.0], [0.0, 0.0, 0.0, 0.0], [0.2, -0.4, 0.1, 0.4]], requires_grad=True)
    found = qat.int8_weight(weight)
    # steps of 1/127: 0.5 is 63.5 of them, which goes to the even 64; 0.003 is 0.38 of one. Then steps of 0.4/127.
    wanted = torch.tensor([[127, -64, 0, 0], [0, 0, 0, 0], [64 * 0.4, -127 * 0.4, 32 * 0.4, 127 * 0.4]]) / 127
    assert torch.allclose(found, wanted, atol=1e-7)
    (found * torch.arange(12.0).reshape(3, 4)).sum().backward()
    assert torch.equal(weight.grad, torch.arange(12.0).reshape(3, 4))


def trained(name: str, tmp_path: Path) -> tuple[torch.nn.Module, Path, np.ndarray]:
    """Return a network of random weights whose batch norms have seen data, its ONNX file, and the data."""
    spec = ModelSpec(name, NETWORKS[name], 5, 8)
    model = models.shared(spec)
    models.load(model, models.initial_state(spec, 0))
    x = np.random.default_rng(0).normal(size=(64, *spec.shape)).astype(np.float32)
    model.train()
    for _ in range(30):
        model(torch.from_numpy(x))
    model.eval()
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_out.to_onnx(spec, models.read(model), {}))
    return model, path, x


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tensors_rounded_are_those_of_the_exported_network(name, tmp_path):
    model, path, _ = trained(name, tmp_path)
    assert set(qat.rounded(steps(model))) == set(simplify(read_onnx(path)).tensors)


@pytest.mark.parametrize("name", ["resnet8", "dscnn", "mlp"])
def test_the_rounded_network_answers_as_the_exported_one(name, tmp_path):
    model, path, x = trained(name, tmp_path)
    rows = calibrate.tensor_ranges(model, x)
    ranges = dict(zip(calibrate.tensor_names(model), map(tuple, rows), strict=True))
    graph = quantize(simplify(read_onnx(path)), ranges)
    last = graph.tensors[graph.output].quant
    channels_last = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
    steps_of_it = reference.run(graph, to_int8(graph, channels_last)).astype(np.float64) - last.zero_point
    int8 = torch.from_numpy(steps_of_it * last.scale).float().reshape(len(x), -1)
    with torch.no_grad():
        real, faked = model(torch.from_numpy(x)), qat.network(model, rows)(torch.from_numpy(x))
    off = [float((one - int8).square().mean()) for one in (real, faked)]
    assert off[1] < off[0] / 2  # what is left is where rounding tips the other way
    assert math.sqrt(off[1]) < 3 * last.scale


def test_a_gradient_stops_where_a_value_was_clipped():
    spec = ModelSpec("mlp", (4,), 3, 8)
    model = models.shared(spec)
    models.load(model, models.initial_state(spec, 0))
    model.eval()
    x = torch.ones(1, 4, requires_grad=True)
    rows = calibrate.tensor_ranges(model, x.detach().numpy())
    qat.network(model, rows)(x).sum().backward()
    assert x.grad.abs().sum() > 0
    rows[0] = 0.0, 0.5  # the input is 1
    x.grad = None
    qat.network(model, rows)(x).sum().backward()
    assert x.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("rounds", "wanted", "last", "first"),
    [(10, False, 0, 11), (10, True, 0, 9), (3, True, 0, 3), (10, True, 4, 7), (10, True, 10, 1)],
)
def test_the_last_rounds_are_in_int8(rounds, wanted, last, first):
    assert qat.first_round(rounds, wanted, last) == first


def ranges_of(folder, wishes=PLAIN):
    return read_source(folder, calibration=None, evaluation=None, wishes=wishes).ranges


def test_a_run_in_int8(tools, run, tmp_path):
    _, small, contents, _ = tools
    out = small(tmp_path / "int8", "--qat", "--qat-rounds", "2")
    before, after = contents(run), contents(out)
    assert before["model.onnx"] != after["model.onnx"]
    lines = [[json.loads(line) for line in files["metrics.jsonl"].splitlines()] for files in (before, after)]
    assert lines[0][:2] == lines[1][:2]  # set-up and round 1
    # round 2 asks all clients for ranges first; round 3 only sends them along
    more = [(b["bytes_down"] - a["bytes_down"], b["bytes_up"] - a["bytes_up"]) for a, b in zip(*lines, strict=True)]
    rows = 16 * (len(json.loads(after["ranges.json"])))
    assert 3 * rows <= more[3][0] < more[2][0]
    assert more[2][1] >= 3 * rows
    # an export of it rounds between the ranges that it was trained between, one of the other run between tighter ones
    for folder, way in ((out, "minmax"), (run, "mse")):
        assert ranges_of(folder) == ranges_of(folder, Wishes(Choice(way)))
    assert ranges_of(run) != ranges_of(run, Wishes(Choice("minmax")))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--qat", "--norm", "scaled"], "norm scaled"),
        (["--qat", "--method", "fedmef"], "norm scaled"),
        (["--qat-rounds", "2"], "give --qat"),
        (["--qat", "--qat-rounds", "4"], "no more than --rounds"),
    ],
)
def test_what_cannot_be_rounded_is_refused(flags, words, tools, tmp_path, capsys):
    train, _, _, usual = tools
    assert train(*usual, "--out", tmp_path / "run", *flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
