"""FedAvg: nothing is pruned. The dense opponent, and the plainest example of a method."""

from __future__ import annotations

from collections.abc import Mapping

from fedtiny_train.masks import Array
from fedtiny_train.methods import Ask, Setting, Tune
from fedtiny_train.server import State


class FedAvg:
    """Keep every weight."""

    def begin(self, setting: Setting, state: State, ask: Ask, tune: Tune) -> State:
        """Return the dense state."""
        return state

    def wants(self, setting: Setting, state: State, round_number: int) -> dict[str, int]:
        """Ask for no gradients."""
        return {}

    def adjust(
        self, setting: Setting, state: State, gradients: Mapping[str, Array], counts: Mapping[str, int]
    ) -> State:
        """Never called with gradients; return the state as it is."""
        return state
