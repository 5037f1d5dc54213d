"""FedPack, our own: a network for very few bytes, that thins out while it trains.

    begin   ERK shares of d0 = max(0.1, 4 d), the first layer included; the largest weights of each layer
    orders  every R/15 rounds until two thirds of R: a_t gradients of pruned positions from every layer
    learn   the kept total falls as d + (d0 - d) (1 - r / R_stop)^3; each layer drops its smallest weights down
            to its new share and a_t more, and grows a_t at the positions with the largest averaged gradients

Three things starve at 1 % of a small network under the papers' rules, and each has its answer here. The
classifier: its rows keep a floor of weights. Filters: gradients are weighed by the batch-norm deviation, since a
dead filter's are blown up by 1 / sqrt(eps) and would draw all growth. Search: a mask that begins at its final
density has hardly any gradients to follow, so it begins ten times denser, still far from dense memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedtiny_train import models
from fedtiny_train.liveness import working
from fedtiny_train.masks import Array, Mask, allocate, erk_counts, kept_total, swap, top_mask
from fedtiny_train.methods import Method, Orders, Outcome, Services, Setting
from fedtiny_train.methods.moving import is_due, swap_counts, times
from fedtiny_train.server import State

MEAN, STEP = "mean/", "step/"


def schedule(setting: Setting) -> tuple[int, int]:
    """Return (rounds between adjustments, R_stop)."""
    return times(setting, 1 / 15, 2 / 3)


def start_density(setting: Setting) -> float:
    """Return d0: as asked, or max(0.1, 4 d), never less than d."""
    density = setting.config.train.density
    return max(density, setting.config.fedpack.start_density or min(1.0, max(0.1, 4 * density)))


def density_at(setting: Setting, number: int) -> float:
    """Return the density after the adjustment of a round; the last one reaches the target, whatever R_stop is."""
    every, until = schedule(setting)
    end, start = setting.config.train.density, start_density(setting)
    left = max(0.0, 1 - number / until) if number + every <= until else 0.0
    return end + (start - end) * left**3


def shares(setting: Setting, state: State, density: float) -> dict[str, int]:
    """Return how many weights each layer keeps at a density: ERK, a part of it by competition over all layers."""
    names = setting.maskable
    sizes = [setting.sizes[name] for name in names]
    total = max(
        len(names), kept_total(density, list(setting.sizes.values())) - sum(setting.sizes[n] for n in setting.dense)
    )
    counts = erk_counts([state.tensors[name].shape for name in names], total)
    part = setting.config.fedpack.global_share
    if part:
        won = _competed(setting, state, total)
        counts = allocate([(1 - part) * a + part * b for a, b in zip(counts, won, strict=True)], sizes, total)
    least = min(setting.config.fedpack.class_floor * state.tensors[names[-1]].shape[0], sizes[-1], total // 2)
    if counts[-1] < least:
        counts = [*allocate([float(c) for c in counts[:-1]], sizes[:-1], total - least), least]
    return dict(zip(names, counts, strict=True))


def _competed(setting: Setting, state: State, total: int) -> list[int]:
    """Return how many of the `total` largest weights lie in each layer, each measured by its layer's live ones."""
    names = setting.maskable
    scores = []
    for name in names:
        size = np.abs(state.tensors[name]).reshape(-1).astype(np.float64)
        scores.append(size / max(float(np.sqrt((size**2).sum() / max(1, state.masks[name].sum()))), 1e-12))
    order = np.argsort(-np.concatenate(scores), kind="stable")[:total]
    edges = np.cumsum([0, *(len(score) for score in scores)])
    return [int(((order >= low) & (order < high)).sum()) for low, high in itertools.pairwise(edges)]


def floor_of(setting: Setting, name: str) -> int:
    """Return the least weights a row of a layer keeps."""
    return setting.config.fedpack.class_floor if name == setting.classifier else 0


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under the largest weights of each layer."""
    counts, block = shares(setting, state, start_density(setting)), setting.config.pruning.prune_block
    masks = {n: top_mask(np.abs(state.tensors[n]), c, floor_of(setting, n), block) for n, c in counts.items()}
    return services.tune(state.with_masks(state.masks | masks))


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Ask every layer for gradients in the rounds that adjust."""
    every, until = schedule(setting)
    last = until - until % every
    if not is_due(number, every, until):
        return Orders()
    counts = swap_counts(setting, state, setting.maskable, min(number, last), until)
    weighed = {"scale_by_norm": 1.0} if setting.config.fedpack.weigh_growth else {}
    pressed = _pressed(setting, state, number, counts) if setting.config.fedpack.press else {}
    return Orders(counts, {**weighed, **pressed, "adjust": 1.0})


