"""Training on a board: what a device of the federation took, beside the RAM that boards have.

The number is the simulation's own accounting (docs/costs.md): weights, gradients, momentum, the method's buffer and the
activations of a batch, of the round that needed most. No board has trained; this says which ones have room for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import FedtinyError
from ..untrusted import read_json_object
from .devices import Device, Memory

PARTS = ("parameters", "gradients", "momentum", "buffer", "activations")


@dataclass(frozen=True, slots=True)
class Client:
    """Bytes of RAM that a device needed to train, the largest region of this board, and the boards with room."""

    bytes: int
    parts: dict[str, int]
    paper_bytes: int
    region: str
    room: int
    boards: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether this board could have been such a device."""
        return self.bytes <= self.room


def training_memory(run: Path) -> Mapping[str, int] | None:
    """What a run's summary.json says a device needed: the parts, `total` and `paper`; None if it says nothing."""
    path = run / "summary.json"
    cost = read_json_object(path).get("cost") if path.is_file() else None
    if not isinstance(cost, dict) or not isinstance(parts := cost.get("memory"), dict):
        return None
    found = {name: parts.get(name) for name in PARTS}
    found |= {"total": cost.get("memory_max"), "paper": cost.get("memory_paper")}
    if not all(isinstance(value, int | float) and 0 <= value < 1 << 53 for value in found.values()):
        raise FedtinyError(f"{path}: cost.memory holds something that is no number of bytes")
    return {name: math.ceil(value) for name, value in found.items() if value is not None}


def client_on(device: Device, boards: Iterable[Device], memory: Mapping[str, int] | None) -> Client | None:
    """Put what training needed beside this board's RAM, and every other's."""
    if memory is None:
        return None
    largest = _largest(device)
    roomy = tuple(board.id for board in boards if _largest(board).size >= memory["total"])
    parts = {name: memory[name] for name in PARTS}
    return Client(memory["total"], parts, memory["paper"], largest.name, largest.size, roomy)


def _largest(device: Device) -> Memory:
    return max((region for region in device.memory if region.kind == "ram"), key=lambda region: region.size)


def client_text(client: Client, board: str) -> str:
    """The line of a report."""
    parts = ", ".join(f"{name} {size:,}" for name, size in client.parts.items() if size)
    said = "has room for it" if client.fits else f"is {client.bytes - client.room:,} short"
    others = ", ".join(client.boards) or "none of those known"
    return (
        f"a round took {client.bytes:,} bytes on a device ({parts}); {client.region} of {board}, {client.room:,} "
        f"bytes, {said}; boards with room: {others}"
    )
