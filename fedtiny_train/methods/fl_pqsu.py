"""FL-PQSU (Xu et al., 2021): structured pruning, quantised exchange, selective upload.

    begin   of each layer the filters with the largest L1 norm, whole, one density for all layers; the last filter
            that is kept is trimmed to its largest weights, so that the count is exact; of the classifier, whose
            filters are classes, the largest weights
    orders  in every round: all tensors travel in 8 bits, zero + scale * code with scale = (max - min) / 255, either
            way; a client uploads only if its loss is below the loss of its last upload

The loss is the mean over the round's batches, before the last step, as the update states it. The first upload
has nothing to be below of. Where nobody uploads, the model stays. Calibration after the last round is no part of
it and travels in full. Either half can be turned off.
"""

from __future__ import annotations

import numpy as np

from fedtiny_train.masks import Array, Mask, top_mask, uniform_counts
from fedtiny_train.methods import Masks, Method, Orders, Services, Setting
from fedtiny_train.server import State


def filter_mask(weights: Array, count: int) -> Mask:
    """Keep whole filters by L1 norm, ties to the earlier one, and of the last one its largest weights."""
    size = np.abs(weights.reshape(weights.shape[0], -1).astype(np.float64))
    order = np.argsort(-size.sum(axis=1), kind="stable")
    whole, rest = divmod(count, size.shape[1])
    mask = np.zeros(size.shape, dtype=np.bool_)
    mask[order[:whole]] = True
    if rest:
        mask[order[whole]] = top_mask(size[order[whole]], rest)
    return mask.reshape(weights.shape)


def masks_of(setting: Setting, state: State) -> Masks:
    """Return the structured masks of all maskable layers, and the classifier's by magnitude."""
    names = setting.maskable
    counts = uniform_counts([setting.sizes[name] for name in names], setting.budget)
    masks = dict(state.masks)
    for name, count in zip(names, counts, strict=True):
        weights = state.tensors[name]
        last = name == setting.classifier
        masks[name] = top_mask(np.abs(weights), count, setting.row_floor(name)) if last else filter_mask(weights, count)
    return masks


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under its strongest filters."""
    return services.tune(state.with_masks(masks_of(setting, state)))


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Ask for quantised updates, and only for those that are better than the client's last one."""
    options = setting.config.flpqsu
    return Orders(may_skip=options.selective_upload, bits=options.exchange_bits)


METHOD = Method(begin, orders)
