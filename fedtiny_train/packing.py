"""How many bytes of flash a network's model takes, and which width and density fill a budget.

The bytes are those of the exporter: each layer in the encoding an export would choose, 9 bytes an output channel, the
records of the file. Which weights live is not known before training, so positions are drawn at random with ERK shares.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from fedtiny_export.errors import UsageError
from fedtiny_export.ftm.fitting import need_of, packed_bytes

from fedtiny_train import models
from fedtiny_train.masks import Mask, erk_counts, kept_total, random_mask
from fedtiny_train.models import ModelSpec, build, prunable
from fedtiny_train.onnx_out import to_onnx
from fedtiny_train.seeds import rng

WIDEST = 1024
STEPS = 12  # halvings of the density's interval: to a few thousandths of it


@functools.cache
def record_bytes(spec: ModelSpec) -> int:
    """Return the bytes of header, tensors and operators of a network's file; its width does not change them."""
    masks = drawn_masks(shapes_of(spec), 1.0, 0)
    return need_of(untrained(spec, masks)).model - packed_bytes(masks.values())


def untrained(spec: ModelSpec, masks: Mapping[str, Mask]) -> bytes:
    """Return the ONNX file of a network as it begins, under masks."""
    tensors = models.initial_state(spec, 0)
    return to_onnx(spec, tensors | {name: tensors[name] * mask for name, mask in masks.items()}, masks)


@functools.cache
def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of each prunable weight; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in prunable(build(spec)).items()}


def drawn_masks(shapes: Mapping[str, tuple[int, ...]], density: float, seed: int) -> dict[str, Mask]:
    """Draw masks of a density with ERK shares."""
    if density >= 1:
        return {name: np.ones(shape, np.bool_) for name, shape in shapes.items()}
    total = max(len(shapes), kept_total(density, [math.prod(shape) for shape in shapes.values()]))
    generator = rng(seed, "packed size")
    counts = erk_counts(list(shapes.values()), total)
    return {name: random_mask(shape, n, generator) for (name, shape), n in zip(shapes.items(), counts, strict=True)}


def model_bytes(spec: ModelSpec, density: float, seed: int = 0) -> int:
    """Return the bytes that the model of a network of a density takes in flash."""
    masks = drawn_masks(shapes_of(spec), density, seed)
    return record_bytes(dataclasses.replace(spec, width=min(spec.width, 1))) + packed_bytes(masks.values())


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


def dense_width(spec: ModelSpec, budget: int, most: int = WIDEST) -> int:
    """Return the greatest width whose dense network fits into a budget, or 0."""

    def fits(width: int) -> bool:
        return model_bytes(dataclasses.replace(spec, width=width), 1.0) <= budget

    return _last(fits, 0, most)


def _last(holds: Callable[[int], bool], low: int, most: int) -> int:
    """Return the greatest number up to `most` for which something holds that holds for `low` and stops once.

    It goes up by doubling, since the widest networks are the dearest to look at.
    """
    high = low + 1
    while high <= most and holds(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def width_for(spec: ModelSpec, budget: int, wished: float) -> int:
    """Return the width at which filling a budget leaves a density nearest to the wished one, on the scale of ratios."""
    density = functools.cache(lambda width: density_for(dataclasses.replace(spec, width=width), budget))
    if not density(1):
        bare = model_bytes(dataclasses.replace(spec, width=1), 0.0)  # a weight a layer
        raise UsageError(
            f"{spec.name} of width 1 takes {bare:,} bytes at the least; a flash budget of {budget:,} is too small"
        )
    least = max(1, dense_width(spec, budget))  # where even width 1 has to be pruned, that is where to begin
    low = _last(lambda width: density(width) >= wished, least, WIDEST)  # the wider, the sparser
    near = [width for width in (low, low + 1) if width <= WIDEST and density(width)]
    return min(near, key=lambda width: abs(math.log(density(width) / wished)))
