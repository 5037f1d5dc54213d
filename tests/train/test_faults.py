"""Clients that fail: what is refused, and why."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError, UsageError
from hypothesis import given
from hypothesis import strategies as st

from fedtiny_train import robust, server, wire
from fedtiny_train.config import apply_flags, fault_rates, settle
from fedtiny_train.engine import Order, Reply
from fedtiny_train.engine.faulty import SPOILERS, Faulty, fault_of
from fedtiny_train.options import Config
from fedtiny_train.server import DivergedError, State, need
from fedtiny_train.wire import Message, Sparse

QUICK = {"clients": 5, "width": 4, "local_epochs": 1, "public": "holdout:40", "pretrain_epochs": 3, "tune_epochs": 1}


def configured(**flags) -> Config:
    return settle(apply_flags(Config(), QUICK | flags))


@pytest.mark.parametrize(
    ("text", "rates"),
    [("", {}), ("nan=0.1", {"nan": 0.1}), ("dropout=0.3, huge=0.7", {"dropout": 0.3, "huge": 0.7})],
)
def test_rates_are_read(text, rates):
    assert fault_rates(text) == rates


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"simulate_faults": "drop=0.1"}, "'drop' is no fault (did you mean dropout?)"),
        ({"simulate_faults": "nan=0.1,nan=0.1"}, "'nan' comes twice"),
        ({"simulate_faults": "nan"}, "nan needs a share, as in nan=0.1, not ''"),
        ({"simulate_faults": "nan=nan"}, "nan is nan; it must be between 0 and 1"),
        ({"simulate_faults": "nan=-0.1"}, "nan is -0.1; it must be between 0 and 1"),
        ({"simulate_faults": "nan=0.6,huge=0.6"}, "the shares add up to 1.2"),
        ({"simulate_faults": "nan=0.6,"}, "'' is no fault"),
        ({"aggregate": "mode"}, "unknown aggregate 'mode'"),
        ({"aggregate": "trimmed"}, "aggregate trimmed needs a number after the colon"),
        ({"aggregate": "trimmed:0.5"}, "above 0 and below 0.5"),
        ({"aggregate": "trimmed:0"}, "above 0 and below 0.5"),
        ({"quorum": 1.5}, "quorum is 1.5; it must be at most 1"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        ({"max_value": 0.0}, "max_value is 0.0; it must be above 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; it must be at least 0"),
    ],
)
def test_options_that_cannot_be_are_refused(flags, reason):
    with pytest.raises(UsageError) as caught:
        configured(**flags)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("draw", "kind"), [(0.0, "nan"), (0.09, "nan"), (0.1, "huge"), (0.29, "huge"), (0.31, "")])
def test_a_draw_falls_on_a_fault(draw, kind):
    assert fault_of({"nan": 0.1, "huge": 0.2}, draw) == kind


class Counting:
    """An engine whose clients all send the same update; it remembers whom it asked."""

    def __init__(self, body=None):
        self.body, self.asked = body or wire.encode(update()), []

    def run(self, orders):
        self.asked += [order.client for order in orders]
        return [Reply(self.body, b"note") for _ in orders]

    def close(self):
        self.asked = None


def update(**changes):
    tensors = {"w": np.array([3, 0, 4, 0], np.float32), "bn.running_var": np.ones(2, np.float32)}
    return Message("update", {"samples": 10, "loss": 1.0}, tensors | changes)


def state():
    tensors = {"w": np.array([1, 0, 2, 0], np.float32), "bn.running_var": np.ones(2, np.float32)}
    return State(tensors, {"w": np.ones(4, np.bool_)})


def test_faults_depend_on_seed_round_wave_and_client_alone():
    def bodies(clients, turn=(3, 1), seed=5):
        orders = [Order(k, b"", turn=turn) for k in clients]
        replies = Faulty(Counting(), {"dropout": 0.5, "corrupt": 0.3}, seed).run(orders)
        return {k: (reply.body, reply.delay) for k, reply in zip(clients, replies, strict=True)}

    whole = bodies(range(40))
    assert bodies(range(40)) == whole
    assert bodies([7, 3, 30]) == {k: whole[k] for k in (7, 3, 30)}
    assert (
        len({repr(bodies(range(40), **other)) for other in ({}, {"turn": (4, 1)}, {"turn": (3, 2)}, {"seed": 6})}) == 4
    )


def test_who_drops_out_does_not_work_and_keeps_its_notes():
    inner = Counting()
    replies = Faulty(inner, {"dropout": 0.5}, 0).run([Order(k, b"", own=b"old", turn=(1, 0)) for k in range(200)])
    gone = [k for k, reply in enumerate(replies) if not reply.body]
    assert 60 < len(gone) < 140
    assert sorted(inner.asked + gone) == list(range(200))
    assert {replies[k].own for k in gone} == {b"old"}
    assert {reply.own for k, reply in enumerate(replies) if k not in gone} == {b"note"}


MESSAGES = {
    "update": update(),
    "described": Message("described", {"count": 4.0, "sum": 4.0, "squares": 6.0, "min": 0.0, "max": 2.0}),
    "histograms": Message("histograms", {}, {"counts": np.ones((2, 3), np.int64)}),
}


def check_of(kind):
    def counts(message):
        need(message, "histograms")
        server.need_shapes(message, {"counts": (2, 3)})

    return {"update": server.update_check(state(), {}), "described": server.described_check, "histograms": counts}[kind]


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("fault", SPOILERS)
def test_every_fault_is_refused_with_a_reason_and_its_bytes_count(kind, fault):
    engine = Faulty(Counting(wire.encode(MESSAGES[kind])), {fault: 1.0}, 1)
    assert sorted(server.ask(engine.engine, range(30), Message("x"), check_of(kind), limit=1e6).messages) == [
        *range(30)
    ]
    answers = server.ask(engine, range(30), Message("x"), check_of(kind), limit=1e6)
    assert answers.messages == {}
    assert answers.own == {}
    reasons = {
        "slow": "too late",
        "corrupt": "message",
        "shape": "shape|that was not asked for",
        "nan": "not finite",
        "huge": "huge value",
    }
    for refusal in answers.refused:
        text = refusal.reason.replace("checksum", "message")
        assert re.search(reasons[fault], text), text
        assert "\n" not in text
    sent = [reply.body for reply in engine.run([Order(k, wire.encode(Message("x"))) for k in range(30)])]
    assert answers.bytes_up == sum(map(len, sent)) > 0
    assert answers.diverged == (30 if fault in ("nan", "huge") else 0)


def test_a_dropout_costs_what_was_sent_down_alone():
    answers = server.ask(Faulty(Counting(), {"dropout": 1.0}, 0), [4, 6], Message("x"), check_of("update"))
    assert [(r.client, r.reason, r.request) for r in answers.refused] == [(4, "no answer", "x"), (6, "no answer", "x")]
    assert (answers.bytes_up, answers.bytes_down) == (0, 2 * len(wire.encode(Message("x"))))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"w": np.array([3, 0, -2e6, 0], np.float32)}, r"w holds a huge value, 2e\+06, over 1e\+06 \(--max-value\)"),
        ({"bn.running_var": np.array([1, -1e-3], np.float32)}, "bn.running_var holds a variance below 0"),
    ],
)
def test_absurd_values_are_refused(changes, reason):
    answers = server.ask(Counting(wire.encode(update(**changes))), [0], Message("train"), check_of("update"), limit=1e6)
    with pytest.raises(FedtinyError, match=reason):
        raise answers.lack(0.5)


def test_huge_numbers_are_refused_and_sums_may_be_larger():
    def refuses(message):
        try:
            server.refuse_huge(message, 100.0)
        except DivergedError:
            return True
        return False

    assert refuses(Message("update", {"samples": 1e9, "loss": 1.0}))
    assert refuses(Message("update", {"samples": 9, "loss": -101.0}))
    assert not refuses(Message("described", {"count": 1e4, "sum": 1e4, "squares": 1e6, "min": -100.0, "max": 100.0}))
    assert refuses(Message("described", {"count": 1e4, "sum": 1e4, "squares": 1e6, "min": -101.0, "max": 100.0}))
    scored = {"loss": np.array([1000.0]), "loss_squared": np.array([1e5]), "correct": np.array([10.0])}
    assert not refuses(Message("scored", {"samples": 10}, scored))
    assert refuses(Message("scored", {"samples": 9}, scored))


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"count": 0}, "describes 0 values"),
        ({"min": 3}, "between 3 and 2"),
        ({"sum": 9}, "cannot be"),
        ({"squares": 3.9}, "cannot be"),  # below the square of the mean
        ({"squares": 17}, "cannot be"),  # above the square of the greatest
        ({"max": math.inf}, "max is missing or not finite"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(numbers, reason):
    good = MESSAGES["described"]
    server.described_check(good)
    with pytest.raises(FedtinyError, match=reason):
        server.described_check(Message("described", {**good.numbers, **numbers}))


def test_clipping_by_hand():
    # The update moves w by (2, 0, 2, 0) and b by 1: a length of 3. The statistics are not part of it.
    before = State(
        {
            "w": np.array([1, 0, 2, 0], np.float32),
            "b": np.zeros(1, np.float32),
            "n.running_var": np.ones(1, np.float32),
        },
        {},
    )
    places = np.array([0, 2])
    tensors = {"w": Sparse((4,), places, np.array([3, 4], np.float32)), "b": np.ones(1, np.float32)}
    message = update(**tensors, **{"n.running_var": np.array([4], np.float32), "top/w": np.array([7], np.float32)})
    message = dataclasses.replace(message, tensors={n: t for n, t in message.tensors.items() if n != "bn.running_var"})
    assert robust.update_norm(message, before) == 3.0
    assert robust.clipped(message, before, 3.0) is message
    short = robust.clipped(message, before, 1.5)
    assert robust.update_norm(short, before) == 1.5
    assert short.tensors["w"].indices.tolist() == [0, 2]
    assert short.tensors["w"].values.tolist() == [2.0, 3.0]
    assert short.array("b").tolist() == [0.5]
    assert short.array("n.running_var").tolist() == [2.5]
    assert short.array("top/w").tolist() == [7.0]
    assert short.array("w").dtype == np.float32


def test_a_clipped_client_keeps_the_mask_it_moved_to():
    before = State({"w": np.array([3, 0, 0], np.float32)}, {})
    moved = Message("update", {"samples": 1, "loss": 0}, {"w": Sparse((3,), np.array([1]), np.array([4], np.float32))})
    assert robust.update_norm(moved, before) == 5.0  # what it dropped is part of the way
    short = robust.clipped(moved, before, 1.0).tensors["w"]
    assert (short.indices.tolist(), short.values.tolist()) == ([1], [pytest.approx(0.8)])


def sent(*values, samples=None):
    numbers = samples or [1] * len(values)
    return {
        k: Message("update", {"samples": n}, {"w": np.array(v, np.float32)})
        for k, (v, n) in enumerate(zip(values, numbers, strict=True))
    }


def test_robust_rules_by_hand():
    five = sent([1, 10], [2, -50], [3, 12], [4, 14], [1000, 11], samples=[1, 1, 1, 1, 10**6])
    assert robust.combined(five, ["w"], "median")["w"].tolist() == [3.0, 11.0]
    assert robust.combined(five, ["w"], "trimmed:0.2")["w"].tolist() == [3.0, 11.0]  # (2+3+4)/3, (10+11+12)/3
    assert robust.combined(five, ["w"], "trimmed:0.1")["w"].tolist() == [202.0, pytest.approx(-0.6)]  # cuts nobody
    assert robust.combined(sent([1.0], [2.0]), ["w"], "median")["w"].tolist() == [1.5]
    assert robust.combined(sent([1.0], [4.0], samples=[3, 1]), ["w"], "mean")["w"].tolist() == [1.75]
    assert robust.combined(five, ["v"], "median") == {}


@given(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=9), st.floats(-1e6, 1e6, width=32), st.integers(0, 8))
def test_one_client_cannot_leave_the_range_of_the_others(honest, wild, place):
    values = [*honest[: place % len(honest)], wild, *honest[place % len(honest) :]]
    for rule in ("median", "trimmed:0.3"):
        found = robust.combined(sent(*([v] for v in values)), ["w"], rule)["w"][0]
        assert min(honest) - 1e-5 <= found <= max(honest) + 1e-5


def test_no_list_of_gradients_weighs_more_than_the_median_one():
    def listed(place, value, samples):
        top = Sparse((3,), np.array([place]), np.array([value], np.float32))
        return Message("update", {"samples": samples}, {"top/w": top})

    messages = {0: listed(0, 3.0, 1), 1: listed(1, -6.0, 1), 2: listed(2, 9000.0, 50)}
    assert robust.combined_top(messages, ["w"], "median")["w"].tolist() == [1.0, -2.0, 2.0]
    assert robust.combined_top(messages, ["w"], "mean")["w"].argmax() == 2
