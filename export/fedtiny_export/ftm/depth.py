"""The ways that a network takes through the kernels' code: how deep its stack gets depends on them, not on its size.

A way is a kernel's name, or for convolutions the name and what of its code runs: nothing more where blocks of outputs
are made at once, `.slow` where some are rescaled one by one, `.vector` where there is one pixel only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..graph.ir import WEIGHTED, Node
from .abi import Kernel
from .cost import quick_shifts
from .file import Ftm, folded_bias
from .layout import BLOCK, groups, is_vector
from .plan import Plan

DENSE_BLOCK = 4  # pixels that the kernels with every weight make at once
MOST_WEIGHTS = 1 << 16  # of a channel that is quick


def ways(ftm: Ftm) -> frozenset[str]:
    """Every way that a model takes."""
    nodes = [node for node in ftm.plan.graph.nodes if node.op in WEIGHTED]
    weighted = {ftm.packed[node.name].kernel for node in nodes}
    plain = {kernel.name.lower() for kernel in ftm.kernels if kernel not in weighted}
    return frozenset(plain.union(*(_conv_ways(ftm.plan, node, ftm.packed[node.name].kernel) for node in nodes)))


def _conv_ways(plan: Plan, node: Node, kernel: Kernel) -> set[str]:
    name = kernel.name.lower()
    if kernel is Kernel.VECTOR:
        return {name}
    if is_vector(plan.graph, node):
        return {f"{name}.vector"}
    _, width, channels = plan.graph.tensors[node.output].image
    quick = quick_channels(plan, node)
    if kernel in (Kernel.CONV_DENSE, Kernel.DEPTHWISE):
        alone = channels > plan.graph.tensors[node.inputs[0]].image[2] and kernel is Kernel.DEPTHWISE
        slow = alone or channels % 2 == 1 or width < DENSE_BLOCK or not quick.all()
    else:
        used = np.any(node.constants["weight"].reshape(channels, -1) != 0, axis=1)
        slow = width < BLOCK or not quick[used].all()
    return {name, f"{name}.slow"} if slow else {name}


def quick_channels(plan: Plan, node: Node) -> NDArray[np.bool_]:
    """Output channels of which the runtime makes blocks at once: ft_conv_begin in C."""
    fan = plan.graph.tensors[node.inputs[0]].image[2] // groups(plan.graph, node)
    weights = node.window.kernel[0] * node.window.kernel[1] * fan
    most = (1 << 30) - weights * (1 << 14) if weights < MOST_WEIGHTS else 0
    near = np.abs(folded_bias(plan.graph, node)) < most
    return np.asarray(quick_shifts(plan.graph, node) & near)
