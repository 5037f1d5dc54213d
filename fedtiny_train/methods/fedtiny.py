"""FedTiny (Huang et al., ICDCS 2023): adaptive batch-norm selection, then progressive pruning.

    begin   draw C candidate masks by magnitude, with noise on each layer's density
            clients adapt the batch norm of every candidate; the server averages the statistics
            clients score every candidate with these; the lowest loss wins
    wants   every delta-R rounds until R_stop: the next block, from the output backwards, cyclically;
            a_t = rate/2 * (1 + cos(pi t / (R_stop E))) * n weights of each of its layers, t = round * E
    adjust  prune the a_t smallest live weights; grow the a_t pruned ones with the largest averaged gradient

Where it leaves the authors' code on purpose: a counter of adjustments walks the blocks (their rounds modulo 4
skips half of them), the cosine takes t = round * E, and the density is exact to the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedtiny_train import wire
from fedtiny_train.masks import Array, Mask, allocate, noisy_shares, swap, swap_count, top_mask
from fedtiny_train.methods import Ask, Setting
from fedtiny_train.seeds import rng
from fedtiny_train.server import Check, State, average, need, need_shapes
from fedtiny_train.wire import Message

Masks = dict[str, Mask]


def pool_size(setting: Setting) -> int:
    """Return C: as asked, or the paper's 0.1 / density, but at least 5: one candidate is no choice."""
    return setting.config.fedtiny.pool or max(5, math.ceil(0.1 / setting.config.train.density - 1e-9))


def schedule(setting: Setting) -> tuple[int, int]:
    """Return (delta-R, R_stop): as asked, or the paper's 10 and 100 of 300, scaled to the number of rounds."""
    rounds, options = setting.config.train.rounds, setting.config.fedtiny
    return options.adjust_every or max(1, round(rounds / 30)), options.adjust_until or max(1, round(rounds / 3))


def floor_of(setting: Setting, name: str) -> int:
    """Return the least number of weights a row of this layer keeps: the option, in the classifier alone."""
    return setting.config.fedtiny.row_floor if name == list(setting.sizes)[-1] else 0


def candidates(setting: Setting, state: State) -> list[Masks]:
    """Draw the pool: magnitude masks of one total, each with its own noisy densities per layer."""
    names = setting.maskable
    sizes = [setting.sizes[name] for name in names]
    pool = []
    for index in range(pool_size(setting)):
        generator = rng(setting.config.run.seed, "candidate", index)
        shares = noisy_shares(setting.budget / sum(sizes), sizes, generator)
        counts = allocate(shares, sizes, setting.budget)
        masks = {
            name: top_mask(np.abs(state.tensors[name]), count, floor_of(setting, name))
            for name, count in zip(names, counts, strict=True)
        }
        pool.append(state.masks | masks)
    return pool


def select(setting: Setting, state: State, pool: Sequence[Masks], ask: Ask) -> State:
    """Adaptive batch-norm selection: return the state under the candidate that the clients find best."""
    states = [state.with_masks(masks) for masks in pool]
    models = _pool_message(setting, state, states)
    statistics = [name for name in state.tensors if "running_" in name]
    adapted_names = [f"{index}/{name}" for index in range(len(pool)) for name in statistics]
    shapes = {name: state.tensors[name.split("/")[1]].shape for name in adapted_names}
    adapted = ask(models, _adapted_check(shapes))
    pooled = average(adapted.messages, adapted_names)
    scored = ask(Message("score", {}, pooled), _scored_check(len(pool)), kept=models)
    parts = [m for _, m in sorted(scored.messages.items())]
    samples = sum(m.numbers["samples"] for m in parts)
    loss, squares, correct = (sum(m.array(key) for m in parts) / samples for key in ("loss", "loss_squared", "correct"))
    best = int(np.argmin(loss))
    error = np.sqrt(np.maximum(squares - loss**2, 0) / samples)
    memory = {
        "chosen": best,
        "losses": [float(v) for v in loss],
        "standard_errors": [float(v) for v in error],
        "accuracies": [float(v) for v in correct],
    }
    own = {name: pooled.get(f"{best}/{name}", state.tensors[name]) for name in statistics}
    chosen = states[best]
    return replace(chosen, tensors=chosen.tensors | own, memory={**state.memory, "selection": memory})


def _pool_message(setting: Setting, state: State, states: Sequence[State]) -> Message:
    """Return the pool as it is sent: what all candidates share once, their own sparse weights each."""
    names = setting.maskable
    tensors: dict[str, wire.Tensor] = {n: a for n, a in state.tensors.items() if n not in names}
    for index, one in enumerate(states):
        tensors |= {f"{index}/{name}": wire.masked(one.tensors[name], one.masks[name]) for name in names}
    numbers = {"pool": len(states), "passes": setting.config.fedtiny.adaptation_passes}
    return Message("adapt", numbers, tensors)


def _adapted_check(shapes: Mapping[str, tuple[int, ...]]) -> Check:
    def check(message: Message) -> None:
        need(message, "adapted", ("samples",))
        # A client with a single sample has no variance to send, and sends nothing.
        need_shapes(message, shapes, list(shapes) if not message.tensors else [])

    return check


def _scored_check(pool: int) -> Check:
    def check(message: Message) -> None:
        need(message, "scored", ("samples",))
        need_shapes(message, {"loss": (pool,), "loss_squared": (pool,), "correct": (pool,)})

    return check


class FedTiny:
    """The method; the two options `selection` and `progressive` switch off one half each."""

    def begin(self, setting: Setting, state: State, ask: Ask) -> State:
        """Return the state under the selected candidate, or under the first one without selection."""
        pool = candidates(setting, state)
        if setting.config.fedtiny.selection:
            return select(setting, state, pool, ask)
        return state.with_masks(pool[0])

    def wants(self, setting: Setting, state: State, round_number: int) -> dict[str, int]:
        """Return a_t for each layer of the unit whose turn it is, in the rounds that adjust."""
        options, epochs = setting.config.fedtiny, setting.config.train.local_epochs
        every, until = schedule(setting)
        if not options.progressive or round_number % every or round_number > until:
            return {}
        units = units_of(setting)
        turn = round_number // every - 1
        counts = {}
        for name in units[turn % len(units)]:
            mask = state.masks[name]
            live = int(mask.sum())
            count = swap_count(live, round_number * epochs, until * epochs, options.adjust_rate)
            if count := min(count, live, mask.size - live):
                counts[name] = count
        return counts

    def adjust(
        self, setting: Setting, state: State, gradients: Mapping[str, Array], counts: Mapping[str, int]
    ) -> State:
        """Swap the smallest live weights for the pruned positions with the largest gradients."""
        masks = dict(state.masks)
        for name, gradient in gradients.items():
            floor = floor_of(setting, name)
            masks[name] = swap(state.tensors[name], state.masks[name], gradient, counts[name], floor)
        return state.with_masks(masks)


def units_of(setting: Setting) -> list[tuple[str, ...]]:
    """Return what is adjusted at a time, in the order of the turns."""
    options = setting.config.fedtiny
    if options.granularity == "entire":
        return [tuple(setting.maskable)]
    layers: list[tuple[str, ...]] = [(name,) for name in setting.maskable]
    units = list(setting.blocks) if options.granularity == "block" else layers
    return units[::-1] if options.order == "backward" else units
