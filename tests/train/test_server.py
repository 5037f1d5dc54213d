"""Aggregation by hand, and what the server refuses."""

from __future__ import annotations

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError

from fedtiny_train import calibrate, server, wire
from fedtiny_train.engine import Reply
from fedtiny_train.server import State
from fedtiny_train.wire import Message, Sparse

MASK = np.array([True, False, True, False])


def state():
    tensors = {"w": np.array([1, 0, 2, 0], np.float32), "bn.running_var": np.ones(2, np.float32)}
    return State(tensors, {"w": MASK})


def update(**changes):
    tensors = {
        "w": Sparse((4,), np.array([0, 2]), np.array([3, 4], np.float32)),
        "bn.running_var": np.ones(2, np.float32),
        "top/w": Sparse((4,), np.array([1]), np.array([0.5], np.float32)),
    }
    return Message(
        "update", {"samples": 10, "loss": 1.0}, {k: v for k, v in (tensors | changes).items() if v is not None}
    )


def test_fedavg_weighs_by_samples():
    messages = {
        1: Message("update", {"samples": 30}, {"w": np.array([1, 2], np.float32)}),
        0: Message("update", {"samples": 10}, {"w": np.array([5, 6], np.float32), "v": np.array([7], np.float32)}),
    }
    found = server.average(messages, ["w", "v", "u"])
    assert found["w"].tolist() == [2.0, 3.0]  # (10 * 5 + 30 * 1) / 40, (10 * 6 + 30 * 2) / 40
    assert found["v"].tolist() == [7.0]  # only those who sent it
    assert "u" not in found


def test_top_gradients_count_zero_where_a_client_left_them_out():
    messages = {
        0: Message("update", {"samples": 10}, {"top/w": Sparse((4,), np.array([1, 3]), np.array([4, -8], np.float32))}),
        1: Message("update", {"samples": 30}, {"top/w": Sparse((4,), np.array([3]), np.array([4], np.float32))}),
    }
    assert server.combine_top(messages, ["w"])["w"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_pooled_variance_has_the_spread_of_the_means():
    one = {"bn.mean": np.array([0.0]), "bn.var": np.array([1.0])}
    two = {"bn.mean": np.array([4.0]), "bn.var": np.array([3.0])}
    found = calibrate.pool_moments([(1, one), (3, two)])
    assert found["bn.running_mean"].tolist() == [3.0]
    assert found["bn.running_var"].tolist() == [5.5]  # E[v] = 2.5, Var[m] = (1 * 9 + 3 * 1) / 4 = 3


def test_normalisation_by_hand_and_on_the_int8_grid():
    a = Message("described", {"count": 2, "sum": 2.0, "squares": 4.0, "min": 0.0, "max": 2.0})
    b = Message("described", {"count": 2, "sum": 10.0, "squares": 52.0, "min": 4.0, "max": 6.0})
    found = server.normalisation({0: a, 1: b})
    step = 6 / 255
    assert found["mean"] == pytest.approx(step * 128)  # 3 is 127.5 steps; Python rounds to the even 128
    assert found["std"] == pytest.approx(5**0.5)  # 56 / 4 - 3 * 3
    assert (found["min"], found["max"]) == (0.0, 6.0)
    constant = Message("described", {"count": 2, "sum": 0.0, "squares": 0.0, "min": 0.0, "max": 0.0})
    assert server.normalisation({0: constant}) == {"mean": 0.0, "std": 1.0, "min": 0.0, "max": 0.0}


def test_a_good_update_passes():
    server.update_check(state(), {"w": 1})(update())
    server.update_check(state(), {"w": 1})(update(**{"bn.running_var": None}))  # a client of one sample


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"w": Sparse((4,), np.array([0, 2]), np.array([3, np.nan], np.float32))},
            "w holds values that are not finite",
        ),
        ({"w": Sparse((4,), np.array([0, 1]), np.array([3, 4], np.float32))}, "w has values where its mask has none"),
        ({"w": np.ones(4, np.float32)}, "w has values where its mask has none"),
        ({"w": np.ones(5, np.float32)}, r"w has shape \(5,\), not \(4,\)"),
        ({"w": None}, "w is missing"),
        ({"x": np.ones(1, np.float32)}, "x that was not asked for"),
        ({"top/w": Sparse((4,), np.array([0]), np.array([1], np.float32))}, "gradients of live weights"),
        ({"top/w": Sparse((4,), np.array([1, 3]), np.array([1, 2], np.float32))}, "at most 1 gradients"),
        ({"top/w": None}, "top/w is missing"),
    ],
)
def test_bad_updates_are_refused_with_a_reason(changes, reason):
    with pytest.raises(FedtinyError, match=reason):
        server.update_check(state(), {"w": 1})(update(**changes))


@pytest.mark.parametrize("numbers", [{}, {"samples": 0, "loss": 1}, {"samples": np.inf, "loss": 1}, {"samples": 1}])
def test_updates_without_sound_numbers_are_refused(numbers):
    with pytest.raises(FedtinyError):
        server.update_check(state(), {"w": 1})(Message("update", numbers, update().tensors))


class Answering:
    """An engine whose clients answer what they are told to."""

    def __init__(self, *replies):
        self.replies = replies

    def run(self, orders):
        return [Reply(self.replies[order.client]) for order in orders]

    def close(self):
        pass


def test_bad_clients_are_left_out_and_named():
    good = wire.encode(update(**{"top/w": None}))
    engine = Answering(good, b"FTW1", good)
    request = state().message("train")
    found = server.ask(engine, [0, 1, 2], request, server.update_check(state(), {}))
    assert sorted(found.messages) == [0, 2]
    assert [(r.client, r.request, "checksum" in r.reason) for r in found.refused] == [(1, "train", True)]
    assert found.bytes_up == 2 * len(good) + 4
    assert found.bytes_down == 3 * len(wire.encode(request))
    assert found.invited == (0, 1, 2)
