"""The only loop: set up, train round by round, close.

It says when what happens and writes each round down. What a client does is in `client`, how answers are
combined in `server`, which weights live in `methods`, and what a file looks like in `runfolder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedtiny_train import calibrate, cost, models, trace
from fedtiny_train.client import LocalSpec, batches, fit
from fedtiny_train.config import Config
from fedtiny_train.data import Dataset, Federation, deal
from fedtiny_train.engine import Engine
from fedtiny_train.engine.local import start
from fedtiny_train.masks import density_of
from fedtiny_train.methods import Setting, method, setting
from fedtiny_train.seeds import rng
from fedtiny_train.server import (
    Answers,
    Check,
    Refusal,
    State,
    ask,
    average,
    combine_top,
    evaluate,
    need,
    need_shapes,
    normalisation,
    update_check,
)
from fedtiny_train.wire import Message

Line = dict[str, Any]
WARM_UP = 1_000_000  # rounds of a warm-up are numbered from here, so that they share no randomness


@dataclass(slots=True)
class Traffic:
    """The bytes of everything asked since it was last read, and who was refused."""

    up: int = 0
    down: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def add(self, answers: Answers) -> Answers:
        """Count one wave."""
        self.up += answers.bytes_up
        self.down += answers.bytes_down
        self.refused += answers.refused
        return answers


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that stays as it is during a run."""

    config: Config
    setting: Setting
    federation: Federation
    engine: Engine
    macs: dict[str, int]

    @property
    def everyone(self) -> range:
        """Return the numbers of all clients."""
        return range(len(self.federation.shards))


@contextmanager
def opened(config: Config, dataset: Dataset) -> Iterator[Run]:
    """Deal the data and start the engine; let go of it at the end."""
    spec = models.choose(
        config.model.model, dataset.shape, len(dataset.class_names), config.model.width
    )
    facts = setting(config, spec)
    federation = deal(dataset, config.data, config.run.seed)
    options = config.train
    local = LocalSpec(
        spec, config.run.seed, options.batch, options.local_epochs, options.momentum, options.weight_decay
    )
    engine = start(federation.shards, local, config.run.workers)
    try:
        yield Run(config, facts, federation, engine, trace.macs(models.build(spec), spec.shape))
    finally:
        engine.close()


def learning_rate(config: Config, round_number: int) -> float:
    """Return the rate of a round, 1 to R: a cosine from `lr` to `lr * lr_final`."""
    options = config.train
    done = (round_number - 1) / max(1, options.rounds - 1)
    share = options.lr_final + (1 - options.lr_final) * (1 + math.cos(math.pi * done)) / 2
    return options.lr * share


def taking_part(run: Run, round_number: int) -> list[int]:
    """Draw who takes part in a round, in order of their numbers."""
    clients = len(run.everyone)
    count = max(1, round(run.config.train.participation * clients))
    drawn = rng(run.config.run.seed, "participation", round_number).permutation(clients)[:count]
    return sorted(int(k) for k in drawn)


def set_up(run: Run) -> tuple[State, Line]:
    """Do what comes before round 1: input statistics, pre-training, warm-up, the method's first masks."""
    traffic = Traffic()
    described = traffic.add(ask(run.engine, run.everyone, Message("describe"), _check_described))
    norm = normalisation(described.messages)
    tensors = models.initial_state(run.setting.spec, run.config.run.seed)
    tensors["center.mean"] = np.array(norm["mean"], dtype=np.float32)
    tensors["scale.inv_std"] = np.array(1 / norm["std"], dtype=np.float32)
    masks = {name: np.ones(tensors[name].shape, dtype=np.bool_) for name in run.setting.sizes}
    state = State(pretrain(run, tensors), masks, {"normalisation": norm})
    flops, memory = 0.0, 0
    chosen = method(run.config.train.method)
    for extra in range(_warm_up_rounds(run.config)):
        state, line = one_round(run, state, WARM_UP + extra, {}, traffic, run.config.train.lr)
        flops, memory = line["flops_max"], line["memory_max"]

    def ask_all(request: Message, check: Check, kept: Message | None = None) -> Answers:
        return traffic.add(ask(run.engine, run.everyone, request, check, kept))

    state = chosen.begin(run.setting, state, ask_all)
    flops = max(flops, _selection_flops(run, state))
    memory = max(memory, cost.memory_bytes(state.tensors, state.masks, {}))
    clients = [{"id": k, "samples": len(run.federation.shards[k].y)} for k in sorted(described.messages)]
    return state, _line(run, state, 0, traffic, (flops, memory), clients)


def _check_described(message: Message) -> None:
    need(message, "described", ("count", "sum", "squares", "min", "max"))
    need_shapes(message, {})


def _warm_up_rounds(config: Config) -> int:
    return config.fedtiny.warmup_rounds if config.train.method == "fedtiny" else 0


def _selection_flops(run: Run, state: State) -> float:
    """Return the most that a client spends on the selection: forward passes over its development split."""
    if "selection" not in state.memory:
        return 0.0
    passes = run.config.fedtiny.adaptation_passes + 1
    pool = len(state.memory["selection"]["losses"])
    samples = max(math.ceil(len(shard.y) / 10) for shard in run.federation.shards)
    return passes * pool * samples * cost.forward_flops(run.macs, state.masks)


def pretrain(run: Run, tensors: models.Arrays) -> models.Arrays:
    """Train the dense network on the server's public data; without any, return it as drawn."""
    public, options = run.federation.public, run.config.train
    if not len(public.y) or not options.pretrain_epochs:
        return tensors
    model = models.shared(run.setting.spec)
    models.load(model, tensors)
    generator = rng(run.config.run.seed, "pretrain")
    schedule = [
        b for _ in range(options.pretrain_epochs) for b in batches(len(public.y), options.pretrain_batch, generator)
    ]
    local = LocalSpec(run.setting.spec, 0, 0, 0, options.momentum, options.weight_decay)
    fit(model, public, {}, schedule, options.lr, local)
    return models.read(model)


