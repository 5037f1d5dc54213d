"""Where each activation and scratch buffer lies in the arena.

Buffers that are alive at the same time never overlap. Offsets come from first-fit placement, largest first; the
peak over operators is the lower bound, and the report says when the plan is above it.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .abi import Kernel
from .ir import Graph, Op
from .sparse import Packed

ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes needed from operator `first` to operator `last`, both included: a tensor, or an operator's scratch."""

    name: str
    size: int
    first: int
    last: int
    scratch: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Every buffer with its offset in the arena; `lower_bound` is what the widest operator needs in any plan."""

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int

    def tensor_offsets(self) -> dict[str, int]:
        """Where each tensor lies."""
        return {b.name: offset for b, offset in zip(self.buffers, self.offsets, strict=True) if not b.scratch}

    def scratch_offsets(self) -> dict[int, int]:
        """Where the scratch of each operator that has one lies."""
        return {b.first: offset for b, offset in zip(self.buffers, self.offsets, strict=True) if b.scratch}


def scratch_bytes(graph: Graph, index: int, packed: Mapping[str, Packed]) -> int:
    """Taps of one output channel, then a ring of padded rows: see ft_conv_run in the runtime."""
    node = graph.nodes[index]
    if node.name not in packed:
        return 0
    taps = 4 * packed[node.name].max_taps
    if node.op is Op.DENSE or not any(node.window.pads):
        return taps
    _, width, channels = graph.tensors[node.inputs[0]].image
    _, left, _, right = node.window.pads
    return taps + node.window.kernel[0] * (left + width + right) * channels


def make_plan(graph: Graph, packed: Mapping[str, Packed]) -> Plan:
    """Place every activation and scratch buffer; without packed layers, activations only."""
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    written = {node.output: index for index, node in enumerate(graph.nodes)} | {graph.input: 0}
    last_use[graph.output] = len(graph.nodes) - 1
    buffers = [
        Buffer(name, tensor.elements, written[name], last_use.get(name, written[name]))
        for name, tensor in graph.tensors.items()
    ]
    for index in range(len(graph.nodes)):
        size = scratch_bytes(graph, index, packed)
        if size:
            buffers.append(Buffer(f"scratch of {graph.nodes[index].name}", size, index, index, scratch=True))
    offsets = place(buffers)
    arena = max(offset + buffer.size for offset, buffer in zip(offsets, buffers, strict=True))
    bound = max(sum(b.size for b in buffers if b.first <= i <= b.last) for i in range(len(graph.nodes)))
    return Plan(tuple(buffers), offsets, arena + -arena % ALIGNMENT, bound)


def place(buffers: Sequence[Buffer]) -> tuple[int, ...]:
    """First fit over two orders (by size, by time alive then size); the smaller arena wins."""
    indices = range(len(buffers))
    by_size = sorted(indices, key=lambda i: (-buffers[i].size, buffers[i].first, i))
    by_life = sorted(indices, key=lambda i: (buffers[i].first - buffers[i].last, -buffers[i].size, i))
    results = [_first_fit(buffers, order) for order in (by_size, by_life)]
    return min(results, key=lambda offsets: max(offsets[i] + buffers[i].size for i in indices))


def _first_fit(buffers: Sequence[Buffer], order: Sequence[int]) -> tuple[int, ...]:
    placed: list[tuple[int, int]] = []  # (offset, index), by offset
    for index in order:
        buffer, offset = buffers[index], 0
        for other_offset, other_index in placed:
            other = buffers[other_index]
            apart = other.last < buffer.first or buffer.last < other.first
            if apart or other_offset + other.size <= offset:
                continue
            if offset + buffer.size <= other_offset:
                break
            offset = other_offset + other.size + -(other_offset + other.size) % ALIGNMENT
        bisect.insort(placed, (offset, index))
    found = {index: offset for offset, index in placed}
    return tuple(found[index] for index in range(len(buffers)))


def needed_kernels(packed: Mapping[str, Packed], graph: Graph) -> set[Kernel]:
    """What the firmware has to link."""
    kernels = {item.kernel for item in packed.values()}
    operators = {node.op for node in graph.nodes}
    if Op.ADD in operators:
        kernels.add(Kernel.ADD)
    if Op.MEAN in operators:
        kernels.add(Kernel.MEAN)
    return kernels
