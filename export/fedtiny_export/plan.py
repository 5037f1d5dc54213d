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
    """Bytes needed from operator `first` to operator `last`, both included."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Offsets by buffer name, and the arena they need. Scratch of operator i is named `scratch:i`."""

    buffers: tuple[Buffer, ...]
    offsets: Mapping[str, int]
    arena_bytes: int
    lower_bound: int


def scratch_name(index: int) -> str:
    """The buffer name of an operator's scratch."""
    return f"scratch:{index}"


def scratch_bytes(graph: Graph, index: int, packed: Mapping[str, Packed]) -> int:
    """Taps of one output channel, then a ring of padded rows: see ft_conv_run in the runtime."""
    node = graph.nodes[index]
    if node.op not in (Op.CONV, Op.DENSE):
        return 0
    taps = 4 * packed[node.name].max_taps
    if node.op is Op.DENSE or not any(node.window.pads):
        return taps
    _, width, channels = graph.tensors[node.inputs[0]].image
    _, left, _, right = node.window.pads
    return taps + node.window.kernel[0] * (left + width + right) * channels


def make_plan(graph: Graph, packed: Mapping[str, Packed]) -> Plan:
    """Place every activation and scratch buffer."""
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
            buffers.append(Buffer(scratch_name(index), size, index, index))
    offsets = place(buffers)
    arena = max(offsets[buffer.name] + buffer.size for buffer in buffers)
    bound = max(sum(b.size for b in buffers if b.first <= i <= b.last) for i in range(len(graph.nodes)))
    return Plan(tuple(buffers), offsets, arena + -arena % ALIGNMENT, bound)


def place(buffers: Sequence[Buffer]) -> dict[str, int]:
    """First fit over two orders (by size, by time alive then size); the smaller arena wins."""
    by_size = sorted(buffers, key=lambda b: (-b.size, b.first, b.name))
    by_life = sorted(buffers, key=lambda b: (b.first - b.last, -b.size, b.name))
    sizes = {buffer.name: buffer.size for buffer in buffers}
    results = [_first_fit(order) for order in (by_size, by_life)]
    return min(results, key=lambda offsets: max(offsets[name] + sizes[name] for name in offsets))


def _first_fit(order: Sequence[Buffer]) -> dict[str, int]:
    placed: list[tuple[int, Buffer]] = []  # by offset
    for buffer in order:
        offset = 0
        for other_offset, other in placed:
            apart = other.last < buffer.first or buffer.last < other.first
            if apart or other_offset + other.size <= offset:
                continue
            if offset + buffer.size <= other_offset:
                break
            offset = other_offset + other.size + -(other_offset + other.size) % ALIGNMENT
        bisect.insort(placed, (offset, buffer), key=lambda item: item[0])
    return {buffer.name: offset for offset, buffer in placed}


def needed_kernels(packed: Mapping[str, Packed], graph: Graph) -> set[Kernel]:
    """What the firmware has to link."""
    kernels = {item.kernel for item in packed.values()}
    operators = {node.op for node in graph.nodes}
    if Op.ADD in operators:
        kernels.add(Kernel.ADD)
    if Op.MEAN in operators:
        kernels.add(Kernel.MEAN)
    return kernels
