"""When a model does not fit: by how much, where, and the cheapest ways out, each one computed.

A way out is only named if planning it again says that it helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..ftm import sparse
from ..ftm.abi import Kernel
from ..ftm.code_sizes import load_code_sizes
from ..ftm.file import Ftm, encodings, kernels_for, lay_out
from ..ftm.plan import Plan
from ..graph.ir import WEIGHTED, Graph
from .devices import Device

if TYPE_CHECKING:
    from .budget import Figure

Planner = Callable[[Ftm], Iterable["Figure"]]
SEARCH_STEPS = 12  # of a bisection: the share of weights that is kept is found to a fraction of a thousandth


def overs(device: Device, figures: Iterable[Figure]) -> list[str]:
    """A line for every figure that misses its limit: by how many bytes, in which region."""
    return [
        f"{figure.name} needs {figure.value:,} bytes; {figure.region} of {device.id} has {figure.limit:,}: "
        f"{figure.over:,} bytes too many"
        for figure in figures
        if figure.over
    ]


def ways_out(device: Device, figures: Sequence[Figure], ftm: Ftm, plan: Planner) -> Iterator[str]:
    """What would make it fit on this board, or bring it nearer; `plan` gives the figures of another layout."""
    flash_over = max((f.over for f in figures if f.name.startswith("flash.")), default=0)
    ram_over = max((f.over for f in figures if f.name.startswith("ram.")), default=0)
    if flash_over or ram_over:
        yield from _encoding_advice(device, ftm, plan, flash_over + ram_over)
    if flash_over:
        yield _density_advice(ftm, flash_over)
    if ram_over:
        yield from _placement_advice(device, ftm.plan.arena_bytes)
        yield _peak_advice(ftm.plan.graph, ftm.plan)


def forced(graph: Graph, kernel: Kernel) -> tuple[Kernel, ...]:
    """One encoding for every layer that has a kernel for it; the smallest it can have for the others."""
    layers = [node for node in graph.nodes if node.op in WEIGHTED]
    every = [kernels_for(graph, node) for node in layers]
    dense = {Kernel.DEPTHWISE}  # kernels that read every weight of a layer, if they can, in place of this one
    if all(Kernel.VECTOR in able for able in every):
        dense.add(Kernel.VECTOR)
    found = []
    for node, able in zip(layers, every, strict=True):
        costs = sparse.sizes(np.asarray(node.constants["weight"], np.int8))
        instead = dense.intersection(able) if kernel is Kernel.CONV_DENSE else ()
        wanted = next(iter(instead), kernel)
        found.append(wanted if wanted in able else min(able, key=lambda other: costs[other]))
    return tuple(found)


def _encoding_advice(device: Device, ftm: Ftm, plan: Planner, over: int) -> Iterator[str]:
    """The smallest encodings, or the one for all layers, that leave the fewest bytes too many, if fewer than now."""
    graph, sizes = ftm.plan.graph, load_code_sizes(device.cpu)
    ways = {"--optimize size": encodings(graph, sizes.kernel_bytes() if sizes else {})}
    ways |= {
        f"--encoding {kernel.name.removeprefix('CONV_').lower()}": forced(graph, kernel) for kernel in sparse.CONVS
    }
    best, name, saved = over, "", ""
    for way, kernels in ways.items():
        other = list(plan(lay_out(graph, kernels)))
        groups = [max((f.over for f in other if f.name.startswith(group)), default=0) for group in ("flash.", "ram.")]
        if sum(groups) < best:
            best, name = sum(groups), way
            saved = "fits" if best == 0 else f"leaves {groups[0]:,} bytes too many in flash and {groups[1]:,} in RAM"
    if name:
        yield f"another encoding: {name} {saved}"


def _density_advice(ftm: Ftm, over: int) -> str:
    """Of the int8 weights the largest are kept, as many as fit; streams are packed to see how many bytes they take."""
    layers = [node for node in ftm.plan.graph.nodes if node.op in WEIGHTED]
    able = [kernels_for(ftm.plan.graph, node) for node in layers]
    weights = [np.asarray(node.constants["weight"], np.int8) for node in layers]
    streams = sum(len(packed.data) for packed in ftm.packed.values())
    least = _stream_bytes([np.zeros_like(weight) for weight in weights], able)
    if streams - over < least:
        return f"pruning alone cannot save {over:,} bytes, all weights take {streams:,}: use a narrower network"
    kept = np.sort(np.abs(np.concatenate([weight.ravel() for weight in weights]).astype(np.int16)))[::-1]
    total, low, high = kept.size, 0, int(np.count_nonzero(kept))
    for _ in range(SEARCH_STEPS):
        middle = (low + high + 1) // 2
        threshold = kept[middle - 1] if middle else 128
        thinner = [np.where(np.abs(w.astype(np.int16)) >= threshold, w, 0).astype(np.int8) for w in weights]
        fits = _stream_bytes(thinner, able) <= streams - over
        low, high = (middle, high) if fits else (low, middle - 1)
        if low >= high:
            break
    return (
        f"pruning: weights have to shrink from {streams:,} to {streams - over:,} bytes, as about {low:,} of {total:,} "
        f"take: train with --density {max(low / total, 0.0005):.3f}, or let fedtiny-train --target choose"
    )


def _stream_bytes(weights: Sequence[NDArray[np.int8]], able: Sequence[Sequence[Kernel]]) -> int:
    def smallest(weight: NDArray[np.int8], kernels: Sequence[Kernel]) -> int:
        sizes = sparse.sizes(weight)
        return min(sizes[kernel] for kernel in kernels if kernel in sizes)

    return sum(smallest(weight, kernels) for weight, kernels in zip(weights, able, strict=True))


def _placement_advice(device: Device, arena: int) -> Iterator[str]:
    """Regions of RAM that the arena would fit, where nothing is linked: PSRAM, or what the heap has."""
    home = device.region_for("arena")
    for region in device.memory:
        if region.kind == "ram" and not region.holds and region is not home and region.size >= arena:
            note = f" ({region.note})" if region.note else ""
            yield f"another place: the arena's {arena:,} bytes fit {region.name}, {region.size:,} bytes{note}"


def _peak_advice(graph: Graph, plan: Plan) -> str:
    peak = max(range(len(graph.nodes)), key=lambda index: _in_use(plan, index))
    held = [buffer for buffer in plan.buffers if buffer.first <= peak <= buffer.last]
    names = ", ".join(f"{buffer.name} {buffer.size:,}" for buffer in held)
    said = f"the arena peaks at operator {graph.nodes[peak].name} with {_in_use(plan, peak):,} bytes in use ({names})"
    return f"{said}: a smaller input or fewer channels there would help"


def _in_use(plan: Plan, index: int) -> int:
    """Bytes of the arena that some buffer holds while an operator runs; buffers may share bytes."""
    total = end = 0
    placed = zip(plan.buffers, plan.offsets, strict=True)
    for start, size in sorted((at, b.size) for b, at in placed if b.first <= index <= b.last):
        total += max(0, start + size - max(start, end))
        end = max(end, start + size)
    return total
