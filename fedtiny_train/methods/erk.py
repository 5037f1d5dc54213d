"""A random mask with Erdos-Renyi-kernel shares, drawn once and kept: small layers are kept denser than large ones."""

from __future__ import annotations

from fedtiny_train.masks import erk_counts, random_mask
from fedtiny_train.methods import Masks, Method, Services, Setting
from fedtiny_train.seeds import rng
from fedtiny_train.server import State


def erk_masks(setting: Setting, state: State) -> Masks:
    """Draw the masks: ERK shares of the budget, each set of positions equally likely."""
    names = setting.maskable
    counts = erk_counts([state.tensors[name].shape for name in names], setting.budget)
    generator = rng(setting.config.run.seed, "random mask")
    drawn = {
        name: random_mask(state.tensors[name].shape, count, generator, setting.config.pruning.prune_block)
        for name, count in zip(names, counts, strict=True)
    }
    return state.masks | drawn


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under a random ERK mask."""
    return services.tune(state.with_masks(erk_masks(setting, state)))


METHOD = Method(begin)
