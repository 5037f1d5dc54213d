"""Runs whose clients fail: what a quorum is, and that training survives it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError, UsageError

from fedtiny_train import data, methods, rounds, server, wire
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.engine import Reply
from fedtiny_train.masks import kept_total
from fedtiny_train.options import Config
from fedtiny_train.server import DivergedError, quorum_of
from fedtiny_train.session import Traffic, opened
from fedtiny_train.wire import Message, Sparse

FAULTS = "dropout=0.3,nan=0.04,corrupt=0.04,shape=0.02"
QUICK = {"clients": 5, "width": 4, "local_epochs": 1, "public": "holdout:40", "pretrain_epochs": 3, "tune_epochs": 1}


def configured(**flags) -> Config:
    return settle(apply_flags(Config(), QUICK | flags))


@pytest.mark.parametrize(
    ("invited", "quorum", "needed"), [(10, 0.5, 5), (9, 0.5, 5), (10, 0.0, 1), (3, 1.0, 3), (10, 0.3, 3), (1, 0.5, 1)]
)
def test_a_quorum_is_rounded_up(invited, quorum, needed):
    assert quorum_of(invited, quorum) == needed


class Scripted:
    """An engine in which only some clients answer: `script(turn)` says how many, from the first on."""

    def __init__(self, engine, script):
        self.engine, self.script, self.orders = engine, script, []

    def run(self, orders):
        self.orders += orders
        there = orders[: self.script(orders[0].turn)]
        return [*self.engine.run(there), *(Reply(b"", order.own) for order in orders[len(there) :])]

    def close(self):
        pass


def scripted(run, script):
    return dataclasses.replace(run, engine=Scripted(run.engine, script))


@pytest.fixture(scope="module")
def open_run():
    config = configured(rounds=4, method="fedpack", density=0.2, adjust_every=1, adjust_until=4, patience=2)
    with opened(config, data.load(config.data)) as run:
        state, _ = rounds.set_up(run)
        yield run, state


def test_below_a_quorum_a_round_changes_nothing(open_run):
    run, state = open_run
    after, line = rounds.train_round(scripted(run, lambda turn: 2), state, 1)
    assert after is state
    assert not line["counted"]
    assert line["invited"] == [0, 1, 2, 3, 4]
    assert [c["id"] for c in line["clients"]] == [0, 1]
    assert [(r["id"], r["reason"]) for r in line["refused"]] == [(2, "no answer"), (3, "no answer"), (4, "no answer")]
    assert line["bytes_up"] > 0
    assert line["accuracy"] == rounds.evaluate(run.setting.spec, state, run.federation.test)[0]
    after, line = rounds.train_round(scripted(run, lambda turn: 3), state, 1)
    assert line["counted"]
    assert any(not np.array_equal(after.tensors[n], a) for n, a in state.tensors.items())


def test_several_rounds_in_a_row_without_a_quorum_stop_the_run(open_run):
    run, state = open_run
    with pytest.raises(FedtinyError) as caught:
        rounds.train_round(scripted(run, lambda turn: 1), state, 3, 1, 1)
    assert str(caught.value) == (
        "round 3 is number 2 in a row without a quorum: 1 of 5 clients answered well and 3 must (quorum 0.5); "
        "client 1: no answer; use a lower --quorum or a higher --participation"
    )
    assert not isinstance(caught.value, DivergedError)


def test_missed_rounds_do_not_count_so_that_the_density_is_reached(open_run):
    """FedPack is dense at first: were the round of its last adjustment lost, it would stay too dense."""
    run, state = open_run
    bad = {2, 4, 5}
    broken = scripted(
        dataclasses.replace(run, config=configured_patience(run.config, 3)), lambda t: 0 if t[0] in bad else 5
    )
    lines, number = [{"counted": True}], 0
    while rounds.counted(lines) < 4:
        number += 1
        missed = number - 1 - rounds.counted(lines)
        state, line = rounds.train_round(broken, state, number, missed, rounds.missed_in_a_row(lines))
        lines.append(line)
    assert [line["counted"] for line in lines[1:]] == [True, False, True, False, False, True, True]
    assert [line["round"] for line in lines[1:]] == [1, 2, 3, 4, 5, 6, 7]
    kept = sum(int(m.sum()) for m in state.masks.values())
    assert kept == kept_total(0.2, [m.size for m in state.masks.values()])
    rates = [wire.decode(o.request).numbers["lr"] for o in broken.engine.orders if o.client == 0]
    assert rates == [rounds.learning_rate(run.config, step) for step in (1, 2, 2, 3, 3, 3, 4)]


def configured_patience(config, patience):
    return dataclasses.replace(config, server=dataclasses.replace(config.server, patience=patience))


def test_outside_the_rounds_those_who_failed_are_asked_again(open_run):
    run, _ = open_run
    traffic = Traffic(0)
    broken = scripted(run, lambda turn: 2)
    answers = broken.gather(traffic, Message("describe"), server.described_check)
    assert sorted(answers.messages) == [0, 1, 2, 3]
    assert answers.invited == (0, 1, 2, 3, 4)
    assert [(o.client, o.turn) for o in broken.engine.orders] == [
        *((k, (0, 0)) for k in range(5)), (2, (0, 1)), (3, (0, 1)), (4, (0, 1)),
    ]  # fmt: skip
    assert [(r.client, r.request) for r in traffic.refused] == [(k, "describe") for k in (2, 3, 4, 4)]
    with pytest.raises(FedtinyError, match="describe, asked 2 times: 2 of 5 clients answered well and 3 must"):
        scripted(run, lambda turn: 1).gather(Traffic(0), Message("describe"), server.described_check)


def test_only_those_who_adapted_are_asked_to_score():
    config = configured(pool=2, seed=3, patience=1)
    with opened(config, data.load(config.data)) as run:
        broken = scripted(run, lambda turn: 3)
        state, line = rounds.set_up(broken)
    kinds = [(wire.decode(o.request).kind, o.client) for o in broken.engine.orders]
    assert [k for kind, k in kinds if kind == "describe"] == [0, 1, 2, 3, 4]
    assert [k for kind, k in kinds if kind == "adapt"] == [0, 1, 2, 3, 4]
    assert [k for kind, k in kinds if kind == "score"] == [0, 1, 2]
    assert len(state.memory["selection"]["losses"]) == 2
    assert [c["id"] for c in line["clients"]] == [0, 1, 2]


def test_a_robust_rule_is_refused_where_clients_have_their_own_masks(monkeypatch):
    config = configured(method="random", aggregate="median", rounds=6)
    sound = methods.method("random")

    def own(setting, state, number):
        return methods.Orders(own_masks=number == 5)

    with opened(config, data.load(config.data)) as run:
        rounds.set_up(run)
        monkeypatch.setattr(rounds, "method", lambda name: dataclasses.replace(sound, orders=own))
        with pytest.raises(UsageError, match="aggregate median needs clients that share a mask"):
            rounds.set_up(run)


@pytest.mark.parametrize(
    ("flags", "least", "most"),
    [
        ({"aggregate": "median"}, 0.6, 1),
        ({"aggregate": "trimmed:0.2"}, 0.6, 1),
        ({"clip_norm": 2.0}, 0.3, 1),
        ({}, 0, 0.2),
    ],
)
def test_one_hostile_client_among_five(flags, least, most):
    """A client that sends its weights times -20 ruins the mean; clipped it is slow, and to a median it is nothing."""

    class Hostile:
        def __init__(self, engine):
            self.engine = engine

        def run(self, orders):
            replies = self.engine.run(orders)
            message = wire.decode(replies[0].body)
            tensors = {
                n: dataclasses.replace(t, values=t.values * -20) if isinstance(t, Sparse) else t
                for n, t in message.tensors.items()
            }
            return [Reply(wire.encode(dataclasses.replace(message, tensors=tensors))), *replies[1:]]

        def close(self):
            pass

    config = configured(method="random", density=0.3, rounds=4, pretrain_epochs=20, partition="iid", **flags)
    with opened(config, data.load(config.data)) as run:
        state, _ = rounds.set_up(run)
        hostile = dataclasses.replace(run, engine=Hostile(run.engine))
        for number in (1, 2, 3, 4):
            state, line = rounds.train_round(hostile, state, number)
    assert least < line["accuracy"] < most


def accuracy_of(folder):
    return json.loads((folder / "summary.json").read_text())["accuracy"]


def test_a_run_with_faults_goes_on_after_a_stop_to_the_same_bytes(tools, tmp_path, monkeypatch):
    """Rounds without a quorum, refused answers and retried waves come out the same, stopped or not."""
    train, small, contents, flags = tools
    faults = ["--simulate-faults", "dropout=0.4,nan=0.1,slow=0.1", "--quorum", "0.6", "--seed", "4"]
    whole = small(tmp_path / "whole", *faults)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    missed = [line["round"] for line in lines if not line["counted"]]
    assert missed
    assert len(lines) == 1 + 3 + len(missed)
    for line in lines[1:]:
        assert line["counted"] == (len(line["clients"]) >= quorum_of(len(line["invited"]), 0.6))
        assert sorted([c["id"] for c in line["clients"]] + [r["id"] for r in line["refused"]]) == line["invited"]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["rounds_missed"] == len(missed)
    assert summary["refused"] == sum(len(x["refused"]) for x in lines) + len(summary["refused_closing"]) > 0
    assert contents(small(tmp_path / "two", *faults, "--workers", "2")) == contents(whole)

    note, stop = rounds._note, missed[0]

    def note_and_die(folder, lines, number, *rest):
        note(folder, lines, number, *rest)
        if number == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_note", note_and_die)
    assert train(*flags, *faults, "--out", tmp_path / "stopped") == 130
    monkeypatch.undo()
    assert train("--resume", tmp_path / "stopped") == 0
    assert contents(tmp_path / "stopped") == contents(whole)


def test_a_third_of_bad_answers_costs_little(tools, tmp_path, capsys):
    """benchmarks/faults.py has the whole: three seeds of the default network."""
    _, small, _, _ = tools
    more = ["--clients", "6", "--partition", "iid", "--rounds", "12", "--method", "random", "--density", "0.3"]
    more += ["--pretrain-epochs", "10"]
    clean = accuracy_of(small(tmp_path / "clean", *more))
    capsys.readouterr()
    faulty = small(tmp_path / "faulty", *more, "--simulate-faults", FAULTS)
    summary = json.loads((faulty / "summary.json").read_text())
    assert summary["refused"] > 10
    assert accuracy_of(faulty) > clean - 0.03
    told = [line for line in capsys.readouterr().err.splitlines() if "refused:" in line]
    assert len(told) <= 4  # the rest is a count


def test_a_run_that_nobody_answers_ends_in_one_line(tools, tmp_path, capsys):
    train, _, _, flags = tools
    assert train(*flags, "--simulate-faults", "dropout=1", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error == (
        "error: describe, asked 5 times: 0 of 3 clients answered well and 2 must (quorum 0.5); client 0: no answer; "
        "use a lower --quorum or a higher --participation\n"
    )
    assert not (tmp_path / "out").exists()
