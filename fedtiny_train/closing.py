"""What comes after the last round: batch-norm recalibration, activation ranges, and the summary.

Clients are asked for statistics only; nothing is trained any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError

from fedtiny_train import __version__, calibrate, cost, models, wire
from fedtiny_train.liveness import dead_filters
from fedtiny_train.methods import Orders
from fedtiny_train.server import Answers, Check, State, evaluate, need, need_shapes
from fedtiny_train.session import Run, Traffic
from fedtiny_train.trace import norm_behind
from fedtiny_train.wire import Message

MOST_COUNTED = 1 << 40  # values in a bin of one client; sums over clients stay far from 64 bits


def recalibrate(run: Run, state: State, traffic: Traffic) -> State:
    """Renew all batch-norm statistics with pooled ones.

    A layer's input depends on the statistics of the layers before it, so each pass makes at least one more
    layer exact. In a deep network a few passes can leave the layers behind worse off than before: with the
    moments each client sends its loss, and the statistics with the lowest loss are kept.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in models.norms(models.shared(run.setting.spec)):
        shape = state.tensors[f"{name}.running_mean"].shape
        shapes |= {f"{name}.mean": shape, f"{name}.var": shape}

    def check(message: Message) -> None:
        need(message, "moments", ("samples", "loss"))
        need_shapes(message, shapes)

    passes = run.config.train.recalibrate if shapes else 0
    tried: list[tuple[float, int, State]] = []
    for number in range(passes + 1 if passes else 0):
        before = len(traffic.refused)
        try:
            answers = run.gather(traffic, state.message("moments"), check)
        except FedtinyError:
            if not tried:
                raise
            # The renewed statistics sent the network out of the finite numbers: not the fault of any client.
            del traffic.refused[before:]
            break
        sent = [m for _, m in sorted(answers.messages.items())]
        whole = sum(m.numbers["samples"] for m in sent)
        tried.append((sum(m.numbers["samples"] * m.numbers["loss"] for m in sent) / whole, number, state))
        parts = [(m.numbers["samples"], {n: m.array(n) for n in shapes}) for m in sent]
        state = replace(state, tensors=state.tensors | calibrate.pool_moments(parts))
    return min(tried, key=lambda one: one[:2])[2] if tried else state


def activation_ranges(run: Run, state: State, traffic: Traffic) -> dict[str, Any]:
    """Return the content of ranges.json: first the clients' ranges, then histograms between these."""
    names = calibrate.tensor_names(models.shared(run.setting.spec))
    request, first = ask_ranges(run, state, traffic)
    edges = pooled_ranges(first)
    second = run.gather(
        traffic,
        Message("histograms", {}, {"ranges": edges}),
        _counts_check(len(names)),
        sorted(first.messages),
        kept=request,
    )
    counts = sum(m.array("counts") for _, m in sorted(second.messages.items()))
    return calibrate.report(names, edges, np.asarray(counts))


def ask_ranges(run: Run, state: State, traffic: Traffic) -> tuple[Message, Answers]:
    """Ask all clients between which values their activations lie; return the request and what they answered."""
    request = state.message("ranges")
    rows = len(calibrate.tensor_names(models.shared(run.setting.spec)))
    return request, run.gather(traffic, request, _ranges_check(rows))


def pooled_ranges(answers: Answers) -> calibrate.Doubles:
    """Return the range of every tensor over all who answered."""
    return calibrate.pool_ranges([m.array("ranges") for _, m in sorted(answers.messages.items())])


def _ranges_check(rows: int) -> Check:
    def check(message: Message) -> None:
        need(message, "ranges")
        need_shapes(message, {"ranges": (rows, 2)})
        low, high = message.array("ranges").T
        if (low > high).any():
            raise FedtinyError("a range begins above its end")

    return check


def _counts_check(rows: int) -> Check:
    def check(message: Message) -> None:
        need(message, "histograms")
        need_shapes(message, {"counts": (rows, calibrate.BINS)})
        counts = message.array("counts")
        if counts.dtype.kind != "i" or (counts < 0).any() or (counts > MOST_COUNTED).any():
            raise FedtinyError("its counts are not whole numbers from 0 on")

    return check


def accuracy_per_client(run: Run, right: npt.NDArray[np.bool_]) -> list[float | None]:
    """Return each client's accuracy on the server's test set.

    With the clients' own samples in the test set, over these (null where it has none). Otherwise, and where those
    who are tested are others than those who train, each class's accuracy weighted by the client's share of that class.
    """
    test, owner = run.federation.test, run.federation.test_client
    if owner is not None and np.isin(owner, run.everyone).any():
        return [float(right[owner == k].mean()) if (owner == k).any() else None for k in run.everyone]
    classes = run.setting.spec.classes
    tested = np.bincount(test.y, minlength=classes)
    per_class = np.bincount(test.y, weights=right, minlength=classes) / np.maximum(tested, 1)
    found: list[float | None] = []
    for shard in run.federation.shards:
        known = np.bincount(shard.y, minlength=classes) * (tested > 0)
        found.append(float((known * per_class).sum() / known.sum()) if known.any() else None)
    return found


