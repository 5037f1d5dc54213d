"""Which boards had room for the training: what the run says, beside the RAM that boards have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call
from fedtiny_export.board.devices import all_devices
from fedtiny_export.cli import export_main
from runs import make_run

MEMORY = {"parameters": 40_000, "gradients": 30_000, "momentum": 0, "buffer": 1_000, "activations": 60_000}
COST = {"memory": MEMORY, "memory_max": 131_000, "memory_paper": 90_000, "flops_max": 1.0}


def run_with(folder: Path, cost: object) -> Path:
    run = make_run(folder / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "cost": cost}))
    return run


@pytest.mark.parametrize(("board", "said"), [("qemu-m4", "has room for it"), ("qemu-m0", "is 114,616 short")])
def test_the_report_says_whether_the_board_could_have_trained(tmp_path, capsys, board, said):
    assert call(export_main, run_with(tmp_path, COST), "--target", board, "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "a round took 131,000 bytes on a device (parameters 40,000, gradients 30,000, buffer 1,000, activ" in text
    assert f"bytes, {said}; boards with room: " in text
    client = json.loads((tmp_path / "out" / "report.json").read_text())["client"]
    largest = {d.id: max(r.size for r in d.memory if r.kind == "ram") for d in all_devices()}
    assert client["boards"] == [name for name, size in largest.items() if size >= 131_000]
    assert client["room"] == largest[board]
    assert (board in client["boards"]) == (board == "qemu-m4")
    assert client["paper_bytes"] == 90_000
    assert "Training on this board" in (tmp_path / "out" / "report.html").read_text()


def test_a_model_that_no_run_made_has_no_such_line(tmp_path, capsys):
    assert call(export_main, make_run(tmp_path / "run"), "--target", "qemu-m4", "--out", tmp_path / "out") == 0
    assert "training  :" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["client"] is None


BAD = {
    "negative": {**COST, "memory_max": -1},
    "text": {**COST, "memory_paper": "many"},
    "a part missing": {**COST, "memory": {"parameters": 1}},
    "not finite": {**COST, "memory": {**MEMORY, "buffer": float("inf")}},
    "not a number": {**COST, "memory_max": float("nan")},
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_number_of_bytes_is_refused(tmp_path, capsys, case):
    run = run_with(tmp_path, BAD[case])
    assert call(export_main, run, "--target", "qemu-m4", "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "summary.json" in said
    assert said.count("\n") == 1
