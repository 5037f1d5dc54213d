"""After the last round: statistics are renewed only where that helps, and every client has an accuracy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError

from fedtiny_train import closing, models
from fedtiny_train.data import Shard
from fedtiny_train.models import ModelSpec
from fedtiny_train.server import State
from fedtiny_train.wire import Message

SPEC = ModelSpec("mlp", (4,), 3, 1)


class Scripted:
    """A run whose one client reports these losses, one a pass, and each time other moments."""

    def __init__(self, losses, passes=2):
        self.losses, self.asked = losses, []
        self.setting = SimpleNamespace(spec=SPEC)
        self.config = SimpleNamespace(train=SimpleNamespace(recalibrate=passes))

    def gather(self, traffic, request, check):
        turn = len(self.asked)
        self.asked.append(float(request.array("bn1.running_mean")[0]))
        if turn >= len(self.losses):
            traffic.refused.append("infinite moments")
            raise FedtinyError("no client sent a usable answer")
        moments = {}
        for name, norm in models.norms(models.shared(SPEC)).items():
            moments |= {
                f"{name}.mean": np.full(norm.num_features, turn + 1.0),
                f"{name}.var": np.ones(norm.num_features),
            }
        message = Message("moments", {"samples": 5.0, "loss": self.losses[turn]}, moments)
        check(message)
        return SimpleNamespace(messages={0: message})


@pytest.mark.parametrize(
    ("losses", "kept"), [([3.0, 2.0, 1.0], 2.0), ([3.0, 1.0, 2.0], 1.0), ([1.0, 2.0, 3.0], 0.0), ([3.0, 2.0], 1.0)]
)
def test_the_statistics_with_the_lowest_loss_are_kept(losses, kept):
    state = State(models.initial_state(SPEC, 0), {})
    assert state.tensors["bn1.running_mean"][0] == 0.0
    run, traffic = Scripted(losses), SimpleNamespace(refused=["of an earlier request"])
    found = closing.recalibrate(run, state, traffic)
    assert traffic.refused == ["of an earlier request"]
    assert found.tensors["bn1.running_mean"][0] == kept
    assert run.asked == [0.0, 1.0, 2.0]


def test_no_passes_ask_nobody():
    run, state = Scripted([], passes=0), State(models.initial_state(SPEC, 0), {})
    assert closing.recalibrate(run, state, SimpleNamespace(refused=[])) is state
    assert run.asked == []


def test_clients_without_test_samples_of_their_own_are_told_apart_by_their_classes():
    shards = [Shard(0, np.zeros((4, 2)), np.array([0, 0, 0, 1])), Shard(1, np.zeros((2, 2)), np.array([1, 1]))]
    test = Shard(-1, np.zeros((4, 2)), np.array([0, 0, 1, 1]))
    right = np.array([True, True, True, False])

    def accuracies(owner):
        federation = SimpleNamespace(shards=shards, test=test, test_client=owner)
        run = SimpleNamespace(federation=federation, everyone=range(2), setting=SimpleNamespace(spec=SPEC))
        return closing.accuracy_per_client(run, right)

    assert accuracies(None) == [0.875, 0.5]
    assert accuracies(np.array([-1, -1, -1, -1])) == [0.875, 0.5]
    assert accuracies(np.array([0, 0, 0, -1])) == [1.0, None]
