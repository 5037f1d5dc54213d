"""Aggregation that one client, or a few, cannot turn over: clipped updates, medians and trimmed means.

Everything here is a function of answers that were accepted already; what is refused is the business of `server`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedtiny_train.config import trim_share
from fedtiny_train.models import Arrays
from fedtiny_train.server import State, average, combine_top
from fedtiny_train.wire import Message, Sparse, Tensor

Doubles = npt.NDArray[np.float64]


def update_norm(message: Message, state: State) -> float:
    """Return the L2 norm of how far an update moved the weights; batch-norm statistics are not counted."""
    names = [name for name in message.tensors if name in state.tensors and "running_" not in name]
    squares = [((message.array(n).astype(np.float64) - state.tensors[n]) ** 2).sum() for n in names]
    return math.sqrt(float(sum(squares)))


def clipped(message: Message, state: State, limit: float) -> Message:
    """Return an update no longer than `limit`: all of it lies on the line from what was sent to what came back.

    The batch-norm statistics go the same share of their way, so that a variance stays one. A client that moved
    its live weights elsewhere keeps its mask.
    """
    norm = update_norm(message, state)
    if norm <= limit:
        return message
    share = limit / norm
    tensors = {
        name: _part_of_the_way(tensor, state.tensors[name], share) if name in state.tensors else tensor
        for name, tensor in message.tensors.items()
    }
    return replace(message, tensors=tensors)


def _part_of_the_way(tensor: Tensor, before: npt.NDArray[np.float32], share: float) -> Tensor:
    if isinstance(tensor, Sparse):
        start = before.reshape(-1)[tensor.indices].astype(np.float64)
        values = np.asarray(start + share * (tensor.values - start), dtype=tensor.values.dtype)
        return replace(tensor, values=values)
    start = before.astype(np.float64)
    return np.asarray(start + share * (tensor - start), dtype=tensor.dtype)


def combined(messages: Mapping[int, Message], names: Sequence[str], rule: str) -> Arrays:
    """Aggregate tensors over the clients that sent them: `mean`, `median` or `trimmed:SHARE`.

    The mean is weighted by samples. The others go value by value and count every client once: a weight that a
    client may state itself would be worth as much as many clients.
    """
    if rule == "mean":
        return average(messages, names)
    result: Arrays = {}
    for name in names:
        parts = [m.array(name).astype(np.float64) for _, m in sorted(messages.items()) if name in m.tensors]
        if parts:
            values = np.stack(parts)
            found = np.median(values, axis=0) if rule == "median" else trimmed_mean(values, trim_share(rule))
            result[name] = np.asarray(found, dtype=np.float32)
    return result


def trimmed_mean(values: Doubles, share: float) -> Doubles:
    """Return the mean over axis 0 without the `share` (rounded down to whole clients) at either end."""
    cut = math.floor(share * len(values) + 1e-9)
    kept = np.sort(values, axis=0)[cut : len(values) - cut]
    return np.asarray(kept.mean(axis=0))


def combined_top(messages: Mapping[int, Message], names: Sequence[str], rule: str) -> Arrays:
    """Average the clients' top-K gradients; under a robust rule no client's list weighs more than the median one.

    A median value by value would be zero nearly everywhere, since the lists of two clients hardly overlap.
    """
    if rule == "mean":
        return combine_top(messages, names)
    even = {k: replace(m, numbers={**m.numbers, "samples": 1.0}) for k, m in messages.items()}
    for name in names:
        key = f"top/{name}"
        norms = {k: float(np.linalg.norm(m.array(key).astype(np.float64))) for k, m in even.items()}
        limit = float(np.median(list(norms.values())))
        for k, norm in norms.items():
            if norm > limit:
                tensors = {**even[k].tensors, key: _scaled(even[k].tensors[key], limit / norm)}
                even[k] = replace(even[k], tensors=tensors)
    return combine_top(even, names)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    if isinstance(tensor, Sparse):
        return replace(tensor, values=np.asarray(tensor.values * factor, dtype=tensor.values.dtype))
    return np.asarray(tensor * factor, dtype=tensor.dtype)
