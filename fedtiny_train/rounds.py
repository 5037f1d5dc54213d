"""The only loop: set up, train round by round, close.

It says when what happens and writes each round down. What a client does is in `client`, how answers are
combined in `server`, which weights live in `methods`, and what a file looks like in `runfolder`.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from fedtiny_export.errors import FedtinyError, UsageError

from fedtiny_train import closing, cost, data, models, onnx_out, qat, report, runfolder
from fedtiny_train.client import LocalSpec, batches, development_count, fit, prepare_torch, seed_dropout
from fedtiny_train.config import recorded
from fedtiny_train.cost import DeviceCost
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.masks import Mask, density_of
from fedtiny_train.methods import Orders, Outcome, Services, method
from fedtiny_train.models import place
from fedtiny_train.options import Config
from fedtiny_train.robust import clipped, combined, combined_top, update_norm
from fedtiny_train.seeds import rng
from fedtiny_train.server import (
    Answers,
    Check,
    DivergedError,
    State,
    described_check,
    evaluate,
    normalisation,
    quorum_of,
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
    traffic = Traffic(0)
    described = run.gather(traffic, Message("describe"), described_check)
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
        state = outcome.state if line["counted"] else state
        spent.append(line["cost"])

    asked: list[DeviceCost] = []
    state = chosen.begin(run.setting, state, _services(run, traffic, asked))
    _check_aggregate(run, state)
    # What a method asks before round 1 comes one after the other: the work adds up, the memory does not.
    spent.append(replace(cost.worst(asked), flops=sum(one.flops for one in asked)))
    clients = [{"id": k, "samples": len(run.federation.shards[k].y)} for k in sorted(described.messages)]
    parts: Line = {"counted": True, "cost": cost.worst(spent), "invited": list(run.everyone)}
    return state, _line(run, state, 0, traffic, parts | {"clients": clients})


def _services(run: Run, traffic: Traffic, spent: list[DeviceCost]) -> Services:
    """Return what a method may use; each request's cost for the worst device joins `spent`."""
    development = [development_count(len(shard.y)) for shard in run.federation.shards]
    holders: list[tuple[Message, list[int]]] = []

    def ask_all(
        request: Message, check: Check, kept: Message | None = None, own: Mapping[int, bytes] | None = None
    ) -> Answers:
        # Whoever failed to answer an earlier request cannot be relied on to hold it.
        asked = next((who for sent, who in reversed(holders) if sent is kept), None)
        spent.append(cost.request_cost(run.network, request, kept, run.config.train.batch, development))
        answers = run.gather(traffic, request, check, asked, kept, own)
        holders.append((request, sorted(answers.messages)))
        return answers

    return Services(ask_all, lambda state: tune(run, state), run.federation.public)


def _check_aggregate(run: Run, state: State) -> None:
    """Refuse a robust rule for a method whose clients move their live weights: it joins them in its own way."""
    chosen, rule = method(run.config.train.method), run.config.server.aggregate
    numbers = range(1, run.config.train.rounds + 1) if rule != "mean" else ()
    if any(chosen.orders(run.setting, state, number).own_masks for number in numbers):
        raise UsageError(
            f"aggregate {rule} needs clients that share a mask, and those of {run.config.train.method} "
            "have their own; use --aggregate mean, with --clip-norm"
        )


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
    seed_dropout(generator)
    local = LocalSpec(run.setting.spec, 0, 0, 1, options.momentum, options.weight_decay, run.config.run.precision)
    fit(model, public, masks, schedule, options.lr, local)
    after = models.read(model)
    if not all(np.isfinite(array).all() for array in after.values()):
        raise DivergedError(f"training on the public data diverged at lr {options.lr}; use a lower --lr")
    return after


