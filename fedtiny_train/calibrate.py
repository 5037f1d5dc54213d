"""Federated statistics of a finished network: batch-norm moments, activation ranges and histograms.

The functions of a client turn its data into a few numbers a tensor; those of the server combine them. No
sample and no activation leaves a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedtiny_train import models
from fedtiny_train.models import Array, Arrays
from fedtiny_train.models.layers import Gate
from fedtiny_train.models.place import moved
from fedtiny_train.trace import OUTPUT, steps, walk

BINS = 256
GATE_PARTS = ("mean", "wins")
CHUNK = 256
Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def tensor_names(model: nn.Module) -> list[str]:
    """Return the input and every activation, in graph order."""
    return ["input", *(step.output for step in steps(model))]


def tensor_ranges(model: nn.Module, x: Array) -> Doubles:
    """Return one row (least, greatest) for each tensor of the network."""
    model.eval()
    plan = steps(model)
    found = np.empty((len(plan) + 1, 2))
    found[:, 0], found[:, 1] = np.inf, -np.inf
    with torch.no_grad():
        for at in range(0, len(x), CHUNK):
            for row, (_, value) in enumerate(walk(plan, models.layout(torch.from_numpy(x[at : at + CHUNK])))):
                found[row, 0] = min(found[row, 0], float(value.min()))
                found[row, 1] = max(found[row, 1], float(value.max()))
    return found


def tensor_histograms(model: nn.Module, x: Array, edges: Doubles) -> Counts:
    """Count the values of each tensor in equal bins between its edges; what lies outside joins the last bin."""
    model.eval()
    plan = steps(model)
    counts = np.zeros((len(plan) + 1, BINS), dtype=np.int64)
    with torch.no_grad():
        for at in range(0, len(x), CHUNK):
            for row, (_, value) in enumerate(walk(plan, models.layout(torch.from_numpy(x[at : at + CHUNK])))):
                counts[row] += histogram(value, edges[row, 0], edges[row, 1])
    return counts


def histogram(values: Tensor, low: float, high: float) -> Counts:
    """Count values in `BINS` equal bins, those outside in the outermost; a constant falls into the first bin."""
    if not np.float32(high) > np.float32(low):
        return np.bincount([0], weights=[values.numel()], minlength=BINS).astype(np.int64)
    return torch.histc(values.cpu().clamp(low, high), BINS, low, high).numpy().astype(np.int64)


def norm_moments(model: nn.Module, x: Array, y: npt.NDArray[np.int64]) -> tuple[dict[str, Doubles], float]:
    """Return `NAME.mean` and `NAME.var` of each batch norm's input per channel, and the mean loss of the network."""
    model.eval()
    plan = steps(model)
    sums: dict[str, list[Doubles]] = {}
    wanted = {step.inputs[0]: step.path for step in plan if step.path in models.norms(model)}
    places: dict[str, int] = {}
    loss = 0.0
    with torch.no_grad():
        for at in range(0, len(x), CHUNK):
            for name, value in walk(plan, models.layout(torch.from_numpy(x[at : at + CHUNK]))):
                if name == OUTPUT:
                    labels = moved(torch.from_numpy(y[at : at + CHUNK]))
                    loss += float(F.cross_entropy(value.double(), labels, reduction="sum"))
                if name in wanted:
                    # Per chunk in float32 around the chunk's own mean, over chunks in double: exact enough, and fast.
                    axes = [axis for axis in range(value.dim()) if axis != 1]
                    spread, centre = (t.double().cpu().numpy() for t in torch.var_mean(value, axes, correction=0))
                    count = value.numel() // value.shape[1]
                    one = [centre * count, (spread + centre**2) * count]
                    old = sums.get(wanted[name])
                    sums[wanted[name]] = one if old is None else [a + b for a, b in zip(old, one, strict=True)]
                    places[wanted[name]] = places.get(wanted[name], 0) + count
    found: dict[str, Doubles] = {}
    for name, (total, squares) in sums.items():
        mean = total / places[name]
        found[f"{name}.mean"] = mean
        found[f"{name}.var"] = np.maximum(squares / places[name] - mean**2, 0.0)
    return found, loss / len(y)


def gate_moments(model: nn.Module, x: Array) -> dict[str, Doubles]:
    """Return `NAME.mean`, a gate's mean strength by channel, and `NAME.wins`, how often the channel wins."""
    model.eval()
    plan = steps(model)
    gates = {step.output: step for step in plan if isinstance(step.module, Gate)}
    found = {f"{name}.{part}": np.zeros(len(models.gates(model)[name].bias)) for name in gates for part in GATE_PARTS}
    with torch.no_grad():
        for at in range(0, len(x), CHUNK):
            values = dict(walk(plan, models.layout(torch.from_numpy(x[at : at + CHUNK]))))
            for name, step in gates.items():
                assert isinstance(step.module, Gate)
                strength = step.module.strengths(values[step.inputs[0]]).double().cpu().numpy()
                found[f"{name}.mean"] += strength.sum(axis=0) / len(x)
                found[f"{name}.wins"] += (strength > 0).sum(axis=0) / len(x)
    return found


def pool_moments(parts: Sequence[tuple[float, Mapping[str, npt.NDArray[Any]]]]) -> Arrays:
    """Combine clients' moments, each with its number of samples: variance = E[v] + Var[m].

    The mean of the variances alone would leave out how far the clients' means lie apart.
    """
    whole = sum(count for count, _ in parts)
    pooled: Arrays = {}
    for name in [key.removesuffix(".mean") for key in parts[0][1] if key.endswith(".mean")]:
        mean = sum(count * m[f"{name}.mean"] for count, m in parts) / whole
        spread = sum(count * (m[f"{name}.var"] + (m[f"{name}.mean"] - mean) ** 2) for count, m in parts)
        pooled[f"{name}.running_mean"] = np.asarray(mean, dtype=np.float32)
        pooled[f"{name}.running_var"] = np.asarray(spread / whole, dtype=np.float32)
    return pooled


def pool_ranges(parts: Sequence[Doubles]) -> Doubles:
    """Combine clients' ranges: the least of the least, the greatest of the greatest."""
    return np.stack([np.min([p[:, 0] for p in parts], axis=0), np.max([p[:, 1] for p in parts], axis=0)], axis=1)


def report(names: Sequence[str], ranges: Doubles, counts: Counts) -> dict[str, Any]:
    """Return the content of ranges.json."""
    return {
        name: {
            "min": float(low),
            "max": float(high),
            "histogram": {"edges": [float(low), float(high)], "counts": [int(n) for n in row]},
        }
        for name, (low, high), row in zip(names, ranges, counts, strict=True)
    }
