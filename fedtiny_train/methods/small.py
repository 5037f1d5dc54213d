"""A small dense network of no more bytes: what a sparse one has to beat.

    network  the same network at the largest width whose dense int8 weights are at most as many bytes as those of
             the network asked for, pruned to the density asked for with ERK shares
    begin    dense; plain federated averaging from there

Bytes are what the exporter writes to flash for weights: each layer in its shortest encoding, and 9 bytes an output
channel for bias, multiplier and shift. Both networks have the same operators, so their records are left out; so is
what an export saves where a pruned channel is dead. The sparse positions are drawn at random, as for `erk`.
FedTiny's authors compare with hand-made networks of two or three layers; a narrower copy leaves nothing to taste.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from fedtiny_export.errors import UsageError
from fedtiny_export.sparse import sizes

from fedtiny_train.masks import Mask, erk_counts, random_mask
from fedtiny_train.methods import Masks, Method, Setting
from fedtiny_train.methods.fedavg import begin
from fedtiny_train.models import ModelSpec, blocks, build, prunable
from fedtiny_train.seeds import rng


def packed_bytes(masks: Mapping[str, Mask]) -> int:
    """Return the bytes of a network's int8 weights and channel parameters, as `.ftm` lays them out.

    A layer of C output channels: min over the encodings, 4 C for the bias, 4 C for the multiplier and C for the
    shift, each block in whole words.
    """
    total = 0
    for mask in masks.values():
        channels = mask.shape[0]
        total += min(sizes(mask.astype(np.int8)).values()) + 8 * channels + channels + -channels % 4
    return total


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of each prunable weight; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in prunable(build(spec)).items()}


def sparse_masks(setting: Setting) -> Masks:
    """Draw the masks of the network asked for, at the density asked for."""
    shapes, names = shapes_of(setting.spec), setting.maskable
    generator = rng(setting.config.run.seed, "packed size")
    counts = erk_counts([shapes[name] for name in names], setting.budget)
    drawn = {n: random_mask(shapes[n], count, generator) for n, count in zip(names, counts, strict=True)}
    return {name: drawn.get(name, np.ones(shape, np.bool_)) for name, shape in shapes.items()}


def dense_bytes(spec: ModelSpec) -> int:
    """Return the packed bytes of a network with all its weights."""
    return packed_bytes({name: np.ones(shape, np.bool_) for name, shape in shapes_of(spec).items()})


def widest(spec: ModelSpec, limit: int) -> int:
    """Return the largest width, at most that of `spec`, whose dense network has at most `limit` bytes, or 0."""
    low, high = 0, spec.width
    while low < high:  # the bytes of a network grow with its width
        middle = (low + high + 1) // 2
        fits = dense_bytes(replace(spec, width=middle)) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def network(setting: Setting) -> Setting:
    """Return the facts of the small network; refuse a size that not even a width of 1 has."""
    limit = packed_bytes(sparse_masks(setting))
    width = widest(setting.spec, limit)
    if not width:
        least = dense_bytes(replace(setting.spec, width=1))
        raise UsageError(
            f"{setting.spec.name} of width {setting.spec.width} at density {setting.config.train.density} packs to "
            f"{limit:,} bytes, and even its dense network of width 1 has {least:,}; use a greater --density or --width"
        )
    config = replace(setting.config, train=replace(setting.config.train, density=1.0))
    spec = replace(setting.spec, width=width)
    model = build(spec)
    weights = {name: weight.numel() for name, weight in prunable(model).items()}
    return Setting(config, spec, weights, frozenset(), tuple(blocks(model)))


METHOD = Method(begin, network=network)
