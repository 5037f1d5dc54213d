"""The run folder: what is in it, that it is the same every time, and that a stopped run goes on."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from fedtiny_export.errors import FedtinyError
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

from fedtiny_train import data, rounds, runfolder
from fedtiny_train.cli import main
from fedtiny_train.options import DataOptions
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
    from fedtiny_export.passes import simplify
    from fedtiny_export.read_onnx import read_onnx

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


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(run, tools, tmp_path, monkeypatch, stop):
    train, _, contents, small_flags = tools
    note = rounds._note

    def note_and_die(folder, lines, number, *rest):
        note(folder, lines, number, *rest)
        if number == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_note", note_and_die)
    out = tmp_path / "stopped"
    assert train(*small_flags, "--out", out) == 130
    assert not (out / "summary.json").exists()
    monkeypatch.undo()
    # What a resume point says counts, not the file beside it; a damaged point is passed over, litter goes.
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": stop + 1}) + "\n")
    (out / "state" / f".round-{stop + 1:05}.abc").mkdir()
    (out / ".metrics.jsonl.1234.part").write_text("half")
    if stop:
        newest = out / "state" / f"round-{stop:05}" / "model.safetensors"
        newest.write_bytes(newest.read_bytes()[:-3] + b"\x01\x02\x03")
    assert train("--resume", out) == 0
    assert contents(out) == contents(run)


def test_a_killed_run_goes_on_to_the_same_bytes(run, tools, tmp_path):
    train, _, contents, small_flags = tools
    out = tmp_path / "killed"
    flags = [*small_flags, "--workers", "2", "--out", str(out)]
    code = "import sys; from fedtiny_train.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *flags], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((out / "state").glob("round-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    assert train("--resume", out) == 0
    assert contents(out) == contents(run)


def test_resume_refuses_what_it_cannot_go_on_with(run, tools, tmp_path, capsys):
    train, _, _, _ = tools
    cases = [
        (["--resume", run], 1, "is finished already"),
        (["--resume", tmp_path], 1, "is not a run folder"),
        (["--resume", run, "--rounds", "9"], 2, "leave out --rounds"),
        (["--resume", run, "--out", tmp_path / "x"], 2, "leave out --out"),
    ]
    for arguments, status, reason in cases:
        assert train(*arguments) == status
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1


NORM = {"normalisation": {"mean": 0.1, "std": 1.0, "min": 0.0, "max": 1.0}}


def some_lines(count):
    """Lines of metrics as `rounds` makes them, with arbitrary figures."""
    figures = dict.fromkeys((*runfolder.LINE_NUMBERS, *(f"accuracy_{w}" for w in ("worst", "median", "best"))), 0.5)
    memory = dict.fromkeys(runfolder.MEMORY, 1)
    rest = {"memory": memory, "counted": True, "invited": [0], "clients": [{"id": 0}], "refused": []}
    return [{"round": number} | figures | rest for number in range(count)]


def test_resume_refuses_other_data(tmp_path):
    dataset = data.load(DataOptions())
    known = data.fingerprint(dataset)
    state = rounds.State({"w": np.zeros(2, np.float32)}, {"w": np.ones(2, np.bool_)}, NORM)
    runfolder.save_state(tmp_path, 4, state, runfolder.Origin(known, {}), some_lines(5))
    assert runfolder.load_state(tmp_path, runfolder.Origin(known, {}))[0] == 4
    with pytest.raises(FedtinyError, match="begun with other data"):
        runfolder.load_state(tmp_path, runfolder.Origin(known[::-1], {}))


def test_state_survives_the_disk(tmp_path):
    tensors = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array(2.5, np.float32)}
    state = rounds.State(tensors, {"a.weight": np.array([[True, False, True]] * 2)}, NORM)
    origin = runfolder.Origin("d", {"seed": 3, "lr": 0.1 + 0.2, "data": "ç", "selection": True})
    lines = some_lines(100_002)
    for number in (99_999, 100_000, 100_001):
        runfolder.save_state(tmp_path, number, state, origin, lines[: number + 1])
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["round-100000", "round-100001"]
    number, back, read = runfolder.load_state(tmp_path, origin)
    assert (number, back.memory, read) == (100_001, state.memory, lines)
    assert all(np.array_equal(back.tensors[n], a) and back.tensors[n].shape == a.shape for n, a in tensors.items())
    assert back.masks["a.weight"].dtype == np.bool_


@pytest.mark.parametrize("name", ["model.safetensors", "progress.json", "metrics.jsonl", "SHA256SUMS"])
def test_a_flipped_bit_anywhere_in_a_resume_point_is_noticed(stopped_run, tmp_path, caplog, name):
    origin = runfolder._read_state(stopped_run / "state" / "round-00002")[2]
    whole = runfolder.load_state(shutil.copytree(stopped_run, tmp_path / "whole"), origin)
    content = (stopped_run / "state" / "round-00002" / name).read_bytes()
    caplog.clear()
    draw = np.random.default_rng(0)
    places = [0, len(content) - 1, *draw.integers(len(content), size=30)]
    for place in places:
        out = shutil.copytree(stopped_run, tmp_path / "run")
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << int(draw.integers(8))
        (out / "state" / "round-00002" / name).write_bytes(spoilt)
        number, state, lines = runfolder.load_state(out, origin)
        assert (whole[0], number, len(lines)) == (2, 1, 2), place
        assert list(state.tensors) == list(whole[1].tensors)
        assert not (out / "state" / "round-00002").exists()
        shutil.rmtree(out)
    assert len(caplog.messages) == len(places)
    assert all("round-00002" in text and text.endswith("; going on from round 1") for text in caplog.messages)
    assert all("\n" not in text and len(text) < 400 for text in caplog.messages)


def test_a_point_that_was_half_removed_goes_at_the_next_resume(stopped_run, tmp_path):
    out = shutil.copytree(stopped_run, tmp_path / "run")
    old = shutil.copytree(out / "state" / "round-00001", out / "state" / "round-00000")
    (old / "model.safetensors").unlink()
    origin = runfolder._read_state(out / "state" / "round-00002")[2]
    assert runfolder.load_state(out, origin)[0] == 2
    assert sorted(p.name for p in (out / "state").iterdir()) == ["round-00001", "round-00002"]


def kill_resume():
    """Return the benchmark that kills runs; the fast suite does a part of it, with smaller runs."""
    path = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"
    spec = importlib.util.spec_from_file_location("kill_resume", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("step", "point"),
    [
        ("after progress.json", 2),
        ("half an old point removed", 1),
        pytest.param("before the model", 0, marks=pytest.mark.slow),
        pytest.param("half a model", 1, marks=pytest.mark.slow),
        pytest.param("after SHA256SUMS", 3, marks=pytest.mark.slow),
        pytest.param("half of metrics.jsonl", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_while_it_writes_goes_on_to_the_same_bytes(run, tools, tmp_path, step, point):
    train, _, contents, flags = tools
    module, out = kill_resume(), tmp_path / "killed"
    assert step in dict(module.STEPS)
    process = module.start(module.INSIDE, step, str(point), *flags, "--out", str(out))
    assert process.wait(120) == -signal.SIGKILL
    assert contents(out) != contents(run)
    assert train("--resume", out) == 0
    assert contents(out) == contents(run)


@pytest.mark.slow
def test_runs_killed_at_random_go_on_to_the_same_bytes(run, tools, tmp_path):
    _, _, contents, flags = tools
    module, draw = kill_resume(), random.Random(1)
    module.FLAGS = flags
    for index in range(5):
        found = module.at_random(contents(run), tmp_path, 8.0, draw, index)
        assert found["differs"] == "", found


@pytest.fixture(scope="module")
def stopped_run(tools, tmp_path_factory):
    """A run that was stopped after round 2 of 3."""
    train, _, _, small_flags = tools
    out, note = tmp_path_factory.mktemp("stopped") / "run", rounds._note

    def note_and_die(folder, lines, number, *rest):
        note(folder, lines, number, *rest)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_note", note_and_die)
        assert train(*small_flags, "--out", out) == 130
    return out


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("seed = 0", "seed = 7", "begun with seed 0, and its config.toml now says 7"),
        ("clients = 3", "clients = 4", "begun with clients 3, and its config.toml now says 4"),
        ("rounds = 3", "rounds = 9", "begun with rounds 3, and its config.toml now says 9"),
        ("width = 4", "width = 8", "begun with width 4, and its config.toml now says 8"),
        ("lr = 0.1", "lr = 0.2", "begun with lr 0.1, and its config.toml now says 0.2"),
        ("rounds = 3", "rounds = " + "[" * 100_000, "not TOML"),
    ],
)
def test_resume_refuses_another_configuration(stopped_run, tools, tmp_path, capsys, old, new, reason):
    train, _, contents, _ = tools
    out = shutil.copytree(stopped_run, tmp_path / "run")
    path = out / "config.toml"
    text = path.read_text()
    assert f"\n{old} " in text
    path.write_text(text.replace(f"\n{old} ", f"\n{new} "))
    before = contents(out)
    assert train("--resume", out) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert contents(out) == before


def forged(path):
    """Make the checksums of a resume point fit what was done to it, as whoever did it on purpose would."""
    (path.parent / "SHA256SUMS").write_text(runfolder.checksums(path.parent))


def broken_progress(change):
    def apply(out):
        for path in out.glob("state/*/progress.json"):
            progress = json.loads(path.read_text())
            change(progress)
            path.write_text(json.dumps(progress))
            forged(path)

    return apply


def broken_metrics(change):
    def apply(out):
        for path in out.glob("state/*/metrics.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line | change) + "\n" for line in lines))
            forged(path)

    return apply


def broken_tensors(change):
    def apply(out):
        for path in out.glob("state/*/model.safetensors"):
            save_file({name: change(name, array) for name, array in load_file(path).items()}, path)
            forged(path)

    return apply


def nested(name):
    def apply(out):
        for path in out.glob(f"state/*/{name}"):
            path.write_text("[" * 100_000)
            forged(path)

    return apply


def far_ahead(out):
    newest, older = sorted(out.glob("state/round-*"), reverse=True)
    shutil.rmtree(older)
    newest.rename(newest.with_name(f"round-{10**9}"))
    broken_progress(lambda p: p.update(round=10**9))(out)


@pytest.mark.parametrize(
    "damage",
    [
        broken_progress(lambda p: p.update(memory=[])),
        broken_progress(lambda p: p.update(memory={"normalisation": {"mean": "x"}})),
        broken_progress(lambda p: p["memory"].update(selection={"chosen": 9})),
        broken_progress(lambda p: p.update(round=10**9)),
        broken_progress(lambda p: p.update(round=True)),
        broken_progress(lambda p: p.update(options=[])),
        broken_progress(lambda p: p.pop("options")),
        broken_progress(lambda p: p.update(order={"tensors": [[]], "masks": 3})),
        broken_progress(lambda p: p["order"]["tensors"].pop()),
        far_ahead,
        broken_metrics({"accuracy": "high"}),
        broken_metrics({"loss": None}),
        broken_metrics({"refused": [3]}),
        broken_metrics({"round": 10**9}),
        broken_metrics({"invited": [99]}),
        broken_metrics({"invited": "all"}),
        broken_metrics({"counted": False}),
        broken_metrics({"clients": [{}]}),
        broken_metrics({"accuracy_worst": None}),
        broken_metrics({"clients": []}),
        broken_tensors(lambda name, array: array.astype(np.float64)),
        broken_tensors(lambda name, array: array[..., None]),
        nested("progress.json"),
        nested("metrics.jsonl"),
        nested("model.safetensors"),
        lambda out: [path.unlink() for path in out.glob("state/*/SHA256SUMS")],
    ],
)
def test_resume_refuses_a_damaged_folder_in_one_line_and_leaves_it(stopped_run, tools, tmp_path, capsys, damage):
    train, _, contents, _ = tools
    out = shutil.copytree(stopped_run, tmp_path / "run")
    damage(out)
    before = contents(out)
    assert train("--resume", out) == 1
    error = capsys.readouterr().err
    assert str(out) in error
    assert error.count("\n") == 1
    assert len(error) < 600
    assert contents(out) == before


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


def test_a_resumed_run_that_fails_stays(stopped_run, tools, tmp_path, monkeypatch):
    train, _, contents, _ = tools
    out = shutil.copytree(stopped_run, tmp_path / "run")

    def fail(run, state, number, *more):
        raise DivergedError("it broke")

    monkeypatch.setattr(rounds, "train_round", fail)
    assert train("--resume", out) == 1
    assert contents(out) == contents(stopped_run)


def test_nothing_is_pickled(run):
    for path in run.rglob("*"):
        if path.is_file():
            assert b"\x80\x04\x95" not in path.read_bytes(), path
    with np.load(io.BytesIO((run / "samples.npz").read_bytes()), allow_pickle=False) as samples:
        assert all(samples[key].dtype != object for key in samples.files)
    assert hashlib.sha256((run / "model.onnx").read_bytes()).digest()
    assert callable(main)
