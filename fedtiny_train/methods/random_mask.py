"""A random mask of the same density in every maskable layer, drawn once and kept.

It prunes the same layers to the same total as FedTiny and trains in the same way, so that what FedTiny adds
is all that differs.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedtiny_train.masks import Array, allocate, random_mask
from fedtiny_train.methods import Ask, Setting, Tune
from fedtiny_train.seeds import rng
from fedtiny_train.server import State


class RandomMask:
    """Draw once, keep."""

    def begin(self, setting: Setting, state: State, ask: Ask, tune: Tune) -> State:
        """Return the state under a uniform random mask."""
        names = setting.maskable
        sizes = [setting.sizes[name] for name in names]
        density = setting.budget / sum(sizes)
        counts = allocate([density * size for size in sizes], sizes, setting.budget)
        generator = rng(setting.config.run.seed, "random mask")
        masks = {
            name: random_mask(state.tensors[name].shape, count, generator)
            for name, count in zip(names, counts, strict=True)
        }
        return tune(state.with_masks(state.masks | masks))

    def wants(self, setting: Setting, state: State, round_number: int) -> dict[str, int]:
        """Ask for no gradients."""
        return {}

    def adjust(
        self, setting: Setting, state: State, gradients: Mapping[str, Array], counts: Mapping[str, int]
    ) -> State:
        """Never called with gradients; return the state as it is."""
        return state
