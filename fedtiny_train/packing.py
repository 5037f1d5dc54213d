"""How many bytes of flash a network's model takes, and which width and density fill a budget.

The bytes are those of the exporter: each layer in its shortest encoding, 9 bytes an output channel, the records of
the file. Which weights live is not known before training, so positions are drawn at random with ERK shares.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from fedtiny_export import abi
from fedtiny_export.errors import UsageError
from fedtiny_export.sparse import sizes
from torch import nn

from fedtiny_train.masks import Mask, erk_counts, kept_total, random_mask
from fedtiny_train.models import ModelSpec, build, prunable
from fedtiny_train.models.layers import Add
from fedtiny_train.seeds import rng

STEPS = 12  # halvings of the density's interval: to a few thousandths of it


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


def record_bytes(spec: ModelSpec) -> int:
    """Return the bytes of header, tensors and operators of a network's file, batch norms and activations folded."""
    with torch.device("meta"):
        parts = [type(module) for module in build(spec).modules()]
    layers = sum(issubclass(part, nn.Conv2d | nn.Linear) for part in parts)
    additions, means = sum(part is Add for part in parts), parts.count(nn.AdaptiveAvgPool2d)
    operators = layers + additions + means
    own = layers * abi.CONV.size + additions * abi.ADD.size + means * abi.MEAN.size
    return abi.HEADER.size + operators * abi.OP.size + (operators + 1) * abi.TENSOR.size + own


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of each prunable weight; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in prunable(build(spec)).items()}


def drawn_masks(shapes: Mapping[str, tuple[int, ...]], total: int, seed: int) -> dict[str, Mask]:
    """Draw masks of `total` weights with ERK shares."""
    generator = rng(seed, "packed size")
    counts = erk_counts(list(shapes.values()), total)
    return {name: random_mask(shape, n, generator) for (name, shape), n in zip(shapes.items(), counts, strict=True)}


def model_bytes(spec: ModelSpec, density: float, seed: int = 0) -> int:
    """Return the bytes that the model of a network of a density takes in flash."""
    shapes = shapes_of(spec)
    if density >= 1:
        return record_bytes(spec) + packed_bytes({name: np.ones(shape, np.bool_) for name, shape in shapes.items()})
    total = max(len(shapes), kept_total(density, [int(np.prod(shape)) for shape in shapes.values()]))
    return record_bytes(spec) + packed_bytes(drawn_masks(shapes, total, seed))


def density_for(spec: ModelSpec, budget: int) -> float:
    """Return the greatest density, to three digits, at which a network's model fits into a budget; 0 if none does."""
    if model_bytes(spec, 1.0) <= budget:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if model_bytes(spec, middle) <= budget else (low, middle)
    weights, layers = sum(map(math.prod, shapes_of(spec).values())), len(shapes_of(spec))
    while low * weights >= layers:
        step = 10.0 ** (math.floor(math.log10(low)) - 2)
        rounded = math.floor(low / step) * step
        if model_bytes(spec, rounded) <= budget:  # positions are drawn, so that bytes hardly, but do, jump about
            return float(f"{rounded:.3g}")
        low = rounded - step
    return 0.0


def dense_width(spec: ModelSpec, budget: int, most: int = 1024) -> int:
    """Return the greatest width whose dense network fits into a budget, or 0."""
    low, high = 0, most
    while low < high:  # the bytes of a network grow with its width
        middle = (low + high + 1) // 2
        fits = model_bytes(dataclasses.replace(spec, width=middle), 1.0) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def width_for(spec: ModelSpec, budget: int, wished: float) -> int:
    """Return the width at which filling a budget leaves a density nearest to the wished one, on the scale of ratios."""
    least = dense_width(spec, budget)
    if not least:
        bare = model_bytes(dataclasses.replace(spec, width=1), 1.0)
        raise UsageError(f"{spec.name} of width 1 takes {bare:,} bytes; a flash budget of {budget:,} is too small")
    best, found = float("inf"), least
    for width in range(least, 1025):
        density = density_for(dataclasses.replace(spec, width=width), budget)
        if not density:
            break
        if (distance := abs(np.log(density / wished))) < best:
            best, found = distance, width
        elif density < wished:
            break
    return found
