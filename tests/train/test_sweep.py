"""A sweep: its combinations, that it goes on where it was, and what it writes."""

from __future__ import annotations

import json
import shutil

import pytest

from fedtiny_train import charts, rounds, sweep, sweep_page
from fedtiny_train.config import apply_flags
from fedtiny_train.options import Config
from fedtiny_train.server import DivergedError

TINY = ["--clients", "3", "--width", "4", "--local-epochs", "1", "--public", "holdout:40", "--rounds", "1"]
TINY += ["--pretrain-epochs", "2", "--tune-epochs", "1", "--recalibrate", "1", "--method", "random"]


def test_every_combination_is_a_run_of_its_own():
    found = sweep.read_sweep("seed=0,1 density=0.1,0.05 --first-dense=false", apply_flags(Config(), {"rounds": 7}))
    assert list(found.runs) == [
        "seed-0_density-0.1_first-dense-False",
        "seed-0_density-0.05_first-dense-False",
        "seed-1_density-0.1_first-dense-False",
        "seed-1_density-0.05_first-dense-False",
    ]
    made = [(c.run.seed, c.train.density, c.train.first_dense, c.train.rounds) for c in found.runs.values()]
    assert made == [(0, 0.1, False, 7), (0, 0.05, False, 7), (1, 0.1, False, 7), (1, 0.05, False, 7)]
    assert found.chosen["seed-1_density-0.05_first-dense-False"] == {"seed": 1, "density": 0.05, "first_dense": False}


