"""What running a network costs: multiply-accumulates, nominal and executed, and a planned instruction count.

The instruction plan is linear in counts of the kernels' inner steps, with coefficients fitted once per CPU to
counted runs (benchmarks/code_sizes.py). It is a plan, not a measurement, and says nothing about cycles.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .abi import Kernel
from .code_sizes import CodeSizes
from .ir import WEIGHTED, Graph, Node, Op
from .sparse import Packed

FEATURES = (
    "dense4",  # multiply-accumulates of dense weights, four pixels at a time
    "dense1",  # the same, one pixel at a time
    "taps4",  # multiply-accumulates of non-zero weights, four pixels at a time
    "taps1",
    "decoded",  # non-zero weights decoded, once for every output row
    "scanned",  # bitmap words looked at, once for every output row
    "outputs",  # convolution outputs rescaled and stored
    "blocks",  # groups of up to four outputs
    "lines",  # output channels begun, once for every output row
    "copied",  # bytes copied into the ring of padded rows
    "rows",  # output rows of convolutions
    "added",  # elements of additions
    "averaged",  # elements read by means
    "operators",
)


def nominal_macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates if every weight were used at every output position."""
    if node.op not in WEIGHTED:
        return 0
    height, width, _ = graph.tensors[node.output].image
    return int(node.constants["weight"].size) * height * width


def executed_macs(graph: Graph, node: Node, kernel: Kernel) -> int:
    """Multiply-accumulates the chosen kernel performs."""
    if kernel is Kernel.CONV_DENSE or node.op not in (Op.CONV, Op.DENSE):
        return nominal_macs(graph, node)
    height, width, _ = graph.tensors[node.output].image
    return int(np.count_nonzero(node.constants["weight"])) * height * width


def _conv_features(graph: Graph, node: Node, packed: Packed) -> dict[str, int]:
    height, width, channels = graph.tensors[node.output].image
    quads, singles = width // 4, width % 4
    weight = node.constants["weight"]
    active = int(weight.size if packed.kernel is Kernel.CONV_DENSE else np.count_nonzero(weight))
    prefix = "dense" if packed.kernel is Kernel.CONV_DENSE else "taps"
    counts = {
        f"{prefix}4": active * height * quads * 4,
        f"{prefix}1": active * height * singles,
        "outputs": height * width * channels,
        "blocks": height * (quads + singles) * channels,
        "lines": height * channels,
        "rows": height,
    }
    if packed.kernel is not Kernel.CONV_DENSE:
        counts["decoded"] = active * height
    if packed.kernel is Kernel.CONV_BITMAP:
        counts["scanned"] = -(-int(weight.size) // 32) * height
    if node.op is Op.CONV and any(node.window.pads):
        _, wide, deep = graph.tensors[node.inputs[0]].image
        filled = (height - 1) * node.window.stride[0] + node.window.kernel[0]
        counts["copied"] = filled * (wide + node.window.pads[1] + node.window.pads[3]) * deep
    return counts


def features(graph: Graph, packed: Mapping[str, Packed]) -> dict[str, int]:
    """Count the inner steps of one inference."""
    total = dict.fromkeys(FEATURES, 0)
    for node in graph.nodes:
        total["operators"] += 1
        if node.op in (Op.CONV, Op.DENSE):
            for name, count in _conv_features(graph, node, packed[node.name]).items():
                total[name] += count
        elif node.op is Op.ADD:
            total["added"] += graph.tensors[node.output].elements
        else:
            total["averaged"] += graph.tensors[node.inputs[0]].elements
    return total


def planned_instructions(graph: Graph, packed: Mapping[str, Packed], sizes: CodeSizes | None) -> int | None:
    """Instructions of one inference, or None where no coefficients are known for the CPU."""
    if sizes is None or not sizes.instructions:
        return None
    counts = features(graph, packed)
    return round(sum(sizes.instructions.get(name, 0.0) * count for name, count in counts.items()))
