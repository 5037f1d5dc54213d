"""The arena: in which order operators run, which hand rows to one another, and where everything lies.

Starting from the graph's own order, changes are kept that make the arena smaller: an operator moved forward, or
neighbours that exchange rows instead of a whole tensor. What is then left of the arena lets convolutions make
several rows at a time, which saves instructions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..graph.flat import can_lie_flat, laid_flat
from ..graph.ir import Graph, Node
from .abi import MAX_CHAIN, Kernel
from .layout import ALIGNMENT, BY_ROWS, CONVOLUTIONS, VIEWS, Buffer, can_take_over, is_vector, place, scratch_bytes
from .runtime_ops import RUNTIME_OPS
from .sparse import Packed

SCRATCH = "scratch of "  # what the name of an operator's scratch begins with


@dataclass(frozen=True, slots=True)
class Plan:
    """Every buffer with its offset in the arena; `lower_bound` is what the widest operator needs in any placement.

    `graph` has the operators in the order in which they run. `rows` says of each convolution how many output rows it
    makes at a time; those of the operators in `streamed` go to the next operator at once.
    """

    graph: Graph
    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int
    rows: Mapping[str, int]
    streamed: frozenset[str]

    def tensor_offsets(self) -> dict[str, int]:
        """Where each tensor lies."""
        return {b.name: offset for b, offset in zip(self.buffers, self.offsets, strict=True) if not b.scratch}

    def scratch_offsets(self) -> dict[str, int]:
        """Where the scratch of each operator that has one lies, by the operator's name."""
        found = zip(self.buffers, self.offsets, strict=True)
        return {b.name.removeprefix(SCRATCH): offset for b, offset in found if b.scratch}

    def held_rows(self) -> dict[str, int]:
        """How many rows of a tensor are in the arena, where that is not all of them."""
        return {node.output: self.rows.get(node.name, 1) for node in self.graph.nodes if node.name in self.streamed}


def make_plan(graph: Graph, packed: Mapping[str, Packed]) -> Plan:
    """Order, chains and places of everything, and rows at a time."""
    best, before = _lay_out(graph, packed, frozenset(), {}), 0
    while before != best.arena_bytes:
        before = best.arena_bytes
        for order, streamed in (*_chains(best), *_orders(best)):
            found = _lay_out(order, packed, streamed, {})
            if found.arena_bytes < best.arena_bytes:
                best = found
                break
    return _more_rows(best, packed)


def _lay_out(graph: Graph, packed: Mapping[str, Packed], streamed: frozenset[str], rows: Mapping[str, int]) -> Plan:
    chains = list(_split(graph.nodes, streamed))
    return _placed(graph, _groups(graph, packed, chains, rows), rows, streamed)


def activation_plan(graph: Graph, held: Mapping[str, int]) -> Plan:
    """Place every tensor, for a runtime that makes whole ones in the graph's order and shares no bytes.

    `held` says how many bytes operators need beside them while they run.
    """
    written = {node.output: index for index, node in enumerate(graph.nodes)} | {graph.input: 0}
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last[graph.output] = len(graph.nodes) - 1
    tensors: list[tuple[Buffer, ...]] = [(_tensor(graph, name, written, last),) for name in graph.tensors]
    scratch: list[tuple[Buffer, ...]] = [
        (Buffer(SCRATCH + node.name, held[node.name], index, index, True),)
        for index, node in enumerate(graph.nodes)
        if node.name in held
    ]
    return _placed(graph, tensors + scratch, {}, frozenset())


def _placed(graph: Graph, groups: list[tuple[Buffer, ...]], rows: Mapping[str, int], streamed: frozenset[str]) -> Plan:
    offsets = place(groups)
    flat = tuple(buffer for group in groups for buffer in group)
    where = tuple(offset for group, offset in zip(groups, offsets, strict=True) for _ in group)
    arena = max(offset + buffer.size for offset, buffer in zip(where, flat, strict=True))
    bound = max(
        sum(max((b.size for b in group if b.first <= i <= b.last), default=0) for group in groups)
        for i in range(len(graph.nodes))
    )
    return Plan(graph, flat, where, arena + -arena % ALIGNMENT, bound, rows, streamed)


def _split(nodes: Sequence[Node], streamed: frozenset[str]) -> Iterator[tuple[int, tuple[Node, ...]]]:
    """Every chain with the index of its first operator; most are single operators."""
    start = 0
    for index, node in enumerate(nodes):
        if node.name not in streamed:
            yield start, tuple(nodes[start : index + 1])
            start = index + 1


def _groups(
    graph: Graph, packed: Mapping[str, Packed], chains: Sequence[tuple[int, tuple[Node, ...]]], rows: Mapping[str, int]
) -> list[tuple[Buffer, ...]]:
    """Buffers that have to begin together: a tensor with those that take over its bytes."""
    span = {node.name: (start, start + len(chain) - 1) for start, chain in chains for node in chain}
    written = {node.output: span[node.name][0] for node in graph.nodes} | {graph.input: 0}
    last = _last_uses(graph, span)
    groups: dict[str, list[Buffer]] = {graph.input: [_tensor(graph, graph.input, written, last)]}
    home = {graph.input: graph.input}
    scratch = []
    for _, chain in chains:
        for index, node in enumerate(chain):
            size = scratch_bytes(graph, node, packed, rows.get(node.name, 1))
            if size:
                # while a chain runs, the scratch of all its operators is in use
                scratch.append(Buffer(SCRATCH + node.name, size, *span[node.name], True))
            held = rows.get(node.name, 1) if index + 1 < len(chain) else None
            old = None if held else _taken_over(graph, chain, rows, span, last)
            if node.op in VIEWS:
                old = node.inputs[0]
            home[node.output] = home[old] if old else node.output
            groups.setdefault(home[node.output], []).append(_tensor(graph, node.output, written, last, held))
    return [tuple(group) for group in groups.values()] + [(buffer,) for buffer in scratch]


