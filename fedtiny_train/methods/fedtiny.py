"""FedTiny (Huang et al., ICDCS 2023): adaptive batch-norm selection, then progressive pruning.

    begin   draw C candidate masks by magnitude, with noise on each layer's density
            clients adapt the batch norm of every candidate; the server averages the statistics
            clients score every candidate with these; the lowest loss wins
    orders  every delta-R rounds until R_stop: the next block, from the output backwards, cyclically;
            a_t = rate/2 * (1 + cos(pi t / (R_stop E))) * n weights of each of its layers, t = round * E
    learn   prune the a_t smallest live weights; grow the a_t pruned ones with the largest averaged gradient

Where it leaves the authors' code on purpose: a counter of adjustments walks the blocks (their rounds modulo 4
skips half of them), the cosine takes t = round * E, and the density is exact to the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fedtiny_export.errors import FedtinyError

from fedtiny_train import wire
from fedtiny_train.masks import allocate, noisy_shares, top_mask
from fedtiny_train.methods import Ask, Masks, Method, Orders, Services, Setting
from fedtiny_train.methods.moving import is_due, swap_counts, swapped, times
from fedtiny_train.models import Arrays
from fedtiny_train.seeds import rng
from fedtiny_train.server import Check, State, need, need_shapes
from fedtiny_train.wire import Message


def pool_size(setting: Setting) -> int:
    """Return C: as asked, or the paper's 0.1 / density, but at least 5: one candidate is no choice."""
    return setting.config.fedtiny.pool or max(5, math.ceil(0.1 / setting.config.train.density - 1e-9))


def schedule(setting: Setting) -> tuple[int, int]:
    """Return (delta-R, R_stop): as asked, or the paper's 10 and 100 of 300, scaled to the number of rounds."""
    return times(setting, 1 / 30, 1 / 3)


def candidates(setting: Setting, state: State) -> list[Masks]:
    """Draw the pool: magnitude masks of one total, each with its own noisy densities per layer."""
    names, block = setting.maskable, setting.config.pruning.prune_block
    sizes = [setting.sizes[name] for name in names]
    pool = []
    for index in range(pool_size(setting)):
        generator = rng(setting.config.run.seed, "candidate", index)
        shares = noisy_shares(setting.budget / sum(sizes), sizes, generator)
        counts = allocate(shares, sizes, setting.budget)
        masks = {
            name: top_mask(np.abs(state.tensors[name]), count, setting.row_floor(name), block)
            for name, count in zip(names, counts, strict=True)
        }
        pool.append(state.masks | masks)
    return pool


def select(setting: Setting, pool: Sequence[State], ask: Ask) -> State:
    """Adaptive batch-norm selection: return the candidate that the clients find best.

    A candidate with an empty layer is none: its output no longer depends on its input, and in the paper's
    terms it could win, since a network that always answers the same has a lower loss than one that is wrong.
    """
    pool = [one for one in pool if all(mask.any() for mask in one.masks.values())]
    if not pool:
        raise FedtinyError("every candidate mask leaves a layer without a weight; use a higher --density")
    models = _pool_message(setting, pool)
    statistics = [name for name in pool[0].tensors if "running_" in name]
    shapes = {f"{i}/{name}": pool[0].tensors[name].shape for i in range(len(pool)) for name in statistics}
    adapted = ask(models, _adapted_check(shapes))
    pooled = pool_statistics(adapted.messages, list(shapes))
    scored = ask(Message("score", {}, pooled), _scored_check(len(pool)), kept=models)
    memory = _verdict([m for _, m in sorted(scored.messages.items())])
    index = int(memory["chosen"])
    best = pool[index]
    own = {name: pooled.get(f"{index}/{name}", best.tensors[name]) for name in statistics}
    return replace(best, tensors=best.tensors | own, memory={**best.memory, "selection": memory})


def _verdict(scored: Sequence[Message]) -> dict[str, Any]:
    """Return the lowest loss, and all losses with their standard errors: is it a choice, or noise?"""
    samples = sum(m.numbers["samples"] for m in scored)
    loss, squares, correct = (
        np.stack([m.array(key) for m in scored]).sum(axis=0) / samples for key in ("loss", "loss_squared", "correct")
    )
    error = np.sqrt(np.maximum(squares - loss**2, 0) / samples)
    return {
        "chosen": int(np.argmin(loss)),
        "losses": [float(v) for v in loss],
        "standard_errors": [float(v) for v in error],
        "accuracies": [float(v) for v in correct],
    }


def pool_statistics(messages: Mapping[int, Message], names: Sequence[str]) -> Arrays:
    """Pool the clients' batch-norm statistics, weighted by samples: the variance is E[v] + Var[m].

    The paper averages variances; between clients with other classes the means lie far apart, and leaving
    their spread out makes every candidate overconfident.
    """
    parts = [m for _, m in sorted(messages.items()) if m.tensors]
    found: Arrays = {}
    whole = sum(m.numbers["samples"] for m in parts)
    for name in names if parts else ():
        base = name.removesuffix("running_mean").removesuffix("running_var")
        mean = np.asarray(sum(m.numbers["samples"] * m.array(f"{base}running_mean").astype(float) for m in parts))
        if name.endswith("running_mean"):
            found[name] = np.asarray(mean / whole, dtype=np.float32)
            continue
        spread = [m.array(name) + (m.array(f"{base}running_mean") - mean / whole) ** 2 for m in parts]
        total = np.asarray(sum(m.numbers["samples"] * v for m, v in zip(parts, spread, strict=True)))
        found[name] = np.asarray(total / whole, dtype=np.float32)
    return found


def _pool_message(setting: Setting, pool: Sequence[State]) -> Message:
    """Return the pool as it is sent: each candidate's sparse weights and whatever else differs."""
    tensors: dict[str, wire.Tensor] = {}
    for index, one in enumerate(pool):
        tensors |= {f"{index}/{name}": wire.masked(a, one.masks.get(name)) for name, a in one.tensors.items()}
    numbers = {"pool": len(pool), "passes": setting.config.fedtiny.adaptation_passes}
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


def units_of(setting: Setting) -> list[tuple[str, ...]]:
    """Return what is adjusted at a time, in the order of the turns."""
    options = setting.config.fedtiny
    if options.granularity == "entire":
        return [tuple(setting.maskable)]
    layers: list[tuple[str, ...]] = [(name,) for name in setting.maskable]
    units = list(setting.blocks) if options.granularity == "block" else layers
    return units[::-1] if options.order == "backward" else units


def begin(setting: Setting, state: State, services: Services) -> State:
    """Return the state under the selected candidate, or under the first one without selection."""
    pool = [services.tune(state.with_masks(masks)) for masks in candidates(setting, state)]
    return select(setting, pool, services.ask) if setting.config.fedtiny.selection else pool[0]


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Ask for a_t gradients of each layer of the unit whose turn it is, in the rounds that adjust."""
    every, until = schedule(setting)
    if not setting.config.fedtiny.progressive or not is_due(number, every, until):
        return Orders()
    units = units_of(setting)
    counts = swap_counts(setting, state, units[(number // every - 1) % len(units)], number, until)
    return Orders(counts, {"scale_by_norm": float(setting.config.pruning.scale_by_norm)})


METHOD = Method(begin, orders, learn=swapped)