def one_round(run: Run, state: State, number: int, orders: Orders, traffic: Traffic, lr: float) -> tuple[Outcome, Line]:
    """Train one round at the clients and aggregate; the masks stay as they are.

    Without a quorum the state stays too, and what the clients noted for themselves with it.
    """
    options = run.config.server
    invited = taking_part(run, number)
    check = update_check(state, orders.top, orders.own_masks, orders.may_skip)
    block = run.config.pruning.prune_block
    numbers = {"round": float(number), "lr": lr} | ({"block": float(block)} if block > 1 and orders.top else {})
    request = _request(state, numbers | orders.request(), orders.bits)
    answers = run.ask(traffic, request, check, invited, own=state.own)
    lack = answers.lack(options.quorum)
    line: Line = {
        "cost": _cost(run, state, orders, invited),
        "invited": invited,
        "counted": lack is None,
        "clients": [_contribution(k, m, state) for k, m in sorted(answers.messages.items())],
    }
    if lack is not None:
        return Outcome(number, state, state, {}, {}, orders), line | {"lack": lack}
    used = {k: m for k, m in answers.messages.items() if m.kind == "update"}
    if options.clip_norm:
        used = {k: clipped(m, state, options.clip_norm) for k, m in used.items()}
    mean = combined(used, list(state.tensors), options.aggregate)
    after = replace(state, tensors=state.tensors | mean, own={**state.own, **answers.own})
    return Outcome(number, state, after, used, combined_top(used, list(orders.top), options.aggregate), orders), line


def _request(state: State, numbers: dict[str, float], bits: int) -> Message:
    """Return what a round's clients are sent; in the last rounds of QAT with the ranges to round between."""
    message = replace(state.message("train", numbers), bits=bits)
    ranges = state.memory.get("int8_ranges")
    return message if ranges is None else replace(message, tensors={**message.tensors, qat.RANGES: np.array(ranges)})


def _contribution(client: int, message: Message, state: State) -> Line:
    """Return what a round's line says of one client; the norm is that of its update before any clipping."""
    samples, loss = int(message.numbers["samples"]), message.numbers["loss"]
    told = {"id": client, "samples": samples, "loss": loss}
    return told | ({"norm": update_norm(message, state)} if message.kind == "update" else {"skipped": True})


def _cost(run: Run, state: State, orders: Orders, invited: Sequence[int]) -> DeviceCost:
    options, spec = run.config.train, run.setting.spec
    training = cost.Training(options.batch, options.local_epochs, options.momentum > 0, spec.activation_pruning)
    samples = [len(run.federation.shards[k].y) for k in invited]
    return cost.round_cost(run.network, state.tensors, state.masks, orders, training, samples)


def train_round(run: Run, state: State, number: int, missed: int = 0, in_a_row: int = 0) -> tuple[State, Line]:
    """Carry out one whole round: train, aggregate, let the method learn from it, measure.

    `missed` rounds before it had no quorum, the last `in_a_row` of them one after the other. They do not count:
    the schedules of the learning rate and of the method go on where they were.
    """
    chosen, traffic, step = method(run.config.train.method), Traffic(number), number - missed
    options = run.config.train
    if step >= qat.first_round(options.rounds, options.qat, options.qat_rounds) and "int8_ranges" not in state.memory:
        found = closing.pooled_ranges(closing.ask_ranges(run, state, traffic)[1])
        state = replace(state, memory={**state.memory, "int8_ranges": found.tolist()})
    orders = chosen.orders(run.setting, state, step)
    outcome, parts = one_round(run, state, number, orders, traffic, learning_rate(run.config, step))
    if parts["counted"]:
        state = chosen.learn(run.setting, replace(outcome, number=step))
    elif in_a_row + 1 >= run.config.server.patience:
        error = parts["lack"]
        raise type(error)(f"round {number} is number {in_a_row + 1} in a row without a quorum: {error}")
    return state, _line(run, state, number, traffic, parts)


def _line(run: Run, state: State, number: int, traffic: Traffic, parts: Line) -> Line:
    accuracy, loss, right = evaluate(run.setting.spec, state, run.federation.test)
    if not math.isfinite(loss):
        raise DivergedError(f"the test loss of round {number} is {loss}: training diverged; use a lower --lr")
    spread = [a for a in closing.accuracy_per_client(run, right) if a is not None]
    return {
        "round": number,
        "counted": parts["counted"],
        "accuracy": accuracy,
        "loss": loss,
        "accuracy_worst": min(spread, default=None),
        "accuracy_median": float(np.median(spread)) if spread else None,
        "accuracy_best": max(spread, default=None),
        "density": density_of(state.masks),
        "bytes_up": traffic.up,
        "bytes_down": traffic.down,
        "flops_max": parts["cost"].flops,
        "memory_max": parts["cost"].memory.total,
        "memory": asdict(parts["cost"].memory),
        "memory_paper": parts["cost"].paper,
        "invited": list(parts["invited"]),
        "clients": list(parts["clients"]),
        "refused": [{"id": r.client, "reason": r.reason, "request": r.request} for r in traffic.refused],
    }


