"""The only loop: set up, train round by round, close.

It says when what happens and writes each round down. What a client does is in `client`, how answers are
combined in `server`, which weights live in `methods`, and what a file looks like in `runfolder`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from fedtiny_export.errors import FedtinyError

from fedtiny_train import closing, cost, data, models, onnx_out, report, runfolder
from fedtiny_train.client import LocalSpec, batches, development_count, fit, prepare_torch
from fedtiny_train.config import Config, recorded
from fedtiny_train.cost import DeviceCost
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.masks import Mask, density_of
from fedtiny_train.methods import Orders, Outcome, Services, method
from fedtiny_train.seeds import rng
from fedtiny_train.server import (
    Answers,
    Check,
    DivergedError,
    State,
    average,
    combine_top,
    evaluate,
    need,
    need_shapes,
    normalisation,
    update_check,
)
from fedtiny_train.session import Run, Traffic, opened
from fedtiny_train.wire import Message

Line = dict[str, Any]
Progress = Callable[[Line], None]
WARM_UP = 1_000_000  # rounds of a warm-up are numbered from here, so that they share no randomness


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
    described = run.ask(traffic, Message("describe"), _check_described)
    norm = normalisation(described.messages)
    tensors = models.initial_state(run.setting.spec, run.config.run.seed)
    tensors["center.mean"] = np.array(norm["mean"], dtype=np.float32)
    tensors["scale.inv_std"] = np.array(1 / norm["std"], dtype=np.float32)
    masks = {name: np.ones(tensors[name].shape, dtype=np.bool_) for name in run.setting.sizes}
    state = State(pretrain(run, tensors), masks, {"normalisation": norm})
    spent: list[DeviceCost] = []
    chosen = method(run.config.train.method)
    for extra in range(_warm_up_rounds(run.config)):
        outcome, line = one_round(run, state, WARM_UP + extra, Orders(), traffic, run.config.train.lr)
        state = outcome.state
        spent.append(line["cost"])

    asked: list[DeviceCost] = []
    state = chosen.begin(run.setting, state, _services(run, traffic, asked))
    # The requests of one selection follow each other: their work adds up, their memory does not.
    selection = replace(cost.worst(asked), flops=sum(one.flops for one in asked))
    clients = [{"id": k, "samples": len(run.federation.shards[k].y)} for k in sorted(described.messages)]
    return state, _line(run, state, 0, traffic, cost.worst([*spent, selection]), clients)


def _services(run: Run, traffic: Traffic, asked: list[DeviceCost]) -> Services:
    development = [development_count(len(shard.y)) for shard in run.federation.shards]

    def ask_all(request: Message, check: Check, kept: Message | None = None) -> Answers:
        asked.append(cost.request_cost(run.network, request, kept, run.config.train.batch, development))
        return run.ask(traffic, request, check, kept=kept)

    return Services(ask_all, lambda state: tune(run, state), run.federation.public)


def _check_described(message: Message) -> None:
    need(message, "described", ("count", "sum", "squares", "min", "max"))
    need_shapes(message, {})


def _warm_up_rounds(config: Config) -> int:
    return config.fedtiny.warmup_rounds if config.train.method == "fedtiny" else 0


def pretrain(run: Run, tensors: models.Arrays) -> models.Arrays:
    """Train the dense network on the server's public data; without any, return it as drawn."""
    return _fit_public(run, tensors, {}, run.config.train.pretrain_epochs, "pretrain")


def tune(run: Run, state: State) -> State:
    """Train a masked network on the public data for a few passes: what a new mask broke is mostly mended."""
    tensors = _fit_public(run, state.tensors, state.masks, run.config.train.tune_epochs, "tune")
    return replace(state, tensors=tensors)


def _fit_public(run: Run, tensors: models.Arrays, masks: dict[str, Mask], epochs: int, purpose: str) -> models.Arrays:
    public, options = run.federation.public, run.config.train
    if not len(public.y) or not epochs:
        return tensors
    model = models.shared(run.setting.spec)
    models.load(model, tensors)
    generator = rng(run.config.run.seed, purpose)
    schedule = [b for _ in range(epochs) for b in batches(len(public.y), options.pretrain_batch, generator)]
    local = LocalSpec(run.setting.spec, 0, 0, 1, options.momentum, options.weight_decay, run.config.run.precision)
    fit(model, public, masks, schedule, options.lr, local)
    after = models.read(model)
    if not all(np.isfinite(array).all() for array in after.values()):
        raise DivergedError(f"training on the public data diverged at lr {options.lr}; use a lower --lr")
    return after


def one_round(run: Run, state: State, number: int, orders: Orders, traffic: Traffic, lr: float) -> tuple[Outcome, Line]:
    """Train one round at the clients and average; the masks stay as they are."""
    numbers = {"round": float(number), "lr": lr} | orders.request()
    invited = taking_part(run, number)
    check = update_check(state, orders.top, orders.own_masks)
    answers = run.ask(traffic, state.message("train", numbers), check, invited, own=state.own)
    mean = average(answers.messages, list(state.tensors))
    after = replace(state, tensors=state.tensors | mean, own={**state.own, **answers.own})
    gradients = combine_top(answers.messages, list(orders.top))
    line: Line = {
        "cost": _cost(run, state, orders, invited),
        "clients": [
            {"id": k, "samples": int(m.numbers["samples"]), "loss": m.numbers["loss"]}
            for k, m in sorted(answers.messages.items())
        ],
    }
    return Outcome(number, state, after, answers.messages, gradients, orders), line


