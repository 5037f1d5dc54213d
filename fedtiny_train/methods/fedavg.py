"""FedAvg: nothing is pruned. The dense opponent, and the plainest example of a method."""

from __future__ import annotations

from fedtiny_train.methods import Method, Services, Setting
from fedtiny_train.server import State


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the dense state."""
    return state


METHOD = Method(begin)
