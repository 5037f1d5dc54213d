"""How fast the simulation is beside a plain PyTorch loop, and what it costs beyond the training steps.

The plain loop is what research code does, and no worse: one process and thread, the clients one after the other, each
a deep copy of the global network trained with torch's SGD, NCHW, nothing encoded or checked, weights averaged as
tensors. Both do the same training: resnet8 of width 16 on random 32x32x3 samples, dense. All cases take turns within
one run, so that whatever else the machine does falls on all of them. Beside the wall time stands the processor time
of all processes, which a busy machine disturbs less:

    python benchmarks/simulation.py --out simulation.json

The second table is of a perceptron of 5,000 parameters and two steps a client: what a client costs in all, what its
training steps alone cost (a reused network and optimiser, the same batches), and the difference.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedtiny_train import models
from fedtiny_train.client import LocalSpec, batches, prepare_torch
from fedtiny_train.data import Shard
from fedtiny_train.engine.local import Inline, Pool, start
from fedtiny_train.seeds import rng
from fedtiny_train.server import State, ask, average, update_check

LR, MOMENTUM, DECAY, BATCH = 0.05, 0.9, 1e-4, 32
Times = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to carry out a round, and the processes that it uses beside this one."""

    name: str
    carry_out: Callable[[int], None]
    others: Sequence[int] = ()


def made(shape: tuple[int, ...], clients: int, samples: int) -> list[Shard]:
    """Return random samples for so many clients."""
    draw = rng(0, "benchmark")
    x = draw.normal(size=(clients, samples, *shape)).astype(np.float32)
    return [Shard(client=k, x=x[k], y=draw.integers(0, 10, samples)) for k in range(clients)]


def dense_state(spec: models.ModelSpec) -> State:
    """Return a first global network, nothing pruned."""
    tensors = models.initial_state(spec, 0)
    weights = models.prunable(models.build(spec))
    return State(tensors, {name: np.ones(tensors[name].shape, np.bool_) for name in weights})


def engine_round(engine: Inline | Pool, state: State, clients: int, number: int) -> None:
    """Carry out a round as a run does: encode, train, decode, check, average."""
    request = state.message("train", {"round": float(number), "lr": LR})
    answers = ask(engine, range(clients), request, update_check(state, {}))
    assert len(answers.messages) == clients, answers.refused
    average(answers.messages, list(state.tensors))


def plain_round(model: nn.Module, shards: Sequence[Shard], number: int) -> None:
    """Carry out a round as a plain loop does."""
    total: dict[str, torch.Tensor] = {}
    for shard in shards:
        local = copy.deepcopy(model).train()
        optimiser = torch.optim.SGD(local.parameters(), LR, MOMENTUM, weight_decay=DECAY)
        x, y = torch.from_numpy(shard.x), torch.from_numpy(shard.y)
        train(local, optimiser, x, y, batches(len(y), BATCH, rng(0, "batches", number, shard.client)))
        for name, value in local.state_dict().items():
            part = value.detach() / len(shards)
            total[name] = total[name] + part if name in total else part


def train(
    model: nn.Module, optimiser: torch.optim.SGD, x: torch.Tensor, y: torch.Tensor, schedule: Sequence[np.ndarray]
) -> None:
    """Take one step a batch."""
    for batch in schedule:
        chosen = torch.from_numpy(batch)
        optimiser.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimiser.step()


