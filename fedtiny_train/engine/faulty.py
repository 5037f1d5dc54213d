"""Clients that fail by chance: an engine around another one, so that all the server survives can be tried.

Whether and how a client fails is drawn by (seed, round, wave, client), so a run with faults is as repeatable as
one without. Nothing sleeps: an answer that is too late carries a delay of more than one deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedtiny_train import wire
from fedtiny_train.engine import Engine, Order, Reply
from fedtiny_train.seeds import rng
from fedtiny_train.wire import Message, Sparse, Tensor

HUGE = 1e30


@dataclass(frozen=True, slots=True)
class Faulty:
    """An engine whose clients fail in each way as often as `rates` says."""

    engine: Engine
    rates: Mapping[str, float]
    seed: int

    def run(self, orders: Sequence[Order]) -> list[Reply]:
        """Let the clients answer that do not drop out, and spoil what some of them send."""
        draws = {order.client: rng(self.seed, "faults", *order.turn, order.client) for order in orders}
        faults = {client: fault_of(self.rates, draws[client].random()) for client in draws}
        there = [order for order in orders if faults[order.client] != "dropout"]
        replies = {order.client: reply for order, reply in zip(there, self.engine.run(there), strict=True)}
        found = []
        for order in orders:
            spoil = SPOILERS.get(faults[order.client], _unspoilt)
            found.append(spoil(replies.get(order.client, Reply(b"", order.own)), draws[order.client]))
        return found

    def close(self) -> None:
        """Let go of the engine inside."""
        self.engine.close()


def fault_of(rates: Mapping[str, float], draw: float) -> str:
    """Return the fault that a draw from [0, 1) falls on, or an empty string."""
    for kind, rate in rates.items():
        if draw < rate:
            return kind
        draw -= rate
    return ""


def _unspoilt(reply: Reply, draw: np.random.Generator) -> Reply:
    return reply


def slow(reply: Reply, draw: np.random.Generator) -> Reply:
    """Let the answer come after the deadline."""
    return replace(reply, delay=1 + float(draw.exponential()))


def corrupt(reply: Reply, draw: np.random.Generator) -> Reply:
    """Flip a few bits of the message, or cut it off."""
    body = bytearray(reply.body)
    if draw.random() < 0.5:
        return replace(reply, body=bytes(body[: draw.integers(1, len(body))]))
    for at in draw.choice(len(body), min(len(body), int(draw.integers(1, 9))), replace=False):
        body[at] ^= int(draw.integers(1, 256))
    return replace(reply, body=bytes(body))


def shape(reply: Reply, draw: np.random.Generator) -> Reply:
    """Give one tensor an element more, or send one that nobody asked for."""

    def longer(tensor: Tensor) -> Tensor:
        values = tensor.dense() if isinstance(tensor, Sparse) else tensor
        return np.append(values.reshape(-1), values.dtype.type(0))

    message = wire.decode(reply.body)
    if not message.tensors:
        return replace(reply, body=wire.encode(replace(message, tensors={"surplus": np.zeros(3, np.float32)})))
    return replace(reply, body=wire.encode(_changed(message, draw, longer)))


def nan(reply: Reply, draw: np.random.Generator) -> Reply:
    """Put a NaN into a tensor or a number."""
    return _with_value(reply, draw, np.nan)


def huge(reply: Reply, draw: np.random.Generator) -> Reply:
    """Put an absurd value into a tensor or a number."""
    return _with_value(reply, draw, HUGE)


def _with_value(reply: Reply, draw: np.random.Generator, value: float) -> Reply:
    message = wire.decode(reply.body)
    tensors = {name: t for name, t in message.tensors.items() if _values(t).dtype.kind == "f" and _values(t).size}
    if not tensors:
        name = list(message.numbers)[int(draw.integers(len(message.numbers)))] if message.numbers else "samples"
        return replace(reply, body=wire.encode(replace(message, numbers={**message.numbers, name: value})))

    def spoilt(tensor: Tensor) -> Tensor:
        values = _values(tensor).copy()
        values.reshape(-1)[int(draw.integers(values.size))] = value
        return replace(tensor, values=values) if isinstance(tensor, Sparse) else values

    return replace(reply, body=wire.encode(_changed(message, draw, spoilt, list(tensors))))


def _values(tensor: Tensor) -> np.ndarray:
    return tensor.values if isinstance(tensor, Sparse) else tensor


def _changed(
    message: Message, draw: np.random.Generator, change: Callable[[Tensor], Tensor], names: Sequence[str] = ()
) -> Message:
    chosen = (names or list(message.tensors))[int(draw.integers(len(names or message.tensors)))]
    return replace(message, tensors={**message.tensors, chosen: change(message.tensors[chosen])})


SPOILERS: Mapping[str, Callable[[Reply, np.random.Generator], Reply]] = {
    "slow": slow,
    "corrupt": corrupt,
    "shape": shape,
    "nan": nan,
    "huge": huge,
}
