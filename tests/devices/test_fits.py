"""Ranking boards by a model: the figures are an export's own, the order is by room, and what does not fit says why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from commands import call
from fedtiny_export.board import fits
from fedtiny_export.board.devices import all_devices, load_device
from fedtiny_export.board.fits import Network, fit_of, rank, read_network
from fedtiny_export.cli import devices_main, export_main
from fedtiny_export.ftm.file import lay_out, write_ftm
from fedtiny_export.graph.ir import Op
from networks import residual
from runs import make_run

GRAPH = residual(seed=1, density=0.3)
FTM = write_ftm(GRAPH, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "digits")


def shrunk(board: str, **sizes: int):
    """A board with regions of other sizes."""
    device = load_device(board)
    memory = tuple(dataclasses.replace(r, size=sizes.get(r.name, r.size)) for r in device.memory)
    return dataclasses.replace(device, memory=memory)


def test_a_fit_by_hand():
    """A due has no reserve at all: flash is code, tables and model, RAM is the arena and the stack of the kernels."""
    fit = fit_of(load_device("due"), FTM, {"selftest": 100, "labels": 20})
    assert (fit.model_bytes, fit.arena_bytes) == (len(FTM.data), FTM.plan.arena_bytes)
    assert fit.ram.limit == 98_304
    assert fit.flash.limit == 524_288
    plain = fit_of(load_device("due"), FTM, {})
    assert fit.flash.used - plain.flash.used == 120
    assert fit.tightest == "ram.total"
    assert fit.room == 98_304 - fit.ram.used
    assert fit.share == fit.room / 98_304
    assert fit.fits
    assert fit.over == ()
    assert fit.uncounted == ("flash", "ram")


@pytest.mark.parametrize(("short", "fits"), [(0, True), (1, False)])
def test_one_byte_decides(short, fits):
    need = fit_of(load_device("due"), FTM, {}).ram.used
    fit = fit_of(shrunk("due", ram=need - short), FTM, {})
    assert fit.fits is fits
    assert fit.over == (() if fits else (("ram.total", "ram", 1),))
    assert fit.room == -short


def test_a_stack_that_is_too_small_is_what_binds():
    device = load_device("pico2")
    tight = dataclasses.replace(device, reserve=dataclasses.replace(device.reserve, stack_bytes=900))
    fit = fit_of(tight, FTM, {})
    assert not fit.fits
    assert (fit.tightest, fit.region) == ("ram.stack", "scratch_y")
    assert fit.room < 0


def test_the_order_is_room_first_then_bytes_missing():
    network = Network("a model", GRAPH, {})
    whole = rank(network, [load_device("due")])[0]
    need, flash = whole.ram.used, whole.flash.used
    boards = [
        dataclasses.replace(shrunk("due", ram=need - 500), id="far"),
        dataclasses.replace(shrunk("due", ram=need + 10), id="tight"),
        dataclasses.replace(shrunk("due", ram=need - 3, rom=flash - 7), id="near"),
        dataclasses.replace(shrunk("due", ram=need * 4), id="roomy"),
    ]
    ranked = rank(network, boards)
    assert [fit.board for fit in ranked] == ["roomy", "tight", "near", "far"]
    assert [fit.fits for fit in ranked] == [True, True, False, False]
    assert ranked[2].over == (("flash.total", "rom", 7), ("ram.total", "ram", 3))


@pytest.mark.parametrize("board", ["esp32", "qemu-m4", "bluepill", "uno_r4_wifi"])
def test_the_figures_are_those_of_an_export(run, tmp_path, capsys, board):
    assert call(export_main, run, "--target", board, "--out", tmp_path / "o", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    planned = {figure["name"]: figure["value"] for figure in report["figures"]}
    for given in (run, tmp_path / "o"):
        assert call(devices_main, "--fits", given, "--json") == 0
        listed = json.loads(capsys.readouterr().out)
        assert listed["schema"] == 1
        fit = next(fit for fit in listed["boards"] if fit["board"] == board)
        assert fit["flash"]["used"] == planned["flash.total"]
        assert fit["ram"]["used"] == planned["ram.total"]
        assert fit["model_bytes"] == planned["flash.model"]
        assert fit["arena_bytes"] == planned["ram.arena"]
        assert len(listed["boards"]) == len(all_devices())


def test_a_tflite_file_and_an_onnx_without_ranges_will_do(run, tmp_path, capsys):
    assert call(export_main, run, "--target", "esp32", "--out", tmp_path / "o") == 0
    capsys.readouterr()
    assert call(devices_main, "--fits", tmp_path / "o" / "model.tflite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["note"] is None
    (tmp_path / "net.onnx").write_bytes((run / "model.onnx").read_bytes())
    assert call(devices_main, "--fits", tmp_path / "net.onnx") == 0
    printed = capsys.readouterr()
    assert "no ranges and no --calibration" in printed.err
    assert f"net.onnx fits {len(all_devices())} of {len(all_devices())} boards" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 120


def test_a_large_network_is_told_where_and_by_how_much(tmp_path, capsys):
    big = make_run(tmp_path / "big", density=0.5, side=96, widths=(24, 24))
    assert call(devices_main, "--fits", big) == 0
    lines = capsys.readouterr().out.splitlines()
    last = next(line for line in reversed(lines) if "bluepill" in line or "qemu-m0" in line)
    assert "ram.total in ram" in last
    assert "-" in last.split()[-2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("esp32", "--fits", "m.onnx"), "give a board, or --fits MODEL"),
        (("--calibration", "x.npz"), "--calibration is for --fits MODEL"),
        (("--fits", "nowhere.onnx"), "nowhere.onnx: no such file or folder"),
        (("--fits", "."), "has no model.onnx"),
    ],
)
def test_what_cannot_be_ranked_is_refused(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(devices_main, *arguments) in (1, 2)
    assert said in capsys.readouterr().err


def test_the_model_is_laid_out_once_for_each_set_of_encodings(monkeypatch):
    """Not once a board: planning the arena takes most of the time."""
    made: list[object] = []
    monkeypatch.setattr(fits, "lay_out", lambda graph, chosen: made.append(chosen) or lay_out(graph, chosen))
    rank(Network("a model", GRAPH, {}), all_devices())
    assert len(made) == len(set(made)) < 6


def test_an_export_of_another_runtime_is_read_too(run, tmp_path):
    for board in ("esp32", "nucleo_f446re"):
        assert call(export_main, run, "--target", board, "--out", tmp_path / board, "--runtime", "tflm") == 0
    ours, theirs = read_network(run, None), read_network(tmp_path / "nucleo_f446re", None)
    assert [node.op for node in ours.graph.nodes] == [node.op for node in theirs.graph.nodes]
    # for a board with a library of TensorFlow Lite Micro the last layer is written as a convolution
    turned = [*[node.op for node in ours.graph.nodes[:-1]], Op.CONV, Op.RESHAPE]
    assert [node.op for node in read_network(tmp_path / "esp32", None).graph.nodes] == turned