def folded_density(run: Run, state: State) -> float:
    """Return the share of non-zero weights once batch norms are folded in: a scale of 0 empties its filter."""
    norms = norm_behind(models.shared(run.setting.spec))
    plain = models.baked(run.setting.spec, state.tensors, state.masks)
    kept = 0
    for name in state.masks:
        weight = plain[name]
        if name in norms:
            scale = plain[f"{norms[name]}.weight"]
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        kept += int(np.count_nonzero(weight))
    return kept / sum(mask.size for mask in state.masks.values())


def device_cost(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the most that a round costs a device; the parts of the memory are those of the round that needs most."""
    most = max(lines, key=lambda line: line["memory_max"])
    return {
        "flops_max": max(line["flops_max"] for line in lines),
        "memory_max": most["memory_max"],
        "memory": most["memory"],
        "memory_paper": max(line["memory_paper"] for line in lines),
    }


def _dense_cost(run: Run, state: State, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what the same rounds would have cost with the dense network and plain averaging."""
    masks = {name: np.ones_like(mask) for name, mask in state.masks.items()}
    message, options = len(wire.encode(replace(state, masks=masks).message("train"))), run.config.train
    training = cost.Training(options.batch, options.local_epochs, options.momentum > 0)
    samples = [len(shard.y) for shard in run.federation.shards]
    spent = cost.round_cost(run.network, state.tensors, masks, Orders(), training, samples)
    return {
        "flops_max": spent.flops,
        "memory_max": spent.memory.total,
        "bytes_up": message * sum(len(line["clients"]) for line in lines[1:]),
        "bytes_down": message * sum(len(line["invited"]) for line in lines[1:]),
    }


def summary(run: Run, state: State, lines: Sequence[Mapping[str, Any]], traffic: Traffic) -> dict[str, Any]:
    """Return the content of summary.json; `traffic` is that of the closing."""
    accuracy, loss, right = evaluate(run.setting.spec, state, run.federation.test)
    dead = dead_filters(models.shared(run.setting.spec), run.setting.spec.shape[0], state.masks)
    layers: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": list(mask.shape),
            "weights": mask.size,
            "kept": int(mask.sum()),
            "filters": mask.shape[0],
            "dead": dead[name],
        }
        for name, mask in state.masks.items()
    ]
    plain = models.baked(run.setting.spec, state.tensors, state.masks)
    kept, weights = sum(layer["kept"] for layer in layers), sum(layer["weights"] for layer in layers)
    return {
        "schema": 1,
        "version": __version__,
        "method": run.config.train.method,
        "data": run.data_name,
        "model": run.setting.spec.name,
        "width": run.setting.spec.width,
        "seed": run.config.run.seed,
        "accuracy": accuracy,
        "loss": loss,
        "accuracy_before_recalibration": lines[-1]["accuracy"],
        "accuracy_before_freezing": lines[-1]["accuracy"] if "frozen" in state.memory else None,
        "accuracy_per_client": accuracy_per_client(run, right),
        "density": kept / weights,
        "density_folded": folded_density(run, state),
        "weights": weights,
        "nonzero": sum(int(np.count_nonzero(plain[name])) for name in state.masks),
        "cost": {
            **device_cost(lines),
            "bytes_up": sum(line["bytes_up"] for line in lines) + traffic.up,
            "bytes_down": sum(line["bytes_down"] for line in lines) + traffic.down,
        },
        "cost_dense": _dense_cost(run, state, lines),
        "rounds": run.config.train.rounds,
        "rounded": run.config.train.qat,
        "rounds_missed": sum(not line["counted"] for line in lines),
        "clients": len(run.everyone),
        "test_samples": len(run.federation.test.y),
        "public_samples": len(run.federation.public.y),
        "input_shape": list(run.setting.spec.shape),
        "classes": run.setting.spec.classes,
        "class_names": list(run.class_names),
        "normalisation": state.memory["normalisation"],
        "selection": state.memory.get("selection"),
        "frozen": state.memory.get("frozen"),
        "layers": layers,
        "refused": sum(len(line["refused"]) for line in lines) + len(traffic.refused),
        "refused_closing": [{"id": r.client, "reason": r.reason, "request": r.request} for r in traffic.refused],
    }
