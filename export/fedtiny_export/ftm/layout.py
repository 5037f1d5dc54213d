"""What operators need in the arena, and where it can lie: scratch, tensors that share bytes, placement.

A tensor may take over the bytes of one that is read for the last time by the operators that write it. Whether they
read every row before it is overwritten is found by going through the motions row by row, as the runtime does.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..graph.ir import WEIGHTED, Graph, Node, Op
from .abi import Kernel
from .runtime_ops import RUNTIME_OPS
from .sparse import Packed

ALIGNMENT = 4
# The inner loops of the runtime's convolutions: pixels, and numbers of taps, that they take at once.
BLOCK = 8
DENSE_TAPS, DEPTHWISE_TAPS = 4, 3
VECTOR_CHANNELS = 4  # of a dense layer
# what reads its input through a window
CONVOLUTIONS = frozenset({Op.CONV, Op.DEPTHWISE})
# what gives other shapes to the same bytes, and takes none of its own
VIEWS = frozenset({Op.RESHAPE})
# what makes each row from the same row of its inputs, and can be handed rows
BY_ROWS = frozenset({Op.ADD, *(op for op, row in RUNTIME_OPS.items() if row.kernel is Kernel.TABLE)})


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes needed from operator `first` to operator `last`, both included: a tensor, or an operator's scratch."""

    name: str
    size: int
    first: int
    last: int
    scratch: bool = False


def is_vector(graph: Graph, node: Node) -> bool:
    """Whether a layer has one pixel in and out: the runtime then reads the input in place."""
    if node.op is Op.DENSE:
        return True
    sides = (*graph.tensors[node.inputs[0]].image[:2], *graph.tensors[node.output].image[:2], *node.window.kernel)
    whole = node.op in CONVOLUTIONS and groups(graph, node) == 1
    return whole and set(sides) == {1} and node.window.pads[:2] == (0, 0)


