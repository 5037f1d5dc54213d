"""Scores to masks, densities and schedules, as pure functions of arrays and numbers.

A mask is a boolean array of a weight's shape. Nothing here knows a model, a client or a method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def kept_total(density: float, sizes: Sequence[int]) -> int:
    """Return how many weights a density keeps: rounded down, with room for the last bit of a float."""
    return math.floor(density * sum(sizes) + 1e-9)


def allocate(shares: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Split `total` kept weights over layers of `sizes`, in proportion to `shares` (wished-for counts).

    Every layer keeps at least one weight and at most all. Counts are rounded down, and what is left goes to
    the largest remainders, the earlier layer first.
    """
    if not len(sizes) <= total <= sum(sizes):
        raise ValueError(f"{total} weights cannot be split over {len(sizes)} layers of {sum(sizes)} weights")
    wished = [min(max(share, 1.0), float(size)) for share, size in zip(shares, sizes, strict=True)]
    # Scale until the wishes sum to the total; those at a bound stay there, so a few passes are enough.
    for _ in range(64):
        free = [i for i, (w, size) in enumerate(zip(wished, sizes, strict=True)) if 1.0 < w < size]
        gap = total - sum(wished)
        weight = sum(wished[i] for i in free)
        if abs(gap) < 1e-9 or weight <= 0:
            break
        for i in free:
            wished[i] = min(max(wished[i] * (1 + gap / weight), 1.0), float(sizes[i]))
    counts = [math.floor(w + 1e-9) for w in wished]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - wished[i], i))
    missing = total - sum(counts)
    while missing:
        step = 1 if missing > 0 else -1
        for i in by_remainder if step > 0 else reversed(by_remainder):
            if missing and (counts[i] < sizes[i] if step > 0 else counts[i] > 1):
                counts[i] += step
                missing -= step
    return counts


def uniform_counts(sizes: Sequence[int], total: int) -> list[int]:
    """Split `total` kept weights so that every layer has the same density."""
    density = total / sum(sizes)
    return allocate([density * size for size in sizes], sizes, total)


