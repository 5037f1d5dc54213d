"""LotteryFL as FedTiny's authors compare with it: one dense network that the server thins out step by step.

    begin   dense
    learn   every delta-R rounds until R_stop, in n = R_stop / delta-R steps: after step t of n each layer keeps its
            largest weights at density 1 - (1 - d) t / n; the last step reaches d, and the rest of the rounds train
    rewind  (an option) after each step the survivors, and whatever else is trained, are what they were at first

It is not the official LotteryFL (Li et al., SEC 2021), in which every client has a mask of its own, prunes a fifth
of what is left once its accuracy allows, rewinds, and the server averages each weight over those that keep it.
A device must hold and train the dense network in the first rounds: that is what the comparison is about.
"""

from __future__ import annotations

from dataclasses import replace

from fedtiny_train.masks import kept_total
from fedtiny_train.methods import Method, Outcome, Services, Setting
from fedtiny_train.methods.magnitude import magnitude_masks
from fedtiny_train.methods.moving import is_due, times
from fedtiny_train.server import State

FIRST = "first/"


def schedule(setting: Setting) -> tuple[int, int]:
    """Return (delta-R, R_stop): as asked, or 10 and 100 of 300 rounds; both within the run, so that d is reached."""
    every, until = times(setting, 1 / 30, 1 / 3)
    until = min(until, setting.config.train.rounds)
    return min(every, until), until


def total_after(setting: Setting, step: int, steps: int) -> int:
    """Return how many maskable weights live after a step; layers left dense count as kept."""
    if step >= steps:
        return setting.budget
    density = 1 - (1 - setting.config.train.density) * step / steps
    dense = sum(setting.sizes[name] for name in setting.dense)
    return max(setting.budget, kept_total(density, list(setting.sizes.values())) - dense)


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the dense state; with `rewind` remember it."""
    if not setting.config.lotteryfl.rewind:
        return state
    return replace(state, kept=state.kept | {FIRST + name: array for name, array in state.tensors.items()})


def learn(setting: Setting, outcome: Outcome) -> State:
    """Thin out if it is time."""
    state = outcome.state
    every, until = schedule(setting)
    if not is_due(outcome.number, every, until):
        return state
    masks = magnitude_masks(setting, state, total_after(setting, outcome.number // every, until // every))
    first = {name.removeprefix(FIRST): array for name, array in state.kept.items() if name.startswith(FIRST)}
    return replace(state, tensors=state.tensors | first).with_masks(masks)


METHOD = Method(begin, learn=learn)
