"""What the runtime's code takes on each CPU, as compiled and measured once: the planned side of flash and stack.

`firmware/sizes.json` is written by `benchmarks/code_sizes.py`; a test keeps it true. Where no compiler for a CPU
could be had, the table names the stand-in it was measured with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from ..assets import asset_root
from .abi import Kernel

# Boards name their exact core; the table has one row for cores that run the same instructions.
_TABLE_CPU = {
    "cortex-m0plus": "cortex-m0",
    "cortex-m4f": "cortex-m4",
    "xtensa-lx7": "xtensa-lx6",
}
_SPARSE = (Kernel.CONV_BITMAP, Kernel.CONV_GAP, Kernel.CONV_RICE)
_EVERY_WEIGHT = (Kernel.CONV_DENSE, Kernel.DEPTHWISE)
# code that several kernels share, linked if one of them is
_SHARED = {
    "channels": {*_EVERY_WEIGHT, *_SPARSE, Kernel.VECTOR},
    "conv": {*_EVERY_WEIGHT, *_SPARSE},
    "taps": {*_SPARSE},
    "two": {*_EVERY_WEIGHT},
}


@dataclass(frozen=True, slots=True)
class CodeSizes:
    """Bytes of code by part for one CPU."""

    cpu: str
    compiler: str
    stand_in: bool
    parts: dict[str, int]
    stacks: dict[str, int]
    instructions: dict[str, float]

    def kernel_bytes(self) -> dict[Kernel | frozenset[Kernel], int]:
        """What linking each kernel adds, and what the first of those that share code adds."""
        costs: dict[Kernel | frozenset[Kernel], int] = {kernel: self.parts[kernel.name.lower()] for kernel in Kernel}
        return costs | {frozenset(users): self.parts[part] for part, users in _SHARED.items()}

    def stack_bytes(self, ways: Iterable[str]) -> int | None:
        """The deepest stack of these ways through the kernels, from main on; None where it was not measured."""
        return max((self.stacks[way] for way in ways), default=None) if self.stacks else None

    def runtime_parts(self, kernels: Iterable[Kernel]) -> dict[str, int]:
        """Opening, running and the kernels given, with what those share: bytes by part."""
        used = set(kernels)
        names = ["core", *(part for part, users in _SHARED.items() if used & users)]
        return {name: self.parts[name] for name in (*names, *sorted(kernel.name.lower() for kernel in used))}

    def runtime_bytes(self, kernels: Iterable[Kernel]) -> int:
        """All of them together."""
        return sum(self.runtime_parts(kernels).values())


@dataclass(frozen=True, slots=True)
class BoardSizes:
    """What start-up code and the generated main take on an emulated board."""

    code: int
    static: int


def table_cpu(cpu: str) -> str:
    """The name under which the table has a board's CPU, if it has it."""
    return _TABLE_CPU.get(cpu, cpu)


def load_code_sizes(cpu: str) -> CodeSizes | None:
    """The row for a board's CPU, or None if there is none."""
    table = json.loads((asset_root() / "firmware" / "sizes.json").read_text())["cpus"]
    name = table_cpu(cpu)
    if name not in table:
        return None
    row = table[name]
    stand_in = cpu in ("xtensa-lx6", "xtensa-lx7")
    return CodeSizes(name, row["compiler"], stand_in, row["parts"], row["stack"] or {}, row.get("instructions", {}))


def load_board_sizes(board: str) -> BoardSizes | None:
    """The row for an emulated board, or None if it is not one."""
    row = json.loads((asset_root() / "firmware" / "sizes.json").read_text())["boards"].get(board)
    return None if row is None else BoardSizes(row["code"], row["static"])