def _pressed(setting: Setting, state: State, number: int, grown: Mapping[str, int]) -> dict[str, float]:
    """Ask for FedMef's extrusion of as many weights as each layer is about to lose."""
    after, names = shares(setting, state, density_at(setting, number)), setting.maskable
    lost = {n: min(int(state.masks[n].sum()), int(state.masks[n].sum()) - after[n] + grown.get(n, 0)) for n in names}
    asked = {f"extrude/{name}": float(count) for name, count in lost.items() if count > 0}
    return asked | {"extrude_weight": setting.config.fedmef.extrusion_weight, "extrude_lr": setting.config.train.lr}


def learn(setting: Setting, outcome: Outcome) -> State:
    """Step with momentum, then thin out and move weights if it is time."""
    state = _with_momentum(setting, outcome)
    if outcome.orders.numbers.get("adjust"):
        counts = shares(setting, state, density_at(setting, outcome.number))
        if setting.config.fedpack.clear_dead_ends:
            state = _without_dead_ends(setting, state)
        masks = {name: _moved(setting, outcome, state, name, count) for name, count in counts.items()}
        state = state.with_masks(state.masks | masks)
    return _averaging(setting, outcome, state)


def _without_dead_ends(setting: Setting, state: State) -> State:
    """Return the state with a zero for every weight that does not work: the smallest of all, it goes first."""
    works = working(models.shared(setting.spec), state.masks, setting.spec.shape[0])
    return replace(state, tensors=state.tensors | {name: state.tensors[name] * part for name, part in works.items()})


def _moved(setting: Setting, outcome: Outcome, state: State, name: str, count: int) -> Mask:
    weights, mask = state.tensors[name], state.masks[name]
    gradient = outcome.gradients.get(name, np.zeros_like(weights))
    change, grow = count - int(mask.sum()), outcome.orders.top.get(name, 0)
    if change > 0:  # a layer that won weights from others: what it gains grows, and nothing goes for it
        pruned = np.flatnonzero(~mask)
        order = np.argsort(-np.abs(gradient.reshape(-1)[pruned]), kind="stable")
        grown = mask.reshape(-1).copy()
        grown[pruned[order[:change]]] = True
        return grown.reshape(mask.shape)
    return swap(weights, mask, gradient, grow, floor_of(setting, name), -change, setting.config.pruning.prune_block)


def _with_momentum(setting: Setting, outcome: Outcome) -> State:
    momentum, state = setting.config.fedpack.server_momentum, outcome.state
    if not momentum:
        return state
    steps: dict[str, Array] = {}
    tensors = {}
    for name, after in state.tensors.items():
        if "running_" in name:
            continue
        before = outcome.before.tensors[name]
        steps[STEP + name] = (after - before) + np.float32(momentum) * state.kept.get(STEP + name, np.float32(0))
        mask = state.masks.get(name)
        tensors[name] = before + steps[STEP + name] if mask is None else (before + steps[STEP + name]) * mask
    return replace(state, tensors=state.tensors | tensors, kept=state.kept | steps)


def _averaging(setting: Setting, outcome: Outcome, state: State) -> State:
    rounds, part = setting.config.train.rounds, setting.config.fedpack.average_last
    first = max(schedule(setting)[1] + 1, rounds - round(part * rounds) + 1)
    if not part or outcome.number < first:
        return state
    done = outcome.number - first
    means = {}
    for name, array in state.tensors.items():
        old = state.kept.get(MEAN + name, np.zeros_like(array))
        means[MEAN + name] = np.asarray((old * done + array) / (done + 1), dtype=np.float32)
    return replace(state, kept=state.kept | means)


def close(setting: Setting, state: State, services: Services) -> State:
    """Return the average over the last rounds where one was kept."""
    means = {n.removeprefix(MEAN): a for n, a in state.kept.items() if n.startswith(MEAN)}
    return replace(state, tensors=state.tensors | means)


METHOD = Method(begin, orders, learn, close, prunes_all=True)
