"""The run folder: what is in it, and that it is the same every time."""

from __future__ import annotations

import hashlib
import io
import json
import tomllib

import numpy as np
import onnx
import pytest
from fedtiny_export.errors import FedtinyError
from onnx.reference import ReferenceEvaluator

from fedtiny_train import rounds
from fedtiny_train.cli import main
from fedtiny_train.server import DivergedError


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_folder_is_complete(run):
    assert {p.name for p in run.iterdir()} == {
        "config.toml", "metrics.jsonl", "timing.json", "state", "model.onnx", "ranges.json", "samples.npz",
        "summary.json", "report.html",
    }  # fmt: skip
    assert sorted(p.name for p in (run / "state").iterdir()) == ["round-00002", "round-00003"]
    summary = summary_of(run)
    assert {"schema", "method", "data", "model", "seed", "accuracy", "accuracy_per_client", "density", "weights",
            "nonzero", "cost", "rounds", "class_names", "normalisation"} <= set(summary)  # fmt: skip
    assert set(summary["cost"]) == {
        "flops_max", "memory_max", "memory", "memory_paper", "bytes_up", "bytes_down",
    }  # fmt: skip
    assert (summary["method"], summary["data"], summary["model"], summary["rounds"]) == (
        "fedtiny",
        "digits",
        "resnet8",
        3,
    )
    assert len(summary["accuracy_per_client"]) == 3
    assert summary["class_names"] == [str(c) for c in range(10)]


