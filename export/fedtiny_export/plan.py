"""Where each activation and scratch buffer lies in the arena.

Buffers that are alive at the same time never overlap. Offsets come from first-fit placement, largest first; the
peak over operators is the lower bound, and the report says when the plan is above it.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .abi import Kernel
from .ir import Graph, Node, Op
from .sparse import Packed

ALIGNMENT = 4
# The inner loops of the runtime's convolutions: pixels, and numbers of taps, that they take at once.
BLOCK = 8
DENSE_TAPS, SPARSE_TAPS = 4, 2


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
    """Every buffer with its offset in the arena; `lower_bound` is what the widest operator needs in any plan.

    `rows` says of each convolution how many output rows it makes at a time.
    """

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int
    rows: Mapping[str, int]

    def tensor_offsets(self) -> dict[str, int]:
        """Where each tensor lies."""
        return {b.name: offset for b, offset in zip(self.buffers, self.offsets, strict=True) if not b.scratch}

    def scratch_offsets(self) -> dict[int, int]:
        """Where the scratch of each operator that has one lies."""
        return {b.first: offset for b, offset in zip(self.buffers, self.offsets, strict=True) if b.scratch}


def scratch_bytes(graph: Graph, index: int, packed: Mapping[str, Packed], rows: int = 1) -> int:
    """Weights of one or two output channels, then a window of padded input rows: see ft_conv.c in the runtime."""
    node = graph.nodes[index]
    if node.op not in (Op.CONV, Op.DENSE):
        return 0
    taps, kernel = packed[node.name].max_taps, packed[node.name].kernel
    if node.op is Op.DENSE:
        return 4 * taps
    window, image = node.window, graph.tensors[node.inputs[0]].image
    pairs = (image[2] + 1) // 2
    words = 3 * _multiple(window.kernel[0] * window.kernel[1] * pairs, DENSE_TAPS)
    if kernel is not Kernel.CONV_DENSE:
        words = 2 * _multiple(taps, SPARSE_TAPS)
    filled = (rows - 1) * window.stride[0] + window.kernel[0]
    return 4 * (words + filled * pairs * plane_words(graph, node))


def plane_words(graph: Graph, node: Node) -> int:
    """Words of one channel pair of one row of a convolution's window: a run of columns for each phase of the stride."""
    _, width, _ = graph.tensors[node.output].image
    kernel, stride = node.window.kernel[1], node.window.stride[1]
    return sum(max(width, BLOCK) + (kernel - 1 - phase) // stride for phase in range(min(stride, kernel)))


def _multiple(count: int, of: int) -> int:
    return count + -count % of


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
            buffers.append(Buffer(f"scratch of {graph.nodes[index].name}", size, index, index, scratch=True))
    offsets = place(buffers)
    arena = max(offset + buffer.size for offset, buffer in zip(offsets, buffers, strict=True))
    bound = max(sum(b.size for b in buffers if b.first <= i <= b.last) for i in range(len(graph.nodes)))
    return Plan(tuple(buffers), offsets, arena + -arena % ALIGNMENT, bound, {})


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
