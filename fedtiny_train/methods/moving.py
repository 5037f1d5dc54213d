"""What the methods that move weights during training share: when they adjust, and how many weights they swap."""

from __future__ import annotations

from collections.abc import Sequence

from fedtiny_train.masks import swap, swap_count
from fedtiny_train.methods import Outcome, Setting
from fedtiny_train.server import State


def times(setting: Setting, every_share: float, until_share: float) -> tuple[int, int]:
    """Return (rounds between adjustments, last round that adjusts): as asked, or these shares of all rounds."""
    rounds, options = setting.config.train.rounds, setting.config.pruning
    every = options.adjust_every or max(1, round(rounds * every_share))
    return every, options.adjust_until or max(1, round(rounds * until_share))


def is_due(number: int, every: int, until: int) -> bool:
    """Return whether a round adjusts."""
    return number % every == 0 and number <= until


def swap_counts(
    setting: Setting, state: State, names: Sequence[str], number: int, until: int, rate: float | None = None
) -> dict[str, int]:
    """Return a_t of each layer, at most its live and its pruned weights; layers that swap nothing are left out.

    a_t = rate / 2 * (1 + cos(pi t / T)) * live, in local epochs: t = number * E, T = until * E. The rate is
    `adjust_rate` unless a method has one of its own.
    """
    epochs = setting.config.train.local_epochs
    rate = setting.config.pruning.adjust_rate if rate is None else rate
    counts = {}
    for name in names:
        mask = state.masks[name]
        live = int(mask.sum())
        count = swap_count(live, number * epochs, until * epochs, rate)
        if count := min(count, live, mask.size - live):
            counts[name] = count
    return counts


def swapped(setting: Setting, outcome: Outcome) -> State:
    """Swap the smallest live weights for the pruned positions with the largest averaged gradients."""
    state = outcome.state
    masks = dict(state.masks)
    for name, gradient in outcome.gradients.items():
        floor = setting.row_floor(name)
        count, block = outcome.orders.top[name], setting.config.pruning.prune_block
        masks[name] = swap(state.tensors[name], masks[name], gradient, count, floor, block=block)
    return state.with_masks(masks)