def erk_counts(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    """Split `total` kept weights by Erdos-Renyi-kernel: a layer's share is as the sum of its dimensions.

    Its density is then as (out + in + h + w) / (out * in * h * w), at most 1; small layers are kept denser.
    """
    return allocate([float(sum(shape)) for shape in shapes], [math.prod(shape) for shape in shapes], total)


def noisy_shares(
    density: float, sizes: Sequence[int], generator: np.random.Generator, spread: float = 0.5
) -> list[float]:
    """Draw FedTiny's candidate densities: d_l = d + U(-spread, spread) * d, redrawn until the whole is near d.

    Near is 2 %, as in the authors' code; after 1,000 draws the last one is taken and left to `allocate`.
    """
    whole = sum(sizes)
    shares = [density * size for size in sizes]
    for _ in range(1000):
        factors = 1 + generator.uniform(-spread, spread, len(sizes))
        shares = [min(density * float(f) * size, float(size)) for f, size in zip(factors, sizes, strict=True)]
        if abs(sum(math.floor(s) for s in shares) / whole - density) / density < 0.02:
            break
    return shares


def block_of(shape: tuple[int, ...], block: int) -> int:
    """Return the size of a layer's blocks: 1 where its input channels (axis 1) cannot be divided into blocks."""
    return block if len(shape) > 1 and shape[1] % block == 0 else 1


def folded(array: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """Return the sums over blocks of neighbouring input channels."""
    summed: npt.NDArray[Any] = array.reshape(array.shape[0], -1, block, *array.shape[2:]).sum(axis=2)
    return summed


def unfolded(blocks: Mask, size: npt.NDArray[np.floating], count: int) -> Mask:
    """Return the mask of whole blocks; what is more than `count` goes, the smallest weights of the smallest block."""
    block = size.shape[1] // blocks.shape[1]
    mask = np.repeat(blocks, block, axis=1)
    spread = np.repeat(folded(size, block), block, axis=1).reshape(-1)
    number = np.repeat(np.arange(blocks.size).reshape(blocks.shape), block, axis=1).reshape(-1)
    live = np.flatnonzero(mask)
    order = np.lexsort((size.reshape(-1)[live], number[live], spread[live]))
    mask.reshape(-1)[live[order[: len(live) - count]]] = False
    return mask


def top_mask(score: npt.NDArray[np.floating], count: int, row_floor: int = 0, block: int = 1) -> Mask:
    """Keep the `count` highest scores, ties to the lower index; first `row_floor` of each row (axis 0).

    With a `block` it is blocks of neighbouring input channels that are kept, by the sums of their scores.
    """
    if (block := block_of(score.shape, block)) > 1:
        blocks = top_mask(folded(score, block), -(-count // block), -(-row_floor // block))
        return unfolded(blocks, score, count)
    flat = score.reshape(-1).astype(np.float64)
    mask = np.zeros(flat.shape, dtype=np.bool_)
    if row_floor:
        rows = flat.reshape(score.shape[0], -1)
        floor = min(row_floor, rows.shape[1], count // rows.shape[0])
        best = np.argsort(-rows, axis=1, kind="stable")[:, :floor]
        mask.reshape(rows.shape)[np.arange(rows.shape[0])[:, None], best] = True
    order = np.argsort(-np.where(mask, -np.inf, flat), kind="stable")
    mask[order[: count - int(mask.sum())]] = True
    return mask.reshape(score.shape)


def random_mask(shape: tuple[int, ...], count: int, generator: np.random.Generator, block: int = 1) -> Mask:
    """Keep `count` positions, each set of them equally likely, or each set of blocks of input channels."""
    if block > 1 and (block := block_of(shape, block)) > 1:
        blocks = random_mask((shape[0], shape[1] // block, *shape[2:]), -(-count // block), generator)
        return unfolded(blocks, np.ones(shape), count)
    mask = np.zeros(math.prod(shape), dtype=np.bool_)
    mask[generator.choice(mask.size, count, replace=False)] = True
    return mask.reshape(shape)


def density_of(masks: Mapping[str, Mask]) -> float:
    """Return kept / prunable over all masks together."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.size for m in masks.values())


def swap_count(active: int, step: int, last_step: int, rate: float = 0.3) -> int:
    """Return a_t = rate/2 * (1 + cos(pi * t / t_last)) * n, rounded up: FedTiny's number of swaps.

    `step` and `last_step` are in local epochs, `active` is the number of live weights of the layer.
    """
    if step > last_step:
        return 0
    return math.ceil(rate / 2 * (1 + math.cos(math.pi * step / last_step)) * active - 1e-9)


def top_gradients(gradient: Array, mask: Mask, count: int, block: int = 1) -> tuple[npt.NDArray[np.int64], Array]:
    """Return (indices, values) of the `count` largest |gradient| among pruned positions, by index.

    With a `block` those of the blocks with the largest sums among the blocks that are pruned as a whole.
    """
    if (block := block_of(gradient.shape, block)) > 1:
        sums = folded(np.abs(gradient), block)
        best, _ = top_gradients(sums, folded(mask, block) > 0, count // block)
        blocks = np.zeros(sums.shape, dtype=np.bool_)
        blocks.reshape(-1)[best] = True
        indices = np.flatnonzero(np.repeat(blocks, block, axis=1))
        return indices, gradient.reshape(-1)[indices]
    pruned = np.flatnonzero(~mask.reshape(-1))
    values = gradient.reshape(-1)[pruned]
    best = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    return pruned[best], values[best]


def swap(
    weights: Array, mask: Mask, gradient: Array, count: int, row_floor: int = 0, shrink: int = 0, block: int = 1
) -> Mask:
    """Prune the `count` smallest live weights and grow the pruned positions with the largest |gradient|.

    Positions without a gradient (zero) are never grown, and a position pruned now never is, so the number of
    swaps is the smaller of what may go and what may come. `shrink` more weights go and nothing comes for them;
    otherwise the count of live weights stays. Each row keeps its `row_floor` largest. With a `block` the same
    happens to blocks of neighbouring input channels.
    """
    if (block := block_of(mask.shape, block)) > 1:
        size, live_blocks = np.where(mask, np.abs(weights), 0), folded(mask, block) > 0
        left = int(mask.sum()) - shrink
        fewer = int(live_blocks.sum()) - -(-left // block)
        sums = folded(np.abs(gradient), block)
        blocks = swap(folded(size, block), live_blocks, sums, count // block, -(-row_floor // block), fewer)
        return unfolded(blocks, size, left)
    live, strength = mask.reshape(-1), np.abs(gradient.reshape(-1))
    candidates = np.flatnonzero(~live & (strength > 0))
    protected = np.zeros_like(mask)
    if row_floor:
        size = np.where(mask, np.abs(weights), -1.0)
        rows = size.reshape(mask.shape[0], -1)
        best = np.argsort(-rows, axis=1, kind="stable")[:, :row_floor]
        protected.reshape(rows.shape)[np.arange(rows.shape[0])[:, None], best] = True
    droppable = np.flatnonzero(live & ~protected.reshape(-1))
    count = min(count, len(candidates), max(0, len(droppable) - shrink))
    drop = droppable[np.argsort(np.abs(weights.reshape(-1)[droppable]), kind="stable")[: count + shrink]]
    grow = candidates[np.argsort(-strength[candidates], kind="stable")[:count]]
    after = live.copy()
    after[drop] = False
    after[grow] = True
    return after.reshape(mask.shape)
