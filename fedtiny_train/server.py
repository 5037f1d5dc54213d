"""What the server does: ask clients, check what they send, and aggregate it in the order of the clients.

It holds the global state as a value and never sees a sample of a client. Which weights live is the business
of `methods`; when what happens is the business of `rounds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from fedtiny_export.errors import FedtinyError

from fedtiny_train import models, wire
from fedtiny_train.data import Shard
from fedtiny_train.engine import Engine, Order, Reply
from fedtiny_train.masks import Array, Mask
from fedtiny_train.models import Arrays, ModelSpec
from fedtiny_train.wire import Message, Sparse, Tensor


class DivergedError(FedtinyError):
    """Training left the finite numbers, or nearly; to do it again would end the same."""


@dataclass(frozen=True, slots=True)
class State:
    """The global model: every tensor by name, the mask of each prunable weight, and what a method remembers.

    `kept` are arrays that the server remembers and no client is sent; `own` is what each device noted for itself.
    """

    tensors: Arrays
    masks: dict[str, Mask]
    memory: Mapping[str, Any] = field(default_factory=dict)
    kept: Arrays = field(default_factory=dict)
    own: Mapping[int, bytes] = field(default_factory=dict)

    def with_masks(self, masks: dict[str, Mask]) -> State:
        """Return the state under new masks; what they leave out is zero."""
        pruned = {name: self.tensors[name] * mask for name, mask in masks.items()}
        return replace(self, tensors=self.tensors | pruned, masks=masks)

    def message(self, kind: str, numbers: Mapping[str, float] | None = None) -> Message:
        """Return the model as it travels: sparse where its masks are, without what stays with the devices."""
        travels = {name: a for name, a in self.tensors.items() if not name.startswith(models.OWN)}
        tensors = {name: wire.masked(a, self.masks.get(name)) for name, a in travels.items()}
        return Message(kind, numbers or {}, tensors)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A client whose answer was not used, and why."""

    client: int
    reason: str
    request: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back from one wave of requests, and what it cost; `diverged` counts the values out of range."""

    messages: dict[int, Message]
    refused: tuple[Refusal, ...]
    bytes_up: int
    bytes_down: int
    own: dict[int, bytes]
    invited: tuple[int, ...] = ()
    diverged: int = 0

    def lack(self, quorum: float) -> FedtinyError | None:
        """Return what to say if fewer answered well than the quorum asks for."""
        if (good := len(self.messages)) >= (needed := quorum_of(len(self.invited), quorum)):
            return None
        first = self.refused[0]
        remedy = (
            "use a lower --lr, or a higher --max-value"
            if self.diverged
            else "use a lower --quorum or a higher --participation"
        )
        kind = DivergedError if self.diverged == len(self.refused) else FedtinyError
        return kind(
            f"{good} of {len(self.invited)} clients answered well and {needed} must (quorum {quorum:g}); "
            f"client {first.client}: {first.reason}; {remedy}"
        )


Check = Callable[[Message], None]


def quorum_of(invited: int, quorum: float) -> int:
    """Return how many of the invited must answer well: their share rounded up, and one at least."""
    return max(1, math.ceil(quorum * invited - 1e-9))


def ask(
    engine: Engine,
    clients: Sequence[int],
    request: Message,
    check: Check,
    kept: Message | None = None,
    own: Mapping[int, bytes] | None = None,
    turn: tuple[int, int] = (0, 0),
    limit: float = math.inf,
) -> Answers:
    """Send one request to each client; refuse the answers that do not pass `check` or hold values over `limit`.

    `kept` is an earlier request that the clients still hold, `own` what each noted for itself: neither is sent.
    """
    body, before, notes = wire.encode(request), wire.encode(kept) if kept else b"", own or {}
    replies = engine.run([Order(client, body, before, notes.get(client, b""), turn) for client in clients])
    good: dict[int, Message] = {}
    refused, diverged = [], 0
    for client, reply in zip(clients, replies, strict=True):
        try:
            good[client] = _read(reply, check, limit)
        except FedtinyError as error:
            refused.append(Refusal(client, str(error), request.kind))
            diverged += isinstance(error, DivergedError)
    bytes_up = sum(len(reply.body) for reply in replies)
    noted = {k: reply.own for k, reply in zip(clients, replies, strict=True) if k in good and reply.own}
    return Answers(good, tuple(refused), bytes_up, len(body) * len(clients), noted, tuple(clients), diverged)


def _read(reply: Reply, check: Check, limit: float) -> Message:
    """Return the message of a reply, or raise FedtinyError with the reason why it is of no use."""
    if not reply.body:
        raise FedtinyError("no answer")
    if reply.delay > 1:
        raise FedtinyError(f"too late: after {reply.delay:.1f} deadlines")
    message = wire.decode(reply.body)
    refuse_huge(message, limit)
    check(message)
    return message


def need(message: Message, kind: str, numbers: Sequence[str] = ()) -> None:
    """Refuse a message of another kind, without the numbers it needs, or with anything that cannot be."""
    if message.kind != kind:
        raise FedtinyError(f"it is a {message.kind!r}, not a {kind!r}")
    for name in (*numbers, *message.numbers):
        if not np.isfinite(message.numbers.get(name, np.nan)):
            raise DivergedError(f"{name} is missing or not finite")
    if message.numbers.get("samples", 1) < 1:
        raise FedtinyError(f"it speaks for {message.numbers['samples']} samples")
    for name, tensor in message.tensors.items():
        values = tensor.values if isinstance(tensor, Sparse) else tensor
        if not np.isfinite(values).all():
            raise DivergedError(f"{name} holds values that are not finite")
        if name.endswith(("running_var", ".var")) and (values < 0).any():
            raise FedtinyError(f"{name} holds a variance below 0")


# What is a sum over samples (or a count) may be as large as its kind: how often the limit is a factor of its bound.
SUMS = {"count": 2, "sum": 2, "squares": 3, "loss_squared": 2}


def refuse_huge(message: Message, limit: float) -> None:
    """Refuse a message with a value that no sound training gives: beyond `limit`, a sum beyond that of samples."""
    samples = message.numbers.get("samples", 1) if message.kind == "scored" else 1
    for name, number in message.numbers.items():
        _refuse_over(name, abs(number), limit ** SUMS.get(name, 1) if message.kind == "described" else limit)
    for name, tensor in message.tensors.items():
        values = tensor.values if isinstance(tensor, Sparse) else tensor
        if values.dtype.kind == "f" and values.size:
            power = SUMS.get(name, 1) if message.kind == "scored" else 1
            _refuse_over(name, float(np.abs(values).max()), samples * limit**power)


def _refuse_over(name: str, value: float, limit: float) -> None:
    if value > limit:
        raise DivergedError(f"{name} holds a huge value, {value:.3g}, over {limit:.3g} (--max-value)")


def need_shapes(message: Message, shapes: Mapping[str, tuple[int, ...]], optional: Sequence[str] = ()) -> None:
    """Refuse a message whose tensors are not exactly those of `shapes`; the optional ones may be left out."""
    for name, tensor in message.tensors.items():
        if name not in shapes:
            raise FedtinyError(f"it has a tensor {name} that was not asked for")
        if tensor.shape != shapes[name]:
            raise FedtinyError(f"{name} has shape {tensor.shape}, not {shapes[name]}")
    for name in shapes:
        if name not in message.tensors and name not in optional:
            raise FedtinyError(f"{name} is missing")


def update_check(state: State, top: Mapping[str, int], own_masks: bool = False, may_skip: bool = False) -> Check:
    """Return the check of a round's update: finite, of the right shapes, live only where the mask is.

    With `own_masks` a client may have moved its live weights, but has as many of them in each layer. With
    `may_skip` it may say instead that it sends none.
    """
    fixed = ("center.mean", "scale.inv_std")
    shapes = {n: a.shape for n, a in state.tensors.items() if n not in fixed and not n.startswith(models.OWN)}
    statistics = [name for name in shapes if "running_" in name]
    wanted = {f"top/{name}": count for name, count in top.items()}
    shapes |= {name: state.tensors[name.removeprefix("top/")].shape for name in wanted}
    places = {name: np.flatnonzero(mask) for name, mask in state.masks.items()}

    def check(message: Message) -> None:
        if may_skip and message.kind == "skipped":
            need(message, "skipped", ("samples", "loss"))
            need_shapes(message, {})
            return
        need(message, "update", ("samples", "loss"))
        need_shapes(message, shapes, statistics)
        for name, mask in state.masks.items():
            tensor, due = message.tensors[name], places[name]
            live = tensor.indices if isinstance(tensor, Sparse) else None
            count = mask.size if live is None else len(live)
            if own_masks and count != len(due):
                raise FedtinyError(f"{name} has {count} values, not {len(due)}")
            if not own_masks and (count != len(due) or not (live is None or np.array_equal(live, due))):
                raise FedtinyError(f"{name} has values where its mask has none, or none where it has")
        for name, count in wanted.items():
            tensor = message.tensors[name]
            if not isinstance(tensor, Sparse) or len(tensor.indices) > count:
                raise FedtinyError(f"{name} is not a list of at most {count} gradients")
            if state.masks[name.removeprefix("top/")].reshape(-1)[tensor.indices].any():
                raise FedtinyError(f"{name} has gradients of live weights")

    return check


def average(messages: Mapping[int, Message], names: Sequence[str]) -> Arrays:
    """Average tensors over the clients that sent them, weighted by their samples, in order of the clients."""
    result = {}
    ordered = [message for _, message in sorted(messages.items())]
    for name in names:
        parts = [(m.numbers["samples"], m.tensors[name]) for m in ordered if name in m.tensors]
        if parts:
            result[name] = _mean(parts)
    return result


def _mean(parts: Sequence[tuple[float, Tensor]]) -> Array:
    """Return the weighted mean of one tensor; where all live at the same positions only those are added up."""
    tensors = [tensor for _, tensor in parts]
    places = _same_places(tensors)
    total = np.zeros(tensors[0].shape if places is None else places.shape, dtype=np.float64)
    for weight, tensor in parts:
        dense = tensor.dense() if isinstance(tensor, Sparse) and places is None else tensor
        total += weight * (dense.values if isinstance(dense, Sparse) else dense).astype(np.float64)
    mean = np.asarray(total / sum(weight for weight, _ in parts), dtype=np.float32)
    return mean if places is None else Sparse(tensors[0].shape, places, mean).dense()


def _same_places(tensors: Sequence[Tensor]) -> npt.NDArray[np.int64] | None:
    """Return the positions that sparse tensors share, or None if any is dense or has others."""
    first = tensors[0]
    if not isinstance(first, Sparse):
        return None
    same = all(isinstance(t, Sparse) and np.array_equal(t.indices, first.indices) for t in tensors)
    return first.indices if same else None


def described_check(message: Message) -> None:
    """Refuse a description of inputs that no inputs can have."""
    need(message, "described", ("count", "sum", "squares", "min", "max"))
    need_shapes(message, {})
    count, total, squares, low, high = (message.numbers[n] for n in ("count", "sum", "squares", "min", "max"))
    if count < 1 or low > high:
        raise FedtinyError(f"it describes {count:g} values between {low:g} and {high:g}")
    mean, most = total / count, max(low**2, high**2)
    room = 1e-6 * max(most, 1e-30)  # sums of doubles are this good, whatever the order of their terms
    if not (low - room**0.5 <= mean <= high + room**0.5 and mean**2 - room <= squares / count <= most + room):
        raise FedtinyError(f"its mean {mean:g} or its mean square {squares / count:g} cannot be")


def combine_top(messages: Mapping[int, Message], names: Sequence[str]) -> Arrays:
    """Average the clients' top-K gradients, weighted by their samples; what a client left out counts as 0."""
    whole = sum(m.numbers["samples"] for m in messages.values())
    result: dict[str, Array] = {}
    for name in names:
        parts = [(m.numbers["samples"], m.array(f"top/{name}")) for _, m in sorted(messages.items())]
        total = sum(weight * part.astype(np.float64) for weight, part in parts)
        result[name] = np.asarray(total / whole, dtype=np.float32)
    return result


