"""What running a network costs: multiply-accumulates, nominal and executed, and a planned instruction count.

The instruction plan is linear in counts of the kernels' inner steps, with coefficients fitted once per CPU to
counted runs (benchmarks/code_sizes.py). It is a plan, not a measurement, and says nothing about cycles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..graph.fixed_point import activation_limits, add_numbers, conv_multipliers
from ..graph.ir import WEIGHTED, Graph, Node, Op
from .abi import Kernel
from .code_sizes import CodeSizes
from .layout import BLOCK, DENSE_TAPS, DEPTHWISE_TAPS, VECTOR_CHANNELS, VIEWS, groups, is_vector, plane_words
from .plan import Plan
from .sparse import Packed

FEATURES = (
    "dense_taps",  # pairs of input channels times two output channels and four pixels
    "dense_blocks",  # two output channels of four pixels
    "depthwise_taps",  # two channels of four pixels
    "depthwise_blocks",
    "prepared",  # dense weights widened, once for every pass over output rows
    "sparse_taps",  # pairs of input channels, one of them not zero, times eight pixels
    "sparse_blocks",  # one output channel of eight pixels
    "decoded",  # non-zero weights decoded, once for every pass
    "tapped",  # those of them that became steps through a window
    "rice_decoded",  # those of them that are Rice-coded
    "scanned",  # bitmap words looked at, once for every pass
    "cells",  # kernel cells gone over by a sparse channel, once for every pass
    "constant",  # outputs of channels without weights
    "rescaled",  # outputs rescaled in general: clamped to less than int8, or few
    "vector_words",  # dense layers: four output channels times four inputs
    "vector_tails",  # the same times an input, where those are no multiple of four
    "vector_blocks",  # four output channels
    "vector_channels",  # those of them that are quick
    "vector_dense",  # multiply-accumulates of dense layers where the convolutions' kernel makes them
    "vector_sparse",  # non-zero weights of dense layers, decoded and multiplied
    "vector_lines",  # output channels of either of these two
    "lines",  # output channels begun, once for every pass
    "line_rows",  # output channels times output rows
    "widened4",  # inputs widened into the window, four channels at a time
    "widened1",  # the same, two at a time
    "planes",  # planes of the window begun
    "padding",  # words of padding
    "moved",  # words moved down within the window
    "passes",
    "added",
    "added_in_general",
    "averaged",  # elements read by means
    "pooled",  # pixels times channels that pools look at
    "pooled_outputs",
    "softmaxed",
    "looked_up",  # in tables
    "multiplied",
    "placed",  # bytes filled and copied
    "placed_pieces",  # copies
    "resized",
    "resized_pixels",
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
    if kernel in (Kernel.CONV_DENSE, Kernel.DEPTHWISE, Kernel.VECTOR) or node.op not in WEIGHTED:
        return nominal_macs(graph, node)
    height, width, _ = graph.tensors[node.output].image
    return int(np.count_nonzero(node.constants["weight"])) * height * width


def _conv_features(plan: Plan, node: Node, kernel: Kernel) -> dict[str, int]:
    graph = plan.graph
    height, width, channels = graph.tensors[node.output].image
    flat = node.constants["weight"].reshape(channels, -1)
    nonzero = int(np.count_nonzero(flat))
    if is_vector(graph, node):
        return _vector_features(graph, node, kernel)
    rows = plan.rows.get(node.name, 1)
    passes = -(-height // rows)
    counts = {"passes": passes, "lines": channels * passes, "line_rows": channels * height}
    counts |= _window_features(graph, node, rows, passes)
    quick = quick_shifts(graph, node)
    if kernel is Kernel.DEPTHWISE:
        return counts | _depthwise_features(graph, node, quick, passes)
    pairs = _pairs(graph, node)
    if kernel is Kernel.CONV_DENSE:
        blocks = -(-channels // 2) * height * -(-width // 4)
        whole = quick.all() and channels % 2 == 0 and width >= 4
        taps = pairs.shape[1] + -pairs.shape[1] % DENSE_TAPS
        counts |= {"dense_taps": taps * blocks, "dense_blocks": blocks, "prepared": int(flat.size) * passes}
        return counts | {"rescaled": 0 if whole else height * width * channels}
    taps_of = np.count_nonzero(pairs, axis=1)
    used, blocks = taps_of > 0, height * -(-width // BLOCK)
    slow = used & ~(quick & (width >= BLOCK))
    counts["sparse_taps"] = int(taps_of.sum()) * blocks
    counts["sparse_blocks"] = int(used.sum()) * blocks
    counts["constant"] = int((~used).sum()) * height * width
    counts["rescaled"] = int(slow.sum()) * height * width
    cells = np.flatnonzero(np.any(node.constants["weight"] != 0, axis=(0, 3)))
    counts["tapped"] = nonzero * passes
    counts["cells"] = int(used.sum()) * passes * (int(cells.max()) if cells.size else 0)
    return counts | _decoding(kernel, int(flat.size), nonzero, passes)


def _vector_features(graph: Graph, node: Node, kernel: Kernel) -> dict[str, int]:
    channels, count = node.constants["weight"].shape[0], node.constants["weight"][0].size
    slow = int((~quick_shifts(graph, node)).sum())
    if kernel is Kernel.VECTOR:
        blocks = -(-channels // VECTOR_CHANNELS)
        counts = {"vector_words": blocks * (count // 4), "vector_tails": blocks * (count % 4), "vector_blocks": blocks}
        return counts | {"vector_channels": channels - slow, "vector_lines": slow, "rescaled": slow, "passes": 1}
    counts = {"passes": 1, "vector_lines": channels, "rescaled": slow}
    if kernel is Kernel.CONV_DENSE:
        return counts | {"vector_dense": channels * count}
    nonzero = int(np.count_nonzero(node.constants["weight"]))
    return counts | {"vector_sparse": nonzero} | _decoding(kernel, channels * count, nonzero, 1)


def _decoding(kernel: Kernel, weights: int, nonzero: int, passes: int) -> dict[str, int]:
    counts = {"decoded": nonzero * passes}
    if kernel is Kernel.CONV_RICE:
        counts["rice_decoded"] = nonzero * passes
    if kernel is Kernel.CONV_BITMAP:
        counts["scanned"] = -(-weights // 32) * passes
    return counts


def _depthwise_features(graph: Graph, node: Node, quick: NDArray[np.bool_], passes: int) -> dict[str, int]:
    height, width, channels = graph.tensors[node.output].image
    several = channels > graph.tensors[node.inputs[0]].image[2]
    units = channels if several else -(-channels // 2)
    slow = several or not quick.all() or channels % 2 or width < 4
    cells, blocks = node.window.kernel[0] * node.window.kernel[1], units * height * -(-width // 4)
    return {
        "depthwise_taps": (cells + -cells % DEPTHWISE_TAPS) * blocks,
        "depthwise_blocks": blocks,
        "prepared": int(node.constants["weight"].size) * passes,
        "rescaled": height * width * channels if slow else 0,
    }


def _pairs(graph: Graph, node: Node) -> NDArray[np.bool_]:
    """Which pairs of neighbouring input channels have a weight, for every output channel."""
    weight = node.constants["weight"] != 0
    if weight.shape[-1] % 2 and groups(graph, node) == 1:
        weight = np.concatenate([weight, np.zeros((*weight.shape[:-1], 1), bool)], axis=-1)
    if weight.shape[-1] % 2:
        return np.asarray(weight.reshape(weight.shape[0], -1))
    return np.asarray(weight.reshape(weight.shape[0], -1, 2).any(axis=-1))


def quick_shifts(graph: Graph, node: Node) -> NDArray[np.bool_]:
    """Output channels that one multiply-add rescales, as far as factor and limits say: see ft_quick in the runtime."""
    _, shifts = conv_multipliers(node, graph.tensors)
    full = activation_limits(node, graph.tensors[node.output]) == (-128, 127)
    return np.asarray((shifts <= -1) & (shifts >= -22) & full)


def _window_features(graph: Graph, node: Node, rows: int, passes: int) -> dict[str, int]:
    """What filling the window takes, and moving its rows."""
    tall, wide, deep = graph.tensors[node.inputs[0]].image
    height = graph.tensors[node.output].image[0]
    reach, stride = node.window.reach[0], node.window.stride[0]
    filled = (height - 1) * stride + reach if reach > stride else height * reach
    inside = min(filled, tall)
    phases = min(node.window.stride[1], node.window.reach[1])
    pairs, plane = (deep + 1) // 2, plane_words(graph, node)
    read = wide * phases // node.window.stride[1]
    first = (rows - 1) * stride + reach - node.window.pads[0]  # rows of the image that bring their padding
    return {
        ("widened1" if deep % 4 else "widened4"): inside * read * deep,
        "planes": filled * phases * pairs,
        "padding": pairs * ((filled - inside) * plane + min(inside, first) * max(0, plane - read)),
        "moved": max(0, reach - stride) * pairs * plane * (passes - 1),
    }


def _add_feature(graph: Graph, node: Node) -> str:
    """Which of its two loops an addition takes."""
    numbers = add_numbers(node, graph.tensors)
    quick = activation_limits(node, graph.tensors[node.output]) == (-128, 127) and -22 <= numbers.output[1] <= -1
    inputs = (numbers.first, numbers.second)
    halved = any(a == (1 << 30, 0) and -22 <= b[1] <= -1 for a, b in (inputs, inputs[::-1]))
    return "added" if quick and halved else "added_in_general"


def features(plan: Plan, packed: Mapping[str, Packed]) -> dict[str, int]:
    """Count the inner steps of one inference."""
    total, graph = dict.fromkeys(FEATURES, 0), plan.graph
    for node in graph.nodes:
        total["operators"] += node.op not in VIEWS
        if node.op in WEIGHTED:
            for name, count in _conv_features(plan, node, packed[node.name].kernel).items():
                total[name] += count
            continue
        for name, count in _plain_features(graph, node).items():
            total[name] += count
    return total


def _plain_features(graph: Graph, node: Node) -> dict[str, int]:
    """Steps of the operators without weights."""
    made, read = graph.tensors[node.output].elements, sum(graph.tensors[name].elements for name in node.inputs)
    height, width, channels = graph.tensors[node.output].image
    match node.op:
        case Op.ADD:
            return {_add_feature(graph, node): made}
        case Op.MUL:
            return {"multiplied": made}
        case Op.MEAN:
            return {"averaged": read}
        case Op.MAX_POOL | Op.AVERAGE_POOL:
            return {"pooled": int(np.prod(node.window.kernel)) * made, "pooled_outputs": made}
        case Op.SOFTMAX:
            return {"softmaxed": made}
        case Op.PAD | Op.CONCAT:
            whole = all(graph.tensors[name].image[2] == channels for name in node.inputs)
            pieces = sum(int(np.prod(graph.tensors[name].image[: 1 if whole else 2])) for name in node.inputs)
            return {"placed": read + made * (node.op is Op.PAD), "placed_pieces": pieces}
        case Op.RESIZE:
            return {"resized": made, "resized_pixels": height * width}
    return {} if node.op in VIEWS else {"looked_up": made}


def layer_instructions(
    plan: Plan, node: Node, kernel: Kernel, sizes: CodeSizes, live: NDArray[np.bool_] | None = None
) -> float:
    """Instructions of one layer with a kernel; with other weights than its own where `live` says which there are."""
    if live is not None:
        node = replace(node, constants={**node.constants, "weight": live.astype(np.int8)})
    counts = _conv_features(plan, node, kernel)
    return sum(sizes.instructions.get(name, 0.0) * count for name, count in counts.items())


def planned_instructions(plan: Plan, packed: Mapping[str, Packed], sizes: CodeSizes | None) -> int | None:
    """Instructions of one inference, or None where no coefficients are known for the CPU."""
    if sizes is None or not sizes.instructions:
        return None
    counts = features(plan, packed)
    return round(sum(sizes.instructions.get(name, 0.0) * count for name, count in counts.items()))
