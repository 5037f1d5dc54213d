"""What SNIP and SynFlow share: pruning in steps by a score that is taken anew under each step's mask."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from fedtiny_train.masks import kept_total, top_mask, uniform_counts
from fedtiny_train.methods import Masks, Setting
from fedtiny_train.server import State

Scores = Mapping[str, npt.NDArray[np.floating]]


def density_after(setting: Setting, step: int) -> float:
    """Return the density after a step of n: 1 - (1 - d) i / n, or d^(i / n); the last is d."""
    steps, density = setting.config.scoring.score_steps, setting.config.train.density
    if step >= steps:
        return density
    if setting.config.scoring.score_schedule == "exponential":
        return float(density ** (step / steps))
    return 1 - (1 - density) * step / steps


def global_counts(scores: Scores, total: int) -> dict[str, int]:
    """Return how many of the `total` highest scores of all layers lie in each; every layer's best is among them."""
    owner = np.concatenate([np.full(score.size, index) for index, score in enumerate(scores.values())])
    flat = np.concatenate([score.reshape(-1).astype(np.float64) for score in scores.values()])
    edges = np.cumsum([0, *(score.size for score in scores.values())])
    for start, stop in itertools.pairwise(edges):
        flat[start + np.argmax(flat[start:stop])] = np.inf
    best = np.argsort(-flat, kind="stable")[:total]
    found = np.bincount(owner[best], minlength=len(scores))
    return {name: int(count) for name, count in zip(scores, found, strict=True)}


def masks_of(setting: Setting, masks: Masks, scores: Scores, total: int) -> Masks:
    """Keep `total` weights of the maskable layers by score, layer by layer or all against all."""
    names = setting.maskable
    mine = {name: scores[name] for name in names}
    if setting.config.scoring.score_scope == "global":
        counts = global_counts(mine, total)
    else:
        uniform = uniform_counts([setting.sizes[name] for name in names], total)
        counts = dict(zip(names, uniform, strict=True))
    return masks | {name: top_mask(mine[name], counts[name], setting.row_floor(name)) for name in names}


def scored_masks(setting: Setting, state: State, score: Callable[[Masks], Scores]) -> Masks:
    """Prune in steps: score under the mask so far, keep the step's share, and again."""
    masks = state.masks
    dense = sum(setting.sizes[name] for name in setting.dense)
    for step in range(1, setting.config.scoring.score_steps + 1):
        total = kept_total(density_after(setting, step), list(setting.sizes.values())) - dense
        masks = masks_of(setting, masks, score(masks), max(setting.budget, total))
    return masks
