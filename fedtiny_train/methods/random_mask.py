"""A random mask of the same density in every maskable layer, drawn once and kept.

It prunes the same layers to the same total as FedTiny and trains in the same way, so that what FedTiny adds
is all that differs.
"""

from __future__ import annotations

from fedtiny_train.masks import random_mask, uniform_counts
from fedtiny_train.methods import Method, Services, Setting
from fedtiny_train.seeds import rng
from fedtiny_train.server import State


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under a uniform random mask."""
    names = setting.maskable
    counts = uniform_counts([setting.sizes[name] for name in names], setting.budget)
    generator = rng(setting.config.run.seed, "random mask")
    masks = {
        name: random_mask(state.tensors[name].shape, count, generator, setting.config.pruning.prune_block)
        for name, count in zip(names, counts, strict=True)
    }
    return services.tune(state.with_masks(state.masks | masks))


METHOD = Method(begin)
