"""Every method, run through the command on the digits: its density, without public data, and byte for byte again."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from fedtiny_train import client, data, models, rounds, wire
from fedtiny_train.config import apply_flags, read_toml, settle
from fedtiny_train.masks import folded
from fedtiny_train.methods import setting
from fedtiny_train.options import IN_BLOCKS, METHODS, Config
from fedtiny_train.session import Traffic, opened
from fedtiny_train.wire import Message

QUICK = ("--pretrain-epochs", "4", "--tune-epochs", "1", "--recalibrate", "0")
DENSE = ("fedavg", "fedavg-small")
# ADP's density is what its gates leave: tests/train/test_adp.py.
EXACT = [name for name in METHODS if name != "adp"]
CONFIGS = Path(__file__).parents[2] / "configs"


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", EXACT)
def test_every_method_ends_at_its_density(tools, tmp_path, name):
    _, small, _, _ = tools
    summary = summary_of(small(tmp_path / "run", "--method", name, *QUICK))
    assert (summary["method"], summary["rounds"], summary["refused"]) == (name, 3, 0)
    expected = summary["weights"] if name in DENSE else int(0.1 * summary["weights"])
    assert sum(layer["kept"] for layer in summary["layers"]) == expected
    assert summary["density"] == expected / summary["weights"]
    assert summary["nonzero"] <= expected
    assert 0 < summary["accuracy"] <= 1


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_pairs_of_channels_live_and_die_together(tools, tmp_path, monkeypatch, name):
    _, small, _, _ = tools
    states, note = [], rounds._note
    monkeypatch.setattr(rounds, "_note", lambda *a: states.append(a[3]) or note(*a))
    small(tmp_path / "run", "--method", name, "--prune-block", "2", "--no-first-dense", *QUICK)
    masks = states[-1].masks
    assert sum(int(mask.sum()) for mask in masks.values()) == int(0.1 * sum(mask.size for mask in masks.values()))
    pairs = {key: folded(mask, 2) for key, mask in masks.items() if mask.shape[1] % 2 == 0}
    assert len(pairs) > 5
    assert all((found == 1).sum() <= 1 for found in pairs.values())  # one half pair where the count is odd
    if name in ("fedpack", "fedtiny", "rigl"):
        assert any((states[0].masks[key] != masks[key]).any() for key in pairs)


def test_a_method_of_single_weights_refuses_blocks(tools, tmp_path, capsys):
    train, _, _, usual = tools
    assert train(*usual, "--out", tmp_path / "run", "--method", "prunefl", "--prune-block", "2") == 2
    assert "prunefl moves single weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", EXACT)
def test_every_method_does_without_public_data(tools, tmp_path, name):
    _, small, _, _ = tools
    flags = ("--public", "none", "--rounds", "1", "--adjust-until", "1", *QUICK)
    summary = summary_of(small(tmp_path / "run", "--method", name, *flags))
    assert summary["public_samples"] == 0
    assert sum(layer["kept"] for layer in summary["layers"]) == (
        summary["weights"] if name in DENSE else int(0.1 * summary["weights"])
    )


@pytest.fixture(scope="module", params=["feddst", "fl-pqsu"])
def remembering(request, tools, tmp_path_factory):
    """A run of a method whose clients choose or remember something, and its flags."""
    _, small, _, _ = tools
    flags = ["--method", request.param, "--local-epochs", "2", "--recalibrate", "0"]
    return small(tmp_path_factory.mktemp(request.param) / "run", *flags), flags


def test_two_workers_make_the_same_bytes(remembering, tools, tmp_path):
    _, small, contents, _ = tools
    run, flags = remembering
    assert contents(small(tmp_path / "two", *flags, "--workers", "2")) == contents(run)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(remembering, tools, tmp_path, monkeypatch, stop):
    train, _, contents, small_flags = tools
    run, flags = remembering
    note = rounds._note

    def note_and_die(folder, lines, number, *rest):
        note(folder, lines, number, *rest)
        if number == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_note", note_and_die)
    out = tmp_path / "stopped"
    assert train(*small_flags, *flags, "--out", out) == 130
    monkeypatch.undo()
    assert train("--resume", out) == 0
    assert contents(out) == contents(run)


def test_masks_move_where_clients_swap(tools, tmp_path, monkeypatch):
    _, small, _, _ = tools
    states, note = [], rounds._note
    monkeypatch.setattr(rounds, "_note", lambda *a: states.append(a[3]) or note(*a))
    small(tmp_path / "run", "--method", "feddst", "--adjust-until", "2", "--recalibrate", "0")
    moved = [any((a.masks[n] != b.masks[n]).any() for n in a.masks) for a, b in itertools.pairwise(states)]
    assert moved == [True, False, False]  # in round 2 the cosine is 0, and round 3 is after R_stop


def test_both_halves_of_fl_pqsu_save_bytes(tools, tmp_path):
    _, small, _, _ = tools
    flags = ("--method", "fl-pqsu", *QUICK)
    full = lines_of(small(tmp_path / "full", *flags, "--exchange-bits", "32", "--no-selective-upload"))
    short = lines_of(small(tmp_path / "short", *flags, "--exchange-bits", "8", "--no-selective-upload"))
    both = lines_of(small(tmp_path / "both", *flags))
    assert not any("skipped" in one for line in full + short for one in line["clients"])
    # names, positions and what is not float32 travel as they are
    assert all(a["bytes_up"] < 0.7 * b["bytes_up"] for a, b in zip(short[1:], full[1:], strict=True))
    assert all(a["bytes_down"] < 0.7 * b["bytes_down"] for a, b in zip(short[1:], full[1:], strict=True))
    assert any("skipped" in one for line in both[1:] for one in line["clients"])
    assert sum(line["bytes_up"] for line in both) < sum(line["bytes_up"] for line in short)


def test_where_nobody_uploads_the_model_stays():
    config = settle(apply_flags(Config(), {"method": "fl-pqsu", "clients": 3, "width": 4, "pretrain_epochs": 1}))
    with opened(config, data.load(config.data)) as run:
        state, _ = rounds.set_up(run)
        best = wire.encode(Message("own", {}, {client.UPLOADED: np.array(0.0)}))  # no loss is below 0
        state = dataclasses.replace(state, own=dict.fromkeys(range(3), best))
        found, line = rounds.train_round(run, state, 1)
        traffic = Traffic(1)
        orders = rounds.method("fl-pqsu").orders(run.setting, state, 1)
        outcome, _ = rounds.one_round(run, state, 1, orders, traffic, 0.1)
    assert {n: a.tobytes() for n, a in found.tensors.items()} == {n: a.tobytes() for n, a in state.tensors.items()}
    assert dict(found.own) == dict(state.own)
    assert [one.get("skipped") for one in line["clients"]] == [True] * 3
    assert line["refused"] == []
    assert outcome.messages == {}
    # "FTW1", the kind, two numbers by name, no tensors, the checksum
    assert line["bytes_up"] == traffic.up == 3 * (4 + 8 + 2 + (8 + 8) + (5 + 8) + 4 + 4)


def test_the_small_network_is_written_down_and_the_configuration_stays(tools, tmp_path):
    _, small, _, _ = tools
    run = small(tmp_path / "run", "--method", "fedavg-small", "--width", "16", "--recalibrate", "0")
    summary, asked = summary_of(run), models.ModelSpec("resnet8", (1, 8, 8), 10, 16)
    config = read_toml(run / "config.toml")
    assert (config.model.width, config.train.density) == (16, 0.1)
    assert summary["width"] == setting(config, asked).spec.width < 16
    assert summary["density"] == 1.0
    assert summary["layers"][0]["shape"] == [summary["width"], 1, 3, 3]
    other = small(tmp_path / "other", "--method", "fedavg", "--width", "16", "--recalibrate", "0")
    assert summary_of(other)["width"] == 16


@pytest.mark.parametrize("name", ["fedtiny-paper", "prunefl", "feddst", "fl-pqsu", "lotteryfl"])
def test_a_preset_names_its_method_and_fits_a_network(name):
    found = settle(read_toml(CONFIGS / f"{name}.toml"))
    assert found.train.method == name.removesuffix("-paper")
    setting(found, models.ModelSpec("resnet8", (3, 32, 32), 10, 16))
    assert found.pruning.row_floor == 0  # a floor is ours, not the papers'