def normalisation(messages: Mapping[int, Message]) -> dict[str, float]:
    """Combine the clients' descriptions of their inputs into one mean and one deviation.

    The mean is snapped to the grid that an int8 input with this range has, S = (max - min) / 255 with 0 in
    the range, so that an exporter can fold the subtraction into the zero point without any rounding.
    """
    parts = [m.numbers for _, m in sorted(messages.items())]
    count, total, squares = (sum(p[key] for p in parts) for key in ("count", "sum", "squares"))
    low, high = min(p["min"] for p in parts), max(p["max"] for p in parts)
    step = (max(high, 0.0) - min(low, 0.0)) / 255
    mean = total / count
    deviation = max(squares / count - mean**2, 0.0) ** 0.5
    snapped = step * round(mean / step) if step else 0.0
    return {"mean": snapped, "std": deviation or 1.0, "min": low, "max": high}


def logits(spec: ModelSpec, state: State, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the outputs of a state for a set of samples."""
    model = models.shared(spec)
    models.load(model, state.tensors, state.masks)
    model.eval()
    with torch.no_grad():
        parts = [model(models.layout(torch.from_numpy(x[at : at + 512]))).cpu().numpy() for at in range(0, len(x), 512)]
    return np.concatenate(parts)


def evaluate(spec: ModelSpec, state: State, test: Shard) -> tuple[float, float, npt.NDArray[np.bool_]]:
    """Return accuracy, mean loss and which samples are right, on the server's test set."""
    output = logits(spec, state, test.x)
    loss = float(F.cross_entropy(torch.from_numpy(output).double(), torch.from_numpy(test.y)))
    right = output.argmax(1) == test.y
    return float(right.mean()), loss, right