def test_metrics_have_a_line_a_round(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    keys = {
        "round",
        "accuracy",
        "loss",
        "density",
        "bytes_up",
        "bytes_down",
        "flops_max",
        "memory_max",
        "memory",
        "memory_paper",
        "clients",
        "refused",
        "invited",
        "counted",
        "accuracy_worst",
        "accuracy_median",
        "accuracy_best",
    }
    assert all(set(line) == keys for line in lines)
    assert all(line["invited"] == [0, 1, 2] and line["counted"] for line in lines)
    assert all(0 < x["accuracy_worst"] <= x["accuracy_median"] <= x["accuracy_best"] <= 1 for x in lines[1:])
    summary = summary_of(run)
    assert summary["cost"]["flops_max"] == max(line["flops_max"] for line in lines)
    assert summary["cost"]["bytes_up"] > sum(line["bytes_up"] for line in lines)  # the closing comes on top
    assert [c["id"] for c in lines[1]["clients"]] == [0, 1, 2]
    assert all(line["refused"] == [] for line in lines)


def test_the_model_has_exactly_the_density(run):
    summary = summary_of(run)
    graph = onnx.load(run / "model.onnx").graph
    weights = [
        onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith(".weight") and len(t.dims) > 1
    ]
    size = sum(w.size for w in weights)
    assert size == summary["weights"]
    assert summary["density"] == int(0.1 * size) / size
    assert sum(np.count_nonzero(w) for w in weights) == summary["nonzero"] <= int(0.1 * size)


def test_the_folded_density_is_that_of_the_exporters_own_folding(run):
    from fedtiny_export.graph.passes import simplify
    from fedtiny_export.onnx_in.read import read_onnx

    summary = json.loads((run / "summary.json").read_text())
    layers = [node.constants["weight"] for node in simplify(read_onnx(run / "model.onnx")).nodes if node.constants]
    assert sum(np.count_nonzero(w) for w in layers) / sum(w.size for w in layers) == summary["density_folded"]


def test_ranges_cover_every_tensor_in_order(run):
    ranges = json.loads((run / "ranges.json").read_text())
    graph = onnx.load(run / "model.onnx").graph
    assert list(ranges) == ["input", *(node.output[0] for node in graph.node)]
    samples = 1442 - 40
    for name, item in ranges.items():
        assert item["min"] <= item["max"]
        assert item["histogram"]["edges"] == [item["min"], item["max"]]
        assert sum(item["histogram"]["counts"]) % samples == 0, name
    assert (ranges["input"]["min"], ranges["input"]["max"]) == (0.0, 16.0)
    assert ranges["stem.relu"]["min"] == 0.0
    assert sum(ranges["input"]["histogram"]["counts"]) == samples * 64


def test_samples_are_raw_and_give_the_accuracy(run):
    with np.load(run / "samples.npz", allow_pickle=False) as samples:
        x, y = samples["x"], samples["y"]
    assert (x.shape, y.shape, x.max()) == ((100, 8, 8), (100,), 16.0)
    found = ReferenceEvaluator(onnx.load(run / "model.onnx"))
    logits = found.run(None, {"input": x[:, None].astype(np.float32)})[0]
    assert abs((logits.argmax(1) == y).mean() - summary_of(run)["accuracy"]) < 0.15


def test_the_mean_lies_on_the_int8_grid_of_the_input(run):
    norm = summary_of(run)["normalisation"]
    steps = norm["mean"] / ((norm["max"] - min(norm["min"], 0)) / 255)
    assert abs(steps - round(steps)) < 1e-9
    assert 4 < norm["mean"] < 6  # the digits' true mean is 4.9


def test_report_is_one_file_that_needs_nothing(run):
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert "prefers-color-scheme: dark" in page
    assert not any(word in page for word in ("http:", "https:", "<script", "src=", "nan", "None"))


def test_config_is_complete_and_runs_again(run, tools, tmp_path):
    train, _, contents, _ = tools
    written = tomllib.loads((run / "config.toml").read_text())
    assert written["train"]["rounds"] == 3
    assert train(run / "config.toml", "--out", tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(run)


def test_workers_do_not_change_a_byte(run, tools, tmp_path):
    _, small, contents, _ = tools
    assert contents(small(tmp_path / "two", "--workers", "2")) == contents(run)


def test_another_seed_changes_the_run(run, tools, tmp_path):
    _, small, contents, _ = tools
    one, other = contents(run), contents(small(tmp_path / "other", "--seed", "1"))
    for name in ("model.onnx", "metrics.jsonl", "ranges.json", "summary.json"):
        assert one[name] != other[name]


@pytest.mark.parametrize("method", ["random", "fedavg"])
def test_other_methods_make_the_same_folder(run, tools, tmp_path, method):
    _, small, contents, _ = tools
    out = small(tmp_path / method, "--method", method)
    assert set(contents(out)) == set(contents(run))
    assert summary_of(out)["density"] == (1.0 if method == "fedavg" else summary_of(run)["density"])
    assert summary_of(out)["weights"] == summary_of(run)["weights"]


def make_npz(path, shape, owners=False):
    generator = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = generator.normal(size=(120, *shape)) + y.reshape(-1, *[1] * len(shape)) * 2
    more = {"client_train": np.arange(90) % 4 - 1, "client_test": np.arange(30) % 2} if owners else {}
    np.savez(
        path,
        x_train=x[:90],
        y_train=y[:90],
        x_test=x[90:],
        y_test=y[90:],
        class_names=np.array(["a", "b", "ç"]),
        **more,
    )
    return path


@pytest.mark.parametrize("shape", [(6,), (5, 7), (6, 6, 3)])
def test_data_of_ones_own(tools, tmp_path, shape):
    _, small, _, _ = tools
    path = make_npz(tmp_path / "mine.npz", shape)
    out = small(tmp_path / "out", "--data", path, "--density", "0.5", "--public", "none", "--rounds", "12")
    summary = summary_of(out)
    assert summary["accuracy"] > 0.5
    assert summary["data"] == "mine.npz"
    assert summary["class_names"] == ["a", "b", "ç"]
    with np.load(out / "samples.npz") as samples:
        assert samples["x"].shape == (30, *shape)


def test_natural_clients(tools, tmp_path):
    train, _, _, flags = tools
    path = make_npz(tmp_path / "mine.npz", (6,), owners=True)
    natural = ["--data", path, "--density", "0.3", "--partition", "natural", "--clients", "0", "--public", "none"]
    assert train(*flags, *natural, "--out", tmp_path / "out") == 0
    per_client = summary_of(tmp_path / "out")["accuracy_per_client"]
    assert len(per_client) == 3
    assert per_client[2] is None  # the test set has nothing of the third


def test_tiny_clients_and_partial_participation(tools, tmp_path):
    """Forty clients of a few samples each, some with one: batch norm must not see a batch of one."""
    train, _, _, flags = tools
    path = make_npz(tmp_path / "mine.npz", (4, 4))
    crowd = ["--data", path, "--clients", "40", "--participation", "0.2", "--partition", "dirichlet:0.2"]
    assert train(*flags, *crowd, "--public", "none", "--density", "0.3", "--out", tmp_path / "out") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [len(line["clients"]) for line in lines[1:]] == [8, 8, 8]
    assert all(line["refused"] == [] for line in lines)


def test_json_on_stdout_is_the_summary(tools, tmp_path, capsysbinary):
    train, _, _, flags = tools
    assert train(*flags, "--rounds", "1", "--json", "--out", tmp_path / "out") == 0
    assert capsysbinary.readouterr().out == (tmp_path / "out" / "summary.json").read_bytes()


@pytest.mark.parametrize("public", ["holdout:40", "none"])
def test_training_that_diverges_says_so_and_leaves_no_folder(tools, tmp_path, capsys, public):
    train, _, _, flags = tools
    flags = [*flags, "--public", public, "--rounds", "1", "--out", tmp_path / "out"]
    assert train(*flags, "--lr", "1e30") == 1
    error = capsys.readouterr().err
    assert "lower --lr" in error
    assert not (tmp_path / "out").exists()
    assert train(*flags) == 0


@pytest.mark.parametrize(
    ("error", "at", "stays"),
    [(DivergedError, 2, False), (FedtinyError, 2, True), (OSError, 1, False), (KeyboardInterrupt, 1, True)],
)
def test_a_failed_run_leaves_its_folder_only_if_it_can_go_on(tools, tmp_path, monkeypatch, error, at, stays):
    train, _, _, flags = tools
    train_round = rounds.train_round

    def fail(run, state, number, *more):
        if number == at:
            raise error("it broke")
        return train_round(run, state, number, *more)

    monkeypatch.setattr(rounds, "train_round", fail)
    assert train(*flags, "--out", tmp_path / "out") != 0
    assert (tmp_path / "out").exists() == stays


def test_nothing_is_pickled(run):
    for path in run.rglob("*"):
        if path.is_file():
            assert b"\x80\x04\x95" not in path.read_bytes(), path
    with np.load(io.BytesIO((run / "samples.npz").read_bytes()), allow_pickle=False) as samples:
        assert all(samples[key].dtype != object for key in samples.files)
    assert hashlib.sha256((run / "model.onnx").read_bytes()).digest()
    assert callable(main)
