"""Where clients run. An engine takes orders and returns the answers in the same order, and knows no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Order:
    """One request to one client.

    The client has not forgotten `kept`, an earlier request, nor `own`, what it noted for itself in its last
    reply; neither travels. (A simulation has to carry them: its clients live in whatever process is free.)
    `turn` is the round and the wave of requests within it, by which simulated faults are drawn.
    """

    client: int
    request: bytes
    kept: bytes = b""
    own: bytes = b""
    turn: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client sends, and what it notes for itself.

    An empty body is no answer at all. `delay` is when it came, in deadlines: above 1 it came too late.
    """

    body: bytes
    own: bytes = b""
    delay: float = 0.0


class Engine(Protocol):
    """Something that carries orders to clients."""

    def run(self, orders: Sequence[Order]) -> list[Reply]:
        """Return one answer an order, in the order of the orders."""
        ...

    def close(self) -> None:
        """Let go of processes and connections."""
        ...
