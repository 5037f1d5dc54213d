"""Magnitude pruning, once and before training: the largest pre-trained weights of each layer, one density for all.

It is what FedTiny's comparisons call FL-PQSU, of which they take the pruning alone; `fl-pqsu` is the whole of it.
The floor of the classifier's rows holds as in FedTiny. Without public data the weights are as they were drawn.
"""

from __future__ import annotations

import numpy as np

from fedtiny_train.masks import top_mask, uniform_counts
from fedtiny_train.methods import Masks, Method, Services, Setting
from fedtiny_train.server import State


def magnitude_masks(setting: Setting, state: State, total: int) -> Masks:
    """Keep the largest live weights, `total` over the maskable layers, the same density in each of them."""
    names = setting.maskable
    counts = uniform_counts([setting.sizes[name] for name in names], total)
    chosen = {}
    for name, count in zip(names, counts, strict=True):
        # A live weight may be zero; it still goes before one that is pruned.
        score = np.where(state.masks[name], np.abs(state.tensors[name]), -1.0)
        chosen[name] = top_mask(score, count, setting.row_floor(name), setting.config.pruning.prune_block)
    return state.masks | chosen


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under its largest weights."""
    return services.tune(state.with_masks(magnitude_masks(setting, state, setting.budget)))


METHOD = Method(begin)