def _last_uses(graph: Graph, span: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The last operator that needs each tensor's bytes; views of the same bytes need them together."""
    last = {name: span[node.name][1] for node in graph.nodes for name in node.inputs}
    last[graph.output] = len(graph.nodes)  # past the last: the caller reads it
    views = [(node.inputs[0], node.output) for node in graph.nodes if node.op in VIEWS]
    for source, view in reversed(views):
        last[source] = max(last[source], last.get(view, 0))
    for source, view in views:
        last[view] = last[source]
    return last


def _tensor(
    graph: Graph, name: str, written: Mapping[str, int], last: Mapping[str, int], held: int | None = None
) -> Buffer:
    height, width, channels = graph.tensors[name].image
    return Buffer(name, (held or height) * width * channels, written[name], last.get(name, written[name]))


def _taken_over(
    graph: Graph,
    chain: Sequence[Node],
    rows: Mapping[str, int],
    span: Mapping[str, tuple[int, int]],
    last: Mapping[str, int],
) -> str | None:
    """A tensor that ends with this chain and whose bytes its output can take."""
    inside = {node.output for node in chain}
    for name in dict.fromkeys(name for node in chain for name in node.inputs):
        ends = last[name] == span[chain[-1].name][1]
        if name not in inside and ends and can_take_over(graph, chain, rows, name):
            return name
    return None


def _chains(plan: Plan) -> Iterator[tuple[Graph, frozenset[str]]]:
    """The same order with three or two more neighbours in a chain."""
    nodes = plan.graph.nodes
    for count in range(MAX_CHAIN, 1, -1):
        for start in range(len(nodes) - count + 1):
            run = nodes[start : start + count]
            names = {node.name for node in run}
            before = nodes[start - 1].name if start else ""
            if before in plan.streamed or names & plan.streamed:
                continue
            if all(_hands_over(plan.graph, a, b) for a, b in itertools.pairwise(run)):
                yield plan.graph, plan.streamed | (names - {run[-1].name})


def _hands_over(graph: Graph, node: Node, reader: Node) -> bool:
    """Whether rows of `node` can go to `reader`, the next operator, and nowhere else."""
    if node.op not in CONVOLUTIONS or is_vector(graph, node) or node.output == graph.output:
        return False
    if reader.op not in CONVOLUTIONS | BY_ROWS or is_vector(graph, reader):
        return False
    return [other.name for other in graph.readers(node.output)] == [reader.name]


def _orders(plan: Plan) -> Iterator[tuple[Graph, frozenset[str]]]:
    """The order with one operator moved as far forward as what it reads allows."""
    nodes = plan.graph.nodes
    place_of = {node.output: index for index, node in enumerate(nodes)}
    for index, node in enumerate(nodes):
        earliest = 1 + max(place_of.get(name, -1) for name in node.inputs)
        while earliest and earliest < index and nodes[earliest - 1].name in plan.streamed:
            earliest += 1
        if earliest >= index or node.name in plan.streamed or nodes[index - 1].name in plan.streamed:
            continue
        moved = (*nodes[:earliest], node, *nodes[earliest:index], *nodes[index + 1 :])
        yield replace(plan.graph, nodes=moved), plan.streamed


def _more_rows(plan: Plan, packed: Mapping[str, Packed]) -> Plan:
    """Let convolutions make as many rows at a time as this arena allows, those with most weights first."""
    layers = [node for node in plan.graph.nodes if node.op in CONVOLUTIONS and not is_vector(plan.graph, node)]
    for node in sorted(layers, key=lambda node: -node.constants["weight"].size):
        flat = _laid_flat(plan, packed, node)
        if flat is not None:
            plan = flat
            continue
        count = plan.graph.tensors[node.output].image[0]
        while count > 1:
            found = _lay_out(plan.graph, packed, plan.streamed, {**plan.rows, node.name: count})
            if found.arena_bytes <= plan.arena_bytes:
                plan = found
                break
            count = (count + 1) // 2
    return plan


def _laid_flat(plan: Plan, packed: Mapping[str, Packed], node: Node) -> Plan | None:
    """As many rows of a 1x1 convolution as one as this arena allows, if it is in no chain."""
    nodes = plan.graph.nodes
    neighbours = {node.name, nodes[nodes.index(node) - 1].name if nodes.index(node) else node.name}
    if not can_lie_flat(plan.graph, node) or neighbours & plan.streamed:
        return None
    height = plan.graph.tensors[node.output].image[0]
    for count in range(height, 1, -1):
        if height % count == 0:
            found = _lay_out(laid_flat(plan.graph, node, count), packed, plan.streamed, plan.rows)
            if found.arena_bytes <= plan.arena_bytes:
                return found
    return None


def needed_kernels(packed: Mapping[str, Packed], graph: Graph) -> set[Kernel]:
    """What the firmware has to link."""
    return {
        packed[node.name].kernel if node.name in packed else RUNTIME_OPS[node.op].kernel
        for node in graph.nodes
        if node.op not in VIEWS
    }
