"""Float Graph + activation ranges -> int8 Graph.

Weights are symmetric per output channel, activations asymmetric per tensor. A zero weight stays zero, and every
worst-case sum is proven to fit 32 bits. No data is needed here: ranges come from the clients or a calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import FedtinyError
from .fixed_point import add_numbers, conv_multipliers, mean_numbers
from .ir import Array, Graph, Node, Op, Quant, Tensor
from .untrusted import guarded, read_json_object

MIN_SPAN = 1e-12
SUM_STEP = 128 * 128  # the largest product of an input and a weight

Ranges = Mapping[str, tuple[float, float]]


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """Read `ranges.json`: minimum and maximum by tensor name."""
    content = read_json_object(path)

    def read() -> dict[str, tuple[float, float]]:
        return {name: (float(item["min"]), float(item["max"])) for name, item in content.items()}

    ranges = guarded(path, "a usable ranges file", read)
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
    pads: dict[str, list[float]] = {}
    for node in graph.nodes:
        if node.op is Op.CONV and any(node.window.pads):
            pads.setdefault(node.inputs[0], []).append(node.pad_value)
    tensors = {
        name: replace(tensor, quant=_tensor_quant(tensor, ranges, pads.get(name, [])))
        for name, tensor in graph.tensors.items()
    }
    nodes = [_quantize_node(node, tensors) for node in graph.nodes]
    for node in nodes:
        _prove_sums(node, tensors)
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _tensor_quant(tensor: Tensor, ranges: Ranges, pads: list[float]) -> Quant:
    """Cover the tensor's range and whatever convolutions pad it with."""
    if tensor.name not in ranges:
        raise FedtinyError(f"no range for tensor {tensor.name}: give the run's ranges.json or a calibration")
    low, high = ranges[tensor.name]
    return activation_quant(min(low, *pads), max(high, *pads)) if pads else activation_quant(low, high)


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
        pad_value=_pad_steps(node, data),
    )
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


def _pad_steps(node: Node, data: Quant) -> float:
    """The padding as steps from the zero point; clipping only what rounding pushes over an end."""
    if not any(node.window.pads):
        return 0.0
    return float(np.clip(round(node.pad_value / data.scale), -128 - data.zero_point, 127 - data.zero_point))


def _prove_sums(node: Node, tensors: Mapping[str, Tensor]) -> None:
    """Refuse an operator whose 32-bit sums some input could overflow, by the runtime's own rules."""
    output = tensors[node.output]
    if node.op is Op.ADD:
        numbers = add_numbers(node, tensors)
        if max(shift for _, shift in (numbers.first, numbers.second, numbers.output)) > 0:
            raise _too_fine(node, output, "the sum of its inputs")
        return
    if node.op is Op.MEAN:
        height, width, _ = tensors[node.inputs[0]].image
        _, shift = mean_numbers(node, tensors)
        worst, shifts = np.array([255.0 * height * width]), np.array([shift])
    else:
        data = tensors[node.inputs[0]].quant
        assert data is not None
        weight = node.constants["weight"].astype(np.int64).reshape(node.constants["weight"].shape[0], -1)
        folded = np.abs(node.constants["bias"].astype(np.int64) - data.zero_point * weight.sum(axis=1))
        worst, shifts = folded + float(SUM_STEP) * weight.shape[1], conv_multipliers(node, tensors)[1]
        if not np.all(worst < 2**31):
            raise FedtinyError(
                f"operator {node.name}: sums can reach {worst.max():.3g}, over 2^31; it has {weight.shape[1]:,} inputs"
            )
    if not np.all((shifts <= 30) & (worst * 2.0 ** np.maximum(shifts, 0) < 2**31)):
        raise _too_fine(node, output, "the sums that make it")


def _too_fine(node: Node, output: Tensor, what: str) -> FedtinyError:
    assert output.quant is not None
    return FedtinyError(
        f"operator {node.name}: the range of tensor {output.name} (steps of {output.quant.scale:.3g}) is far finer "
        f"than {what}; is its range right?"
    )
