"""Where clients run. An engine takes orders and returns the answers in the same order, and knows no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Order:
    """One request to one client; `kept` is an earlier request that the client has not forgotten."""

    client: int
    request: bytes
    kept: bytes = b""


class Engine(Protocol):
    """Something that carries orders to clients."""

    def run(self, orders: Sequence[Order]) -> list[bytes]:
        """Return one answer an order, in the order of the orders."""
        ...

    def close(self) -> None:
        """Let go of processes and connections."""
        ...
