"""Float Graph + activation ranges -> int8 Graph.

Weights are symmetric per output channel, activations asymmetric per tensor. A zero weight stays zero, and every
worst-case sum is proven to fit 32 bits. No data is needed here: ranges come from the clients or a calibration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import FedtinyError
from .ir import Array, Graph, Node, Op, Quant, Tensor

MIN_SPAN = 1e-12
SUM_STEP = 128 * 128  # the largest product of an input and a weight

Ranges = Mapping[str, tuple[float, float]]


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """Read `ranges.json`: minimum and maximum by tensor name."""
    try:
        content = json.loads(path.read_text())
        ranges = {str(name): (float(item["min"]), float(item["max"])) for name, item in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise FedtinyError(f"{path}: not a usable ranges file: {error}") from None
    for name, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise FedtinyError(f"{path}: tensor {name} has the range {low}..{high}")
    return ranges


def activation_quant(low: float, high: float) -> Quant:
    """Spread low..high, widened to hold zero, over -128..127 so that zero is a whole number."""
    low, high = min(low, 0.0), max(high, 0.0)
    # a tensor that is zero everywhere has no scale of its own
    scale = float(np.float32((high - low) / 255.0)) if high - low > MIN_SPAN else 1.0
    return Quant(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


def quantize(graph: Graph, ranges: Ranges) -> Graph:
    """Quantise every tensor and constant of a simplified graph."""
    tensors = {name: replace(tensor, quant=_tensor_quant(tensor, ranges)) for name, tensor in graph.tensors.items()}
    nodes = [_quantize_node(node, tensors) for node in graph.nodes]
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _tensor_quant(tensor: Tensor, ranges: Ranges) -> Quant:
    if tensor.name not in ranges:
        raise FedtinyError(f"no range for tensor {tensor.name}: give the run's ranges.json or a calibration")
    return activation_quant(*ranges[tensor.name])


def _quantize_node(node: Node, tensors: Mapping[str, Tensor]) -> Node:
    if node.op not in (Op.CONV, Op.DENSE):
        return node
    data = tensors[node.inputs[0]].quant
    assert data is not None
    bias = node.constants["bias"].astype(np.float64)
    scales = weight_scales(node.constants["weight"], bias, data.scale)
    weight = quantize_weight(node.constants["weight"], scales)
    bias = np.round(bias / (data.scale * scales.astype(np.float64)))
    quantized = replace(
        node,
        constants={"weight": weight, "weight_scale": scales, "bias": bias},
        pad_value=float(np.clip(round(node.pad_value / data.scale), -128 - data.zero_point, 127 - data.zero_point)),
    )
    _prove_sums(quantized, data.zero_point)
    return replace(quantized, constants={**quantized.constants, "bias": bias.astype(np.int32)})


def weight_scales(weight: Array, bias: Array, data_scale: float) -> NDArray[np.float32]:
    """One scale per output channel: the peak at 127, but never so fine that the bias leaves 30 bits.

    A channel without weights takes the layer's widest scale, which leaves its bias as precise as its neighbours'.
    """
    peak = np.abs(weight.reshape(weight.shape[0], -1).astype(np.float64)).max(axis=1)
    peak = np.where(peak > 0, peak, peak.max() or 127.0)
    return np.maximum(peak / 127.0, np.abs(bias) / (data_scale * 2.0**29)).astype(np.float32)


def quantize_weight(weight: Array, scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Quantise symmetrically per output channel."""
    wide = scales.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    return np.asarray(np.clip(np.round(weight.astype(np.float64) / wide), -127, 127), np.int8)


def _prove_sums(node: Node, zero_point: int) -> None:
    """Refuse a layer whose sum could leave 32 bits for some input, by the rule that the runtime checks again."""
    weight = node.constants["weight"].astype(np.int64).reshape(node.constants["weight"].shape[0], -1)
    folded = np.abs(node.constants["bias"] - zero_point * weight.sum(axis=1))
    worst = folded + SUM_STEP * weight.shape[1]
    if not np.all(worst < 2**31):
        channel = int(np.argmax(worst))
        raise FedtinyError(
            f"operator {node.name}: the sum of output channel {channel} can reach {worst[channel]:.3g}, over 2^31; "
            f"it has {weight.shape[1]:,} inputs"
        )