def test_values_with_commas_lie_between_bars():
    found = sweep.read_values("simulate-faults='nan=0.1,huge=0.1|' partition=iid,dirichlet:0.5")
    assert found["simulate_faults"] == ("nan=0.1,huge=0.1", "")
    assert found["partition"] == ("iid", "dirichlet:0.5")
    name = sweep.folder_name({"partition": "dirichlet:0.5", "data": "some where/my data.npz"})
    assert name == "partition-dirichlet-0.5_data-my-data"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "needs an option and its values"),
        ("seed", "seed needs values"),
        ("sed=0,1", "no option 'sed' that a result depends on (did you mean seed?)"),
        ("workers=1,2", "no option 'workers' that a result depends on"),
        ("seed=0,1 seed=2", "seed comes twice"),
        ("seed=0,0", "seed has a value twice"),
        ("seed=0,x", "seed must be a whole number, not 'x'"),
        ("seed=", "seed must be a whole number, not ''"),
        ("density=0.1,2", "density is 2.0; it must be at most 1"),
        ("density=0.1,nan", "density is nan"),
        ("selection=maybe", "selection must be true or false, not 'maybe'"),
        ("method=random,fedtinny", "unknown method 'fedtinny' (did you mean fedtiny?)"),
        ("seed='0", "cannot be read"),
        ("partition=dirichlet:1|dirichlet-1", "two runs named partition-dirichlet-1"),
        ("partition=iid|dirichlet", "partition dirichlet needs a number"),
        ("data=a/x.npz,b/x.npz", "two runs named data-x"),
        ("seed=" + ",".join(map(str, range(200))) + " rounds=" + ",".join(map(str, range(1, 101))), "20,000 runs"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_anything_is_written(
    tools, tmp_path, monkeypatch, capsys, text, reason
):
    train, _, _, _ = tools
    monkeypatch.chdir(tmp_path)
    assert train("--sweep", text) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_not_resumed_as_a_run(tools, tmp_path, capsys):
    train, _, _, _ = tools
    assert train("--sweep", "seed=0", "--resume", tmp_path) == 2
    assert "repeat the --sweep" in capsys.readouterr().err


@pytest.fixture(scope="module")
def swept(tools, tmp_path_factory):
    train, _, _, _ = tools
    out = tmp_path_factory.mktemp("sweep") / "out"
    assert train(*TINY, "--sweep", "seed=0,1 density=0.3,0.6", "--out", out) == 0
    return out


def test_a_sweep_leaves_its_runs_and_what_came_of_them(swept):
    found = json.loads((swept / "sweep.json").read_text())
    assert found["options"] == {"seed": [0, 1], "density": [0.3, 0.6]}
    assert [run["name"] for run in found["runs"]] == [
        "seed-0_density-0.3", "seed-0_density-0.6", "seed-1_density-0.3", "seed-1_density-0.6",
    ]  # fmt: skip
    for run in found["runs"]:
        summary = json.loads((swept / run["name"] / "summary.json").read_text())
        assert run["options"] == {"seed": summary["seed"], "density": pytest.approx(summary["density"], abs=1e-3)}
        assert (run["accuracy"], run["cost"]) == (summary["accuracy"], summary["cost"])
        assert run["worst_client"] == min(summary["accuracy_per_client"])
    page = (swept / "sweep.html").read_text()
    assert page.count("<circle") == 2  # one point a density
    assert not any(word in page for word in ("http:", "https:", "<script", "src=", "nan", "None"))


def test_done_runs_are_skipped_and_a_half_done_one_is_resumed(swept, tools, tmp_path, monkeypatch, capsys):
    train, _, contents, _ = tools
    out = shutil.copytree(swept, tmp_path / "out")
    half, gone = out / "seed-0_density-0.6", out / "seed-1_density-0.6"
    shutil.rmtree(gone)
    for name in ("summary.json", "report.html", "model.onnx"):
        (half / name).unlink()
    (out / "sweep.json").unlink()
    begun, carry_out = [], rounds.carry_out

    def watched(config, folder, progress, resume=False):
        begun.append((folder.name, resume))
        return carry_out(config, folder, progress, resume)

    monkeypatch.setattr(rounds, "carry_out", watched)
    assert train(*TINY, "--sweep", "seed=0,1 density=0.3,0.6", "--out", out) == 0
    assert begun == [(half.name, True), (gone.name, False)]
    assert contents(out) == contents(swept)
    assert capsys.readouterr().err.count("done already") == 2


def test_a_sweep_into_other_runs_is_refused(swept, tools, tmp_path, capsys):
    train, _, contents, _ = tools
    before = contents(swept)
    assert train(*TINY, "--lr", "0.2", "--sweep", "seed=0,1 density=0.3,0.6", "--out", swept) == 1
    assert "seed-0_density-0.3 was run with other options" in capsys.readouterr().err
    assert train(*TINY, "--sweep", "seed=0", "--out", swept / "seed-0_density-0.3") == 1
    assert "is a run folder" in capsys.readouterr().err
    (tmp_path / "seed-0").mkdir()
    assert train(*TINY, "--sweep", "seed=0", "--out", tmp_path) == 1
    assert "is no run folder" in capsys.readouterr().err
    assert contents(swept) == before


def test_a_run_that_fails_does_not_stop_the_others(tools, tmp_path, monkeypatch, capsys):
    train, _, _, _ = tools
    carry_out = rounds.carry_out

    def failing(config, folder, progress, resume=False):
        if config.run.seed == 0:
            raise DivergedError("it diverged")
        return carry_out(config, folder, progress, resume)

    monkeypatch.setattr(rounds, "carry_out", failing)
    assert train(*TINY, "--sweep", "seed=0,1", "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: 1 of 2 runs failed, the first: it diverged"
    runs = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [run.get("error") for run in runs] == ["it diverged", None]
    assert "it diverged" in (tmp_path / "out" / "sweep.html").read_text()
    monkeypatch.undo()
    assert train(*TINY, "--sweep", "seed=0,1", "--out", tmp_path / "out", "--json") == 0
    captured = capsys.readouterr()
    assert captured.out == (tmp_path / "out" / "sweep.json").read_text()
    assert "error" not in captured.out


def test_a_summary_that_is_none_counts_as_a_failure(swept, tools, tmp_path, capsys):
    train, _, _, _ = tools
    out = shutil.copytree(swept, tmp_path / "out")
    (out / "seed-0_density-0.3" / "summary.json").write_text('{"accuracy": "high"}')
    assert train(*TINY, "--sweep", "seed=0,1 density=0.3,0.6", "--out", out) == 1
    assert "1 of 4 runs failed" in capsys.readouterr().err


def result(accuracy, options):
    cost = {"memory_max": 1024, "bytes_up": 2048}
    figures = {"accuracy": accuracy, "worst_client": accuracy / 2, "density": options["density"], "nonzero": 10}
    return {"name": "x", "options": options, "cost": cost} | figures


def test_curves_by_hand():
    runs = [
        result(0.5, {"seed": 0, "method": "a", "density": 0.1}),
        result(0.7, {"seed": 1, "method": "a", "density": 0.1}),
        result(0.9, {"seed": 0, "method": "a", "density": 0.2}),
        result(0.8, {"seed": 0, "method": "b", "density": 0.1}),
        {"name": "y", "options": {"seed": 2, "method": "b"}, "error": "it broke"},
    ]
    curves = sweep_page.curves_of(runs)
    assert curves["method a"] == [(0.1, pytest.approx(0.6), 0.5, 0.7), (0.2, 0.9, 0.9, 0.9)]
    assert curves["method b"] == [(0.1, 0.8, 0.8, 0.8)]
    head, rows = sweep_page.rows_of(runs)
    assert head[:4] == ["method", "density", "runs", "accuracy"]
    assert rows[0] == ["a", "0.1", "2", "60.00%", "50.00% to 70.00%", "10", "30.00%", "1.0 KiB", "2.0 KiB"]
    assert rows[1][4] == ""  # a single seed has no spread
    brief_head, brief_rows = sweep_page.rows_of(runs, brief=True)
    assert (brief_head, brief_rows[0]) == (head[:6], rows[0][:6])
    drawing = charts.spread(curves, "density")
    assert (drawing.count("<polyline"), drawing.count("<circle")) == (2, 3)


def test_points_lie_where_their_numbers_say():
    drawing = charts.spread({"one": [(0.01, 0.5, 0.4, 0.6), (0.1, 0.75, 0.75, 0.75), (1.0, 1.0, 1.0, 1.0)]}, "density")
    # From 40 % at the base (190) to 100 % at the top (12), and a log scale from 76 to 450 of which 0.1 is the middle.
    assert '<circle class="f0" cx="263.0" cy="86.2" r="3"/>' in drawing
    assert '<line class="s0" x1="76.0" x2="76.0" y1="190.0" y2="130.7"/>' in drawing
    assert '<circle class="f0" cx="450.0" cy="12.0" r="3"/>' in drawing


def test_a_page_of_failures_only_is_still_a_page():
    page = sweep_page.page([{"name": "y", "options": {"seed": 2}, "error": "<it> broke"}])
    assert "&lt;it&gt; broke" in page
