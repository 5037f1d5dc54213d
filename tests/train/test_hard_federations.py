"""Federations at the edge of what makes sense, each carried out as a whole run that must stay finite."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fedtiny_train import data, options
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.options import Config
from fedtiny_train.rounds import carry_out

QUICK = {"rounds": 2, "local_epochs": 1, "width": 4, "pool": 2, "adaptation_passes": 2, "recalibrate": 1}
QUICK |= {"pretrain_epochs": 2, "tune_epochs": 1, "adjust_every": 1, "adjust_until": 2, "lr": 0.05}


def numbers(value):
    """Yield every number of a JSON value."""
    if isinstance(value, dict):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def carried_out(tmp_path, **flags):
    """Carry out a short run; check that everything it leaves is finite and nobody was refused."""
    known = {item.name for _, item in options.options()}
    made = settle(apply_flags(Config(), {k: v for k, v in (QUICK | flags).items() if k in known}))
    lines = []
    summary = carry_out(made, tmp_path / "out", lines.append)
    assert all(math.isfinite(n) for n in numbers(json.loads((tmp_path / "out" / "summary.json").read_text())))
    assert all(math.isfinite(n) for n in numbers(json.loads((tmp_path / "out" / "ranges.json").read_text())))
    assert all(math.isfinite(n) for n in numbers(lines))
    weights = onnx.load(str(tmp_path / "out" / "model.onnx")).graph.initializer
    assert all(np.isfinite(numpy_helper.to_array(w)).all() for w in weights)
    assert summary["refused"] == 0
    assert len(lines) == 1 + made.train.rounds
    return summary, made


def shares(made):
    """Return how many samples of each class each client of a run has."""
    dataset = data.load(made.data, made.run.seed)
    dealt = data.deal(dataset, made.data, made.run.seed)
    return np.array([np.bincount(shard.y, minlength=len(dataset.class_names)) for shard in dealt.shards])


def test_clients_of_one_class_only(tmp_path):
    summary, made = carried_out(tmp_path, partition="shards:1", clients=10, public="none")
    # 1,442 samples in ten shards: a few at the ends belong to the class beside.
    assert (shares(made).max(axis=1) / shares(made).sum(axis=1)).min() > 0.9
    assert len(summary["accuracy_per_client"]) == 10


def owned_file(path, owner):
    """Write a set of the digits whose training samples belong to `owner`."""
    found = data.load(options.DataOptions(train_samples=len(owner), test_samples=50))
    x, y = found.x_train, found.y_train
    np.savez(path, x_train=x, y_train=y, x_test=found.x_test, y_test=found.y_test, client_train=owner)


def test_some_clients_with_one_sample_and_one_with_one_class(tmp_path):
    owned_file(tmp_path / "d.npz", np.concatenate([[0, 1], np.repeat([2, 3], 99)]))
    summary, made = carried_out(
        tmp_path, data=str(tmp_path / "d.npz"), partition="natural", clients=0, public="holdout:20"
    )
    assert summary["clients"] >= 2
    assert min(shares(made).sum(axis=1)) == 1


@pytest.mark.parametrize("method", options.METHODS)
def test_no_client_has_more_than_one_sample(tmp_path, method):
    """Batch norm has no statistics of its own to learn anywhere; the run must end all the same."""
    summary, made = carried_out(
        tmp_path, method=method, train_samples=12, test_samples=40, partition="iid", clients=12, public="none"
    )
    assert shares(made).sum(axis=1).tolist() == [1] * 12
    assert summary["clients"] == 12


@pytest.mark.parametrize("partition", ["dirichlet:0.5", "shards:2"])
def test_two_hundred_clients_share_the_digits(tmp_path, partition):
    summary, made = carried_out(
        tmp_path, rounds=1, partition=partition, clients=200, participation=0.2, public="holdout:40"
    )
    assert (summary["clients"], shares(made).sum()) == (200, 1402)
    assert shares(made).sum(axis=1).min() >= 1


@pytest.mark.parametrize("method", options.METHODS)
def test_every_method_works_without_public_data(tmp_path, method):
    summary, _ = carried_out(tmp_path, method=method, train_samples=300, public="none", clients=4)
    assert summary["public_samples"] == 0


def test_a_single_client(tmp_path):
    summary, _ = carried_out(tmp_path, train_samples=200, clients=1, partition="dirichlet:0.1", public="none")
    assert summary["accuracy_per_client"] == [pytest.approx(summary["accuracy"], abs=0.1)]


def test_a_class_that_nobody_has(tmp_path):
    found = data.load(options.DataOptions(train_samples=300, test_samples=100))
    keep = found.y_train != 3
    x, y = found.x_train[keep], found.y_train[keep]
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=found.x_test, y_test=found.y_test)
    summary, made = carried_out(tmp_path, data=str(tmp_path / "d.npz"), clients=5, public="holdout:30")
    assert shares(made)[:, 3].tolist() == [0] * 5
    assert summary["classes"] == 10


def test_public_data_of_the_user_is_what_is_trained_on_first(tmp_path):
    found = data.load(options.DataOptions())
    np.savez(tmp_path / "p.npz", x=found.x_train[:50], y=found.y_train[:50])
    summary, _ = carried_out(tmp_path, public=str(tmp_path / "p.npz"), train_samples=200, clients=4)
    assert summary["public_samples"] == 50
    (tmp_path / "b").mkdir()
    without, _ = carried_out(tmp_path / "b", public="none", train_samples=200, clients=4)
    assert summary["loss"] != without["loss"]


def test_the_number_of_workers_does_not_matter_to_a_part_of_a_set(tmp_path):
    flags = {"train_samples": 150, "test_samples": 60, "clients": 3, "public": "holdout:10"}
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        carried_out(tmp_path / str(workers), workers=workers, **flags)
    for name in ("model.onnx", "summary.json", "samples.npz", "config.toml"):
        assert (tmp_path / "1/out" / name).read_bytes() == (tmp_path / "2/out" / name).read_bytes()
