"""What each method asks of a device, by the formulas of docs/costs.md, beside what the papers claim.

Nothing is trained: the masks are those that each method really begins with and moves, its orders are those of every
round of a run, and bytes are lengths of the messages of such a round. Devices answer with what they were sent, and
with gradients of 1 at evenly spaced positions, since only counts matter here. The setting is the papers':
ResNet18 on CIFAR-10's shapes, 10 devices of 5,000 samples, 5 local epochs of batches of 64, 300 rounds, an adjustment
every 10 until 100 (FedMef's until 180, as its paper's 300 of 500), SGD without momentum:

    python benchmarks/costs.py --density 0.01 --out costs.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedtiny_train import cost, models
from fedtiny_train.client import development_count, prepare_torch
from fedtiny_train.config import Config, apply_flags, settle
from fedtiny_train.cost import DeviceCost, Memory, Training
from fedtiny_train.data import Shard
from fedtiny_train.methods import Orders, Outcome, Services, Setting, method, setting
from fedtiny_train.seeds import rng
from fedtiny_train.server import Answers, Check, State
from fedtiny_train.session import network_of
from fedtiny_train.wire import Message, Sparse, Tensor, encode

Flags = dict[str, bool | int | float | str]
CLASSES, SHAPE = 10, (3, 32, 32)
COMMON: Flags = {
    "model": "resnet18",
    "clients": 10,
    "rounds": 300,
    "local_epochs": 5,
    "batch": 64,
    "momentum": 0.0,
    "tune_epochs": 0,
    "row_floor": 0,
}
PAPER: Flags = {"adjust_every": 10, "adjust_until": 100}
# Each row: the method's flags beyond the common ones; a density of its own wins over the one asked for.
ROWS: dict[str, Flags] = {
    "fedavg": {"method": "fedavg", "density": 1.0},
    "snip": {"method": "snip"},
    "synflow": {"method": "synflow"},
    "fl-pqsu": {"method": "fl-pqsu"},
    "fl-pqsu, 32-bit exchange": {"method": "fl-pqsu", "exchange_bits": 32},
    "prunefl": {"method": "prunefl", **PAPER},
    "fedtiny": {"method": "fedtiny", **PAPER},
    "fedmef": {"method": "fedmef", "adjust_every": 10, "adjust_until": 180},
    "fedmef, batch norm": {"method": "fedmef", "norm": "batch", "adjust_every": 10, "adjust_until": 180},
    "adp, at 0.49": {"method": "adp", "density": 0.49},
    "fedpack": {"method": "fedpack"},
}


@dataclass(frozen=True, slots=True)
class Spent:
    """What a method asks of a device: FLOPs and memory at their height, and the bytes of messages.

    `plain` is an ordinary round's (down, up), `most` that of the round with the longest messages, `begin` what comes
    before round 1, whose work is `begin_flops`.
    """

    flops: float
    memory: Memory
    paper: int
    plain: tuple[int, int]
    most: tuple[int, int]
    begin: tuple[int, int]
    begin_flops: float


def answer_of(request: Message, kept: Message | None, samples: int) -> Message:
    """Return what a device answers to a request of a method's set-up, as long as a real one would be."""
    if request.kind == "adapt":
        return Message("adapted", {"samples": samples}, {n: t for n, t in request.tensors.items() if "running_" in n})
    if request.kind == "score" and kept is not None:
        pool = int(kept.numbers["pool"])
        names = ("loss", "loss_squared", "correct")
        return Message("scored", {"samples": samples}, {name: np.arange(pool, dtype=np.float64) for name in names})
    raise ValueError(f"no device here answers {request.kind!r}")


def begun(facts: Setting, state: State, samples: int) -> tuple[State, tuple[int, int], float]:
    """Return the state that round 1 starts from, what one device was sent and sent for it, and its FLOPs."""
    network, batch = network_of(facts.spec), facts.config.train.batch
    down, up, flops = 0, 0, 0.0

    def ask(request: Message, check: Check, kept: Message | None = None, own: Mapping[int, bytes] | None = None) -> Any:
        nonlocal down, up, flops
        split = development_count(samples)
        reply = answer_of(request, kept, split)
        check(reply)
        down, up = down + len(encode(request)), up + len(encode(reply))
        flops += cost.request_cost(network, request, kept, batch, [split]).flops
        return Answers({0: reply}, (), 0, 0, {}, (0,))

    draw = rng(0, "benchmark")
    x, y = draw.normal(size=(10, *facts.spec.shape)).astype(np.float32), np.arange(10) % facts.spec.classes
    services = Services(ask, lambda masked_state: masked_state, Shard(client=-1, x=x, y=y))
    return method(facts.config.train.method).begin(facts, state, services), (down, up), flops


