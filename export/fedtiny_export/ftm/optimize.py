"""Encodings for speed: which layers take a faster one, and how much flash that may cost.

What a layer costs in another encoding is the instruction plan's figure (`cost.py`). Coefficients were fitted on one
processor; for others they only say which encoding is the faster one, which is a matter of steps, not of processors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ..graph.ir import WEIGHTED, Graph, Node
from . import sparse
from .abi import Kernel
from .code_sizes import load_code_sizes
from .cost import layer_instructions
from .file import Ftm, kernels_for, lay_out
from .plan import Plan

FITTED_CPU = "cortex-m4"
BALANCED_GROWTH = 0.1  # of the smallest model and its kernels
LEAST_DENSITY = 0.01


class Aim(StrEnum):
    """What an export is to be good at."""

    SIZE = "size"
    BALANCED = "balanced"
    SPEED = "speed"


@dataclass(frozen=True, slots=True)
class Swap:
    """A layer in a faster encoding than its smallest: instructions saved, bytes of weights it takes more."""

    layer: int
    kernel: Kernel
    saved: float
    grown: int


def faster(graph: Graph, smallest: Ftm, code_bytes: sparse.Code, aim: Aim, room: int) -> Ftm:
    """The model with the layers in faster encodings that save most for their bytes, within the room there is in flash.

    Balanced takes a tenth more than the smallest at most.
    """
    nodes = [node for node in graph.nodes if node.op in WEIGHTED]
    chosen = [smallest.packed[node.name].kernel for node in nodes]
    if aim is Aim.BALANCED:
        whole = len(smallest.data) + sparse.linked_bytes(code_bytes, set(chosen))
        room = min(room, round(BALANCED_GROWTH * whole))
    kept, linked = list(chosen), sparse.linked_bytes(code_bytes, set(chosen))
    grown = 0
    for swap in sorted(_swaps(smallest, nodes), key=lambda one: (-one.saved / max(1, one.grown), one.layer)):
        tried = [*kept[: swap.layer], swap.kernel, *kept[swap.layer + 1 :]]
        code = sparse.linked_bytes(code_bytes, set(tried)) - linked
        if grown + swap.grown + code <= room:
            kept, grown = tried, grown + swap.grown
    return smallest if kept == chosen else lay_out(graph, kept)


def _swaps(ftm: Ftm, nodes: Sequence[Node]) -> Iterable[Swap]:
    for index, node in enumerate(nodes):
        weight, now = np.asarray(node.constants["weight"], np.int8), ftm.packed[node.name].kernel
        sizes = sparse.sizes(weight)
        planned = instructions_by_kernel(ftm.plan, node)
        best = min(planned, key=lambda kernel: (planned[kernel], sizes[kernel], kernel))
        if planned[best] < planned[now]:
            yield Swap(index, best, planned[now] - planned[best], sizes[best] - sizes[now])


def instructions_by_kernel(plan: Plan, node: Node) -> Mapping[Kernel, float]:
    """What a layer costs with each kernel that can read it."""
    fitted = load_code_sizes(FITTED_CPU)
    assert fitted is not None
    node = _as_planned(plan, node)
    return {kernel: layer_instructions(plan, node, kernel, fitted) for kernel in kernels_for(plan.graph, node)}


def _as_planned(plan: Plan, node: Node) -> Node:
    """The layer as the plan has it: it may see its input in another shape."""
    return next(one for one in plan.graph.nodes if one.name == node.name)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Densities below which a layer pruned at random takes fewer bytes, and fewer instructions, than a dense one."""

    size: float
    speed: float


def break_even(plan: Plan, node: Node) -> BreakEven | None:
    """Where pruning a layer begins to pay; None where it has no dense encoding to compare with."""
    node = _as_planned(plan, node)
    able = kernels_for(plan.graph, node)
    dense = Kernel.CONV_DENSE if Kernel.CONV_DENSE in able else Kernel.DEPTHWISE
    if dense not in able:
        return None
    return BreakEven(_size_break_even(int(node.constants["weight"].size)), _speed_break_even(plan, node, dense))


def _size_break_even(count: int) -> float:
    """The density at which the smallest sparse encoding of random positions takes a byte for each weight."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_bytes(count, middle) < count else (low, middle)
    return low


def expected_bytes(count: int, density: float) -> float:
    """Bytes of `count` weights pruned at random to a density, in the smallest sparse encoding."""
    gone, kept = 1.0 - density, count * density
    bitmap = count / 8 + kept
    # a value, and its gap: a one, the low bits, and as many zeros as the mean of what they leave of a geometric gap
    tails = [gone ** (1 << low) for low in range(sparse.MAX_LOW_BITS + 1)]
    rice = min((9 + low + tail / (1 - tail) for low, tail in enumerate(tails) if tail < 1), default=0.0)
    return min(bitmap, kept * rice / 8)


def _speed_break_even(plan: Plan, node: Node, dense: Kernel) -> float:
    """The density at which a sparse layer costs as much as the dense one, from the plan at three densities.

    The plan is linear in the weights that live and in the pairs of channels in which one does, so quadratic in the
    density.
    """
    fitted = load_code_sizes(FITTED_CPU)
    assert fitted is not None
    whole = layer_instructions(plan, node, dense, fitted)
    at = (LEAST_DENSITY, 0.5, 1.0)
    random = np.random.default_rng(0).random(node.constants["weight"].shape)
    found = [layer_instructions(plan, node, Kernel.CONV_RICE, fitted, random < density) for density in at]
    crossings = np.roots(np.polyfit(at, found, 2) - [0.0, 0.0, whole])
    beyond = [float(root.real) for root in crossings if abs(root.imag) < 1e-9 and root.real > LEAST_DENSITY]
    return min([1.0, *beyond]) if found[0] < whole else 0.0