def processor_time(processes: Sequence[int]) -> float:
    """Return the seconds that this process and others have computed so far."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measured(cases: Sequence[Case], repeats: int) -> dict[str, list[Times]]:
    """Return (wall, processor) seconds of each case, which take turns; the first turn only warms up."""
    found: dict[str, list[Times]] = {case.name: [] for case in cases}
    for turn in range(repeats + 1):
        for case in cases:
            wall, busy = time.perf_counter(), processor_time(case.others)
            case.carry_out(turn)
            if turn:
                found[case.name].append((time.perf_counter() - wall, processor_time(case.others) - busy))
    return found


def engines(
    spec: models.ModelSpec, shards: Sequence[Shard], precisions: Sequence[str]
) -> list[tuple[str, Inline | Pool]]:
    """Start an engine of one and of two workers for each precision."""
    found = []
    for precision in precisions:
        local = LocalSpec(spec, 0, BATCH, 1, MOMENTUM, DECAY, precision)
        found += [
            (f"{precision}, {workers} worker{'s' * (workers > 1)}", start(shards, local, workers)) for workers in (1, 2)
        ]
    return found


def case_of(name: str, engine: Inline | Pool, state: State, clients: int) -> Case:
    """Return the case of an engine."""
    others = [w.process.pid for w in engine.workers if w.process.pid] if isinstance(engine, Pool) else []
    return Case(name, lambda number: engine_round(engine, state, clients, number), others)


def throughput(clients: int, samples: int, repeats: int) -> dict[str, dict[str, float]]:
    """Measure samples a second of the network, by wall and by processor time."""
    spec = models.ModelSpec("resnet8", (3, 32, 32), 10, 16)
    shards, state = made(spec.shape, clients, samples), dense_state(spec)
    model = models.build(spec)
    models.load(model, state.tensors)
    started = engines(spec, shards, ("fp32", "bf16"))
    cases = [Case("plain loop", lambda number: plain_round(model, shards, number))]
    cases += [case_of(name, engine, state, clients) for name, engine in started]
    times = measured(cases, repeats)
    for _, engine in started:
        engine.close()
    count = clients * samples
    return {
        name: {
            "wall": count / statistics.median(w for w, _ in pairs),
            "cpu": count / statistics.median(c for _, c in pairs),
        }
        for name, pairs in times.items()
    }


def overhead(clients: int, repeats: int) -> dict[str, dict[str, float]]:
    """Measure milliseconds a client of a small perceptron: all of it, and its two training steps alone."""
    spec = models.ModelSpec("mlp", (32,), 10, 8)
    shards, state = made(spec.shape, clients, 2 * BATCH), dense_state(spec)
    model = models.build(spec)
    models.load(model, state.tensors)
    optimiser = torch.optim.SGD(model.train().parameters(), LR, MOMENTUM, weight_decay=DECAY)
    data = [(torch.from_numpy(shard.x), torch.from_numpy(shard.y)) for shard in shards]
    schedule = batches(2 * BATCH, BATCH, rng(0, "batches"))

    def steps_alone(number: int) -> None:
        for x, y in data:
            train(model, optimiser, x, y, schedule)

    started = engines(spec, shards, ("fp32",))
    cases = [Case("steps alone", steps_alone), Case("plain loop", lambda n: plain_round(model, shards, n))]
    cases += [case_of(name, engine, state, clients) for name, engine in started]
    times = measured(cases, repeats)
    for _, engine in started:
        engine.close()
    return {
        name: {
            "wall": 1e3 * statistics.median(w for w, _ in pairs) / clients,
            "cpu": 1e3 * statistics.median(c for _, c in pairs) / clients,
            "least_cpu": 1e3 * min(c for _, c in pairs) / clients,
        }
        for name, pairs in times.items()
    }


def main() -> None:
    """Measure, print both tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("simulation.json"))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--samples", type=int, default=480, help="of each client")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    prepare_torch()
    speed = throughput(options.clients, options.samples, options.repeats)
    small = overhead(50, 4 * options.repeats)
    base = speed["plain loop"]
    print(f"{'client samples':20}{'a second':>10}{'ratio':>8}{'a CPU second':>14}{'ratio':>8}")
    for name, rate in speed.items():
        ratios = {kind: rate[kind] / base[kind] for kind in rate}
        print(f"{name:20}{rate['wall']:10.0f}{ratios['wall']:8.2f}{rate['cpu']:14.0f}{ratios['cpu']:8.2f}")
    print(f"\n{'ms a client':20}{'wall':>10}{'CPU':>10}{'least CPU':>12}{'beyond steps':>14}")
    for name, cost in small.items():
        beyond = cost["least_cpu"] - small["steps alone"]["least_cpu"]
        print(f"{name:20}{cost['wall']:10.3f}{cost['cpu']:10.3f}{cost['least_cpu']:12.3f}{beyond:14.3f}")
    options.out.write_text(json.dumps({"samples_per_second": speed, "ms_per_client": small}, indent=1) + "\n")


if __name__ == "__main__":
    main()
