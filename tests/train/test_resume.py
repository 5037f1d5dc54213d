"""A stopped run goes on to the bytes of an undisturbed one, and a damaged one is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from benchmark import script
from fedtiny_export.errors import FedtinyError
from safetensors.numpy import load_file, save_file

from fedtiny_train import data, rounds, runfolder
from fedtiny_train.options import DataOptions
from fedtiny_train.server import DivergedError


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
    return script("kill_resume")


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
        found = module.at_random(contents(run), tmp_path, draw, index)
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


def test_a_resumed_run_that_fails_stays(stopped_run, tools, tmp_path, monkeypatch):
    train, _, contents, _ = tools
    out = shutil.copytree(stopped_run, tmp_path / "run")

    def fail(run, state, number, *more):
        raise DivergedError("it broke")

    monkeypatch.setattr(rounds, "train_round", fail)
    assert train("--resume", out) == 1
    assert contents(out) == contents(stopped_run)