def _cost(run: Run, state: State, orders: Orders, invited: Sequence[int]) -> DeviceCost:
    options = run.config.train
    training = cost.Training(options.batch, options.local_epochs, options.momentum > 0)
    samples = [len(run.federation.shards[k].y) for k in invited]
    return cost.round_cost(run.network, state.tensors, state.masks, orders, training, samples)


def train_round(run: Run, state: State, number: int) -> tuple[State, Line]:
    """Carry out one whole round: train, average, let the method learn from it, measure."""
    chosen, traffic = method(run.config.train.method), Traffic()
    orders = chosen.orders(run.setting, state, number)
    outcome, line = one_round(run, state, number, orders, traffic, learning_rate(run.config, number))
    state = chosen.learn(run.setting, outcome)
    return state, _line(run, state, number, traffic, line["cost"], line["clients"])


def _line(
    run: Run,
    state: State,
    number: int,
    traffic: Traffic,
    spent: DeviceCost,
    clients: Sequence[dict[str, Any]],
) -> Line:
    accuracy, loss, _ = evaluate(run.setting.spec, state.tensors, run.federation.test)
    if not math.isfinite(loss):
        raise DivergedError(f"the test loss of round {number} is {loss}: training diverged; use a lower --lr")
    return {
        "round": number,
        "accuracy": accuracy,
        "loss": loss,
        "density": density_of(state.masks),
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "flops_max": spent.flops,
        "memory_max": spent.memory.total,
        "memory": asdict(spent.memory),
        "memory_paper": spent.paper,
        "clients": list(clients),
        "refused": [{"id": r.client, "reason": r.reason} for r in traffic.refused],
    }


def carry_out(config: Config, folder: Path, progress: Progress, resume: bool = False) -> dict[str, Any]:
    """Carry out a run, or the rest of it, into its folder; call `progress` with each round's line.

    Returns the summary. A new folder is made only when the data and the options have proven usable, and does
    not stay when there is nothing to go on with: no round was completed, or training diverged.
    """
    prepare_torch()
    dataset = data.load(config.data)
    origin = runfolder.Origin(data.fingerprint(dataset), recorded(config))
    with opened(config, dataset) as run:
        if resume:
            return _go_on(run, folder, dataset, origin, progress)
        runfolder.create(folder, config)
        try:
            return _go_on(run, folder, dataset, origin, progress)
        except Exception as error:
            if isinstance(error, DivergedError) or not runfolder.has_trained(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _go_on(run: Run, folder: Path, dataset: Dataset, origin: runfolder.Origin, progress: Progress) -> dict[str, Any]:
    """Train from the folder's resume point, or from the beginning, to the end."""
    clock = runfolder.Clock()
    found = runfolder.load_state(folder, origin)
    if found is None:
        state, line = set_up(run)
        number, lines = 0, [line]
        _note(folder, lines, 0, state, origin)
    else:
        number, state = found
        _check_resumed(run, folder, number, state)
        lines = runfolder.read_metrics(folder, number)
    for line in lines:
        progress(line)
    clock.lap(number)
    while number < run.config.train.rounds:
        number += 1
        state, line = train_round(run, state, number)
        lines.append(line)
        _note(folder, lines, number, state, origin)
        progress(line)
        clock.lap(number)
    return _close(run, state, lines, folder, dataset, clock)


def _check_resumed(run: Run, folder: Path, number: int, state: State) -> None:
    shapes = {name: a.shape for name, a in models.read(models.shared(run.setting.spec)).items()}
    masked = {name: shapes[name] for name in run.setting.sizes}
    fits = shapes == {name: a.shape for name, a in state.tensors.items()}
    fits &= masked == {name: mask.shape for name, mask in state.masks.items()}
    if not fits or number > run.config.train.rounds:
        raise FedtinyError(f"{folder}: the resume point of round {number} is not of this run; start a new run")


def _note(folder: Path, lines: list[Line], number: int, state: State, origin: runfolder.Origin) -> None:
    # Metrics first: a stop in between leaves a line too many, which resuming drops, and never one too few.
    runfolder.write_metrics(folder, lines)
    runfolder.save_state(folder, number, state, origin)


def _close(
    run: Run, state: State, lines: list[Line], folder: Path, dataset: Dataset, clock: runfolder.Clock
) -> dict[str, Any]:
    traffic = Traffic()
    state = method(run.config.train.method).close(run.setting, state, _services(run, traffic, []))
    state = closing.recalibrate(run, state, traffic)
    ranges = closing.activation_ranges(run, state, traffic)
    summary = closing.summary(run, state, lines, traffic)
    holdings = [np.bincount(s.y, minlength=run.setting.spec.classes).tolist() for s in run.federation.shards]
    runfolder.write_samples(folder, dataset)
    files: dict[str, bytes | str] = {
        "model.onnx": onnx_out.to_onnx(run.setting.spec, state.tensors),
        "ranges.json": runfolder.to_json(ranges),
        "report.html": report.page(summary, lines, holdings),
        "timing.json": runfolder.to_json(clock.content(run.config)),
        "summary.json": runfolder.to_json(summary),
    }
    runfolder.finish(folder, files)
    return summary