def one_round(
    run: Run, state: State, number: int, wanted: dict[str, int], traffic: Traffic, lr: float
) -> tuple[State, Line]:
    """Train one round at the clients and aggregate; the masks stay, the gradients come with the line."""
    numbers = {"round": float(number), "lr": lr}
    numbers |= {f"top/{name}": float(count) for name, count in wanted.items()}
    if wanted and run.config.fedtiny.scale_by_norm:
        numbers["scale_by_norm"] = 1.0
    request = state.message("train", numbers)
    invited = taking_part(run, number)
    answers = traffic.add(ask(run.engine, invited, request, update_check(state, wanted)))
    after = replace(state, tensors=state.tensors | average(answers.messages, list(state.tensors)))
    options = run.config.train
    samples = [len(run.federation.shards[k].y) * options.local_epochs for k in invited]
    flops = cost.train_flops(run.macs, state.masks, max(samples), wanted, options.batch)
    line: Line = {
        "flops_max": flops,
        "memory_max": cost.memory_bytes(state.tensors, state.masks, wanted),
        "gradients": combine_top(answers.messages, list(wanted)),
        "clients": [
            {"id": k, "samples": int(m.numbers["samples"]), "loss": m.numbers["loss"]}
            for k, m in sorted(answers.messages.items())
        ],
    }
    return after, line


def train_round(run: Run, state: State, number: int) -> tuple[State, Line]:
    """Carry out one whole round: train, aggregate, adjust the masks if it is time, measure."""
    chosen, traffic = method(run.config.train.method), Traffic()
    wanted = chosen.wants(run.setting, state, number)
    state, line = one_round(run, state, number, wanted, traffic, learning_rate(run.config, number))
    if wanted:
        state = chosen.adjust(run.setting, state, line["gradients"], wanted)
    return state, _line(run, state, number, traffic, (line["flops_max"], line["memory_max"]), line["clients"])


def _line(
    run: Run,
    state: State,
    number: int,
    traffic: Traffic,
    costs: tuple[float, int],
    clients: Sequence[dict[str, Any]],
) -> Line:
    accuracy, loss, _ = evaluate(run.setting.spec, state.tensors, run.federation.test)
    return {
        "round": number,
        "accuracy": accuracy,
        "loss": loss,
        "density": density_of(state.masks),
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "flops_max": costs[0],
        "memory_max": costs[1],
        "clients": list(clients),
        "refused": [{"id": r.client, "reason": r.reason} for r in traffic.refused],
    }


def recalibrate(run: Run, state: State, traffic: Traffic) -> State:
    """Renew all batch-norm statistics with pooled ones.

    A layer's input depends on the statistics of the layers before it, so each pass makes at least one more
    layer exact; a few passes are near enough, as many as there are layers are exact.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in models.norms(models.shared(run.setting.spec)):
        shape = state.tensors[f"{name}.running_mean"].shape
        shapes |= {f"{name}.mean": shape, f"{name}.var": shape}

    def check(message: Message) -> None:
        need(message, "moments", ("samples",))
        need_shapes(message, shapes)

    for _ in range(run.config.train.recalibrate if shapes else 0):
        answers = traffic.add(ask(run.engine, run.everyone, state.message("moments"), check))
        parts = [(m.numbers["samples"], {n: m.array(n) for n in shapes}) for _, m in sorted(answers.messages.items())]
        state = replace(state, tensors=state.tensors | calibrate.pool_moments(parts))
    return state


def activation_ranges(run: Run, state: State, traffic: Traffic) -> dict[str, Any]:
    """Return the content of ranges.json: first the clients' ranges, then histograms between these."""
    names = calibrate.tensor_names(models.shared(run.setting.spec))

    def check_of(kind: str, tensor: str, columns: int) -> Check:
        def check(message: Message) -> None:
            need(message, kind)
            need_shapes(message, {tensor: (len(names), columns)})

        return check

    request = state.message("ranges")
    first = traffic.add(ask(run.engine, run.everyone, request, check_of("ranges", "ranges", 2)))
    edges = calibrate.pool_ranges([m.array("ranges") for _, m in sorted(first.messages.items())])
    second = traffic.add(
        ask(
            run.engine,
            sorted(first.messages),
            Message("histograms", {}, {"ranges": edges}),
            check_of("histograms", "counts", calibrate.BINS),
            kept=request,
        )
    )
    counts = sum(m.array("counts") for _, m in sorted(second.messages.items()))
    return calibrate.report(names, edges, np.asarray(counts))


def accuracy_per_client(run: Run, right: np.ndarray[Any, np.dtype[np.bool_]]) -> list[float | None]:
    """Return each client's accuracy on the server's test set.

    With natural clients in the test set, over the samples that are its own (null where it has none).
    Otherwise each class's accuracy weighted by the client's share of that class.
    """
    test, owner = run.federation.test, run.federation.test_client
    if owner is not None:
        return [float(right[owner == k].mean()) if (owner == k).any() else None for k in run.everyone]
    per_class = {int(c): float(right[test.y == c].mean()) for c in np.unique(test.y)}
    found: list[float | None] = []
    for shard in run.federation.shards:
        known = [per_class[int(label)] for label in shard.y if int(label) in per_class]
        found.append(sum(known) / len(known) if known else None)
    return found


Progress = Callable[[Line], None]