def messages(state: State, orders: Orders) -> tuple[Message, Message]:
    """Return the request of a round and an update that answers it."""
    request = state.message("train", {"round": 1.0, "lr": 0.1} | orders.request())
    tensors: dict[str, Tensor] = {n: t for n, t in request.tensors.items() if n not in cost.FIXED}
    for name, count in orders.top.items():
        pruned = np.flatnonzero(~state.masks[name])
        indices = pruned[np.linspace(0, len(pruned) - 1, count).astype(np.int64)]
        tensors[f"top/{name}"] = Sparse(state.masks[name].shape, indices, np.ones(count, np.float32))
    update = Message("update", {"samples": 1.0, "loss": 0.0}, tensors, orders.bits)
    return Message(request.kind, request.numbers, request.tensors, orders.bits), update


def spent(config: Config, spec: models.ModelSpec, samples: int) -> Spent:
    """Walk through all rounds of a run and return what they cost one device."""
    facts = setting(config, spec)
    options, spec, chosen = config.train, facts.spec, method(config.train.method)
    network = network_of(spec)
    training = Training(options.batch, options.local_epochs, options.momentum > 0, spec.activation_pruning)
    tensors = models.initial_state(spec, 0)
    masks = {name: np.ones(tensors[name].shape, np.bool_) for name in facts.sizes}
    state, begin, begin_flops = begun(facts, State(tensors, masks), samples)
    worst, lengths = DeviceCost(), []
    known: tuple[State, Orders] | None = None
    for number in range(1, options.rounds + 1):
        orders = chosen.orders(facts, state, number)
        if known is None or known[1] != orders or known[0].masks is not state.masks:
            here = cost.round_cost(network, state.tensors, state.masks, orders, training, [samples])
            worst = cost.worst([worst, here])
            request, update = messages(state, orders)
            lengths.append((len(encode(request)), len(encode(update))))
            known = (state, orders)
            gradients = {name: update.array(f"top/{name}") for name in orders.top}
        state = chosen.learn(facts, Outcome(number, state, state, {}, gradients, orders))
    most = max(lengths, key=sum)
    return Spent(worst.flops, worst.memory, worst.paper, lengths[-1], most, begin, begin_flops)


def figures(row: str, density: float, model: str, samples: int = 5000, shape: tuple[int, ...] = SHAPE) -> Spent:
    """Return the figures of one row of the table."""
    config = settle(apply_flags(Config(), {**COMMON, "model": model, "density": density, **ROWS[row]}))
    return spent(config, models.choose(config.model, shape, CLASSES), samples)


def print_table(table: Mapping[str, Spent]) -> None:
    """Print the table as Markdown, bytes in units of 10^6."""
    dense = table["fedavg"]
    print("| method | work | memory, the paper's terms | memory | of it activations | down, up | the most | set-up |")
    print("|---|---|---|---|---|---|---|---|")
    for row, one in table.items():
        pairs = (one.plain, one.most, one.begin)
        bytes_of = " | ".join(f"{down / 1e6:.2f}, {up / 1e6:.2f}" for down, up in pairs)
        print(
            f"| {row} | {one.flops / dense.flops:.4f} | {one.paper / 1e6:.2f} | {one.memory.total / 1e6:.1f} "
            f"| {one.memory.activations / 1e6:.1f} | {bytes_of} |"
        )


def print_claims(table: Mapping[str, Spent]) -> None:
    """Print the papers' percentages beside ours."""
    dense, prunefl, fedtiny = table["fedavg"], table["prunefl"], table["fedtiny"]
    static, fedmef, adp = table["snip"], table["fedmef"], table["adp, at 0.49"]
    less = lambda a, b: f"{100 * (1 - a / b):.2f} %"  # noqa: E731
    print(
        f"\ndense: {dense.flops:.4g} FLOPs a round, FedTiny's selection {fedtiny.begin_flops / dense.flops:.4f} of it"
    )
    print(f"computation, fedtiny below prunefl   ours {less(fedtiny.flops, prunefl.flops)}, paper 95.91 %")
    print(f"the same, a static mask              ours {less(static.flops, prunefl.flops)}")
    print(f"memory, fedtiny below prunefl        ours {less(fedtiny.paper, prunefl.paper)}, paper 94.01 %")
    print(f"the same, with activations           ours {less(fedtiny.memory.total, prunefl.memory.total)}")
    print(f"memory, fedmef below fedtiny         ours {less(fedmef.memory.total, fedtiny.memory.total)}, paper 28.5 %")
    print(f"computation, adp below fedavg        ours {less(adp.flops, dense.flops)}, paper 50 %")


def main() -> None:
    """Work out all rows, print the table and the papers' claims, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("costs.json"))
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--model", default="resnet18")
    options = parser.parse_args()
    prepare_torch()
    table = {}
    for row in ROWS:
        table[row] = figures(row, options.density, options.model)
        print(f"{row} done", file=sys.stderr)
    print_table(table)
    print_claims(table)
    options.out.write_text(json.dumps({row: asdict(one) for row, one in table.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