def groups(graph: Graph, node: Node) -> int:
    """Into how many groups a layer divides its input channels."""
    if node.op is Op.DENSE:
        return 1
    return int(graph.tensors[node.inputs[0]].image[2] // node.constants["weight"].shape[-1])


def scratch_bytes(graph: Graph, node: Node, packed: Mapping[str, Packed], rows: int) -> int:
    """Weights of one or two output channels, then a window of padded input rows: see ft_conv.c in the runtime."""
    if node.op not in WEIGHTED or is_vector(graph, node):
        return 0
    taps, kernel = packed[node.name].max_taps, packed[node.name].kernel
    pairs = (graph.tensors[node.inputs[0]].image[2] + 1) // 2
    cells = node.window.kernel[0] * node.window.kernel[1]
    words = cells + 2 * (taps + 1)
    if kernel is Kernel.CONV_DENSE:
        words = 3 * _multiple(cells * pairs, DENSE_TAPS)
    if kernel is Kernel.DEPTHWISE:
        words = 2 * _multiple(cells, DEPTHWISE_TAPS)
    filled = (rows - 1) * node.window.stride[0] + node.window.reach[0]
    return 4 * (words + filled * pairs * plane_words(graph, node))


def plane_words(graph: Graph, node: Node) -> int:
    """Words of one channel pair of one row of a convolution's window: a run of columns for each phase of the stride."""
    _, width, _ = graph.tensors[node.output].image
    reach, stride = node.window.reach[1], node.window.stride[1]
    return sum(max(width, BLOCK) + (reach - 1 - phase) // stride for phase in range(min(stride, reach)))


def _multiple(count: int, of: int) -> int:
    return count + -count % of


def _motions(graph: Graph, chain: Sequence[Node], rows: Mapping[str, int]) -> Iterator[tuple[bool, str, int]]:
    """(written, tensor, row) in the order of the runtime's run_chain, for operators that hand rows to one another."""
    made, filled, at = [0] * len(chain), [0] * len(chain), 0
    while made[-1] < graph.tensors[chain[-1].output].image[0]:
        node, before = chain[at], made[at]
        height = graph.tensors[node.output].image[0]
        ready = made[at - 1] if at else 1 << 30
        if node.op in CONVOLUTIONS and before < height:
            count = min(rows.get(node.name, 1), height - before)
            stride, top = node.window.stride[0], before * node.window.stride[0]
            end = top + (count - 1) * stride + node.window.reach[0]
            while filled[at] < end:
                y = filled[at] - node.window.pads[0]
                if 0 <= y < graph.tensors[node.inputs[0]].image[0]:
                    if y >= ready:
                        break
                    yield False, node.inputs[0], y
                filled[at] += 1
            else:
                yield from ((True, node.output, y) for y in range(before, before + count))
                made[at] += count
                filled[at] = max(filled[at], top + count * stride)
        elif node.op in BY_ROWS or node.op is Op.MUL:
            for y in range(before, min(ready, height)):
                yield from ((False, name, y) for name in node.inputs)
                yield True, node.output, y
                made[at] += 1
        at = at - 1 if made[at] == before else min(at + 1, len(chain) - 1)


def can_take_over(graph: Graph, chain: Sequence[Node], rows: Mapping[str, int], old: str) -> bool:
    """Whether the chain's output may begin where tensor `old` does, which nothing reads later."""
    new = chain[-1].output
    if chain[-1].op is Op.MUL and graph.tensors[old].image != graph.tensors[new].image:
        return False
    if any(node.op not in CONVOLUTIONS | BY_ROWS | {Op.MUL} or is_vector(graph, node) for node in chain):
        return False
    height, *rest = graph.tensors[old].image
    pitch = rest[0] * rest[1]
    new_pitch = graph.tensors[new].image[1] * graph.tensors[new].image[2]
    steps = list(enumerate(_motions(graph, chain, rows)))
    read = {y: time for time, (written, name, y) in steps if not written and name == old}
    latest = [0] * (height + 1)
    for y in reversed(range(height)):
        latest[y] = read.get(y, 0)
    for time, (written, name, y) in steps:
        if written and name == new:
            over = range(y * new_pitch // pitch, min(height, ((y + 1) * new_pitch - 1) // pitch + 1))
            if any(latest[row] > time for row in over):
                return False
    return True


def place(groups: Sequence[tuple[Buffer, ...]]) -> tuple[int, ...]:
    """The offset of each group, whose buffers begin together: first fit over two orders; the smaller arena wins."""
    indices = range(len(groups))
    sizes = [max(buffer.size for buffer in group) for group in groups]
    starts = [min(buffer.first for buffer in group) for group in groups]
    lives = [max(buffer.last for buffer in group) - starts[i] for i, group in enumerate(groups)]
    by_size = sorted(indices, key=lambda i: (-sizes[i], starts[i], i))
    by_life = sorted(indices, key=lambda i: (-lives[i], -sizes[i], i))
    results = [_first_fit(groups, order) for order in (by_size, by_life)]
    return min(results, key=lambda offsets: max(offsets[i] + sizes[i] for i in indices))


def _first_fit(groups: Sequence[tuple[Buffer, ...]], order: Sequence[int]) -> tuple[int, ...]:
    placed: list[tuple[int, int, Buffer]] = []  # (offset, group, buffer), by offset
    found: dict[int, int] = {}
    for index in order:
        offset = 0
        while True:
            hit = [
                start + other.size
                for start, _, other in placed
                for buffer in groups[index]
                if other.first <= buffer.last
                and buffer.first <= other.last
                and start < offset + buffer.size
                and offset < start + other.size
            ]
            if not hit:
                break
            offset = _multiple(min(hit), ALIGNMENT)
        found[index] = offset
        for buffer in groups[index]:
            bisect.insort(placed, (offset, index, buffer), key=lambda item: item[:2])
    return tuple(found[index] for index in range(len(groups)))