def carry_out(config: Config, folder: Path, progress: Progress, resume: bool = False) -> dict[str, Any]:
    """Carry out a run, or the rest of it, into its folder; call `progress` with each round's line.

    Returns the summary. A new folder is made only when the data and the options have proven usable, and does
    not stay when there is nothing to go on with: no round was completed, or training diverged.
    """
    prepare_torch()
    place.use(place.chosen(config.run))
    dataset = data.load(config.data, config.run.seed)
    origin = runfolder.Origin(data.fingerprint(dataset), {**recorded(config), "device": place.here().type})
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
        number, state, lines = found
        _check_resumed(run, folder, number, state, lines)
        runfolder.write_metrics(folder, lines)
    for line in lines:
        progress(line)
    clock.lap(number)
    while counted(lines) < run.config.train.rounds:
        number += 1
        state, line = train_round(run, state, number, number - 1 - counted(lines), missed_in_a_row(lines))
        lines.append(line)
        _note(folder, lines, number, state, origin)
        progress(line)
        clock.lap(number)
    return _close(run, state, lines, folder, dataset, clock)


def counted(lines: Sequence[Line]) -> int:
    """Return how many rounds had a quorum; the set-up is none."""
    return sum(line["counted"] for line in lines[1:])


def missed_in_a_row(lines: Sequence[Line]) -> int:
    """Return how many rounds at the end had no quorum."""
    return len(list(itertools.takewhile(lambda line: not line["counted"], reversed(lines))))


def _check_resumed(run: Run, folder: Path, number: int, state: State, lines: Sequence[Line]) -> None:
    shapes = {name: a.shape for name, a in models.read(models.shared(run.setting.spec)).items()}
    masked = {name: shapes[name] for name in run.setting.sizes}
    fits = shapes == {name: a.shape for name, a in state.tensors.items()}
    fits &= masked == {name: mask.shape for name, mask in state.masks.items()}
    known = all(set(line["invited"]) <= set(run.everyone) for line in lines)
    quorum = run.config.server.quorum
    known &= all((len(x["clients"]) >= quorum_of(len(x["invited"]), quorum)) == x["counted"] for x in lines)
    if not fits or not known or counted(lines) > run.config.train.rounds:
        raise FedtinyError(f"{folder}: the resume point of round {number} is not of this run; start a new run")


def _note(folder: Path, lines: list[Line], number: int, state: State, origin: runfolder.Origin) -> None:
    runfolder.save_state(folder, number, state, origin, lines)
    runfolder.write_metrics(folder, lines)


def _close(
    run: Run, state: State, lines: list[Line], folder: Path, dataset: Dataset, clock: runfolder.Clock
) -> dict[str, Any]:
    traffic = Traffic(len(lines))
    state = method(run.config.train.method).close(run.setting, state, _services(run, traffic, []))
    run = replace(run, setting=replace(run.setting, spec=models.exported(run.setting.spec)))
    state = closing.recalibrate(run, state, traffic)
    ranges = closing.activation_ranges(run, state, traffic)
    summary = closing.summary(run, state, lines, traffic)
    holdings = [np.bincount(s.y, minlength=run.setting.spec.classes).tolist() for s in run.federation.shards]
    runfolder.write_samples(folder, dataset)
    files: dict[str, bytes | str] = {
        "model.onnx": onnx_out.to_onnx(run.setting.spec, state.tensors, state.masks),
        "ranges.json": runfolder.to_json(ranges),
        "report.html": report.page(summary, lines, holdings),
        "timing.json": runfolder.to_json(clock.content(run.config)),
        "summary.json": runfolder.to_json(summary),
    }
    runfolder.finish(folder, files)
    return summary
