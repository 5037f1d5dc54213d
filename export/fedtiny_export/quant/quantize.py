"""Float Graph + activation ranges -> int8 Graph.

Weights are symmetric per output channel, activations asymmetric per tensor. A zero weight stays zero, and every
worst-case sum is proven to fit 32 bits. No data is needed here: ranges come from the clients or a calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError
from ..graph.fixed_point import (
    add_numbers,
    conv_multipliers,
    hard_swish_numbers,
    leaky_relu_numbers,
    logistic_numbers,
    mean_numbers,
    mul_numbers,
    rescale_numbers,
)
from ..graph.ir import WEIGHTED, Array, Graph, Node, Op, Tensor
from .scales import MOVES, SHARES, SIGNED_SHARES, Ranges, choose_quants, odd_limits

SUM_STEP = 128 * 128  # the largest product of an input and a weight
MAX_CLASSES = 4095  # a softmax adds its powers with 12 integer bits


def quantize(graph: Graph, ranges: Ranges) -> Graph:
    """Quantise every tensor and constant of a simplified graph."""
    graph, quants = choose_quants(graph, ranges)
    tensors = {name: replace(tensor, quant=quants[name]) for name, tensor in graph.tensors.items()}
    nodes = [quantize_node(node, tensors) for node in graph.nodes]
    for node in nodes:
        prove_sums(node, tensors)
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _without_odd_limits(node: Node) -> Node:
    """Limits that .tflite has no activation for are the ends of the tensor's range: saturation keeps them."""
    return replace(node, low=None, high=None) if odd_limits(node) else node


def quantize_node(node: Node, tensors: Mapping[str, Tensor]) -> Node:
    """One operator between tensors that have their steps already."""
    node = _without_odd_limits(node)
    if node.op not in WEIGHTED:
        return replace(node, pad_value=_steps(node.pad_value, node, tensors)) if node.op is Op.PAD else node
    data = tensors[node.inputs[0]].quant
    assert data is not None
    bias = node.constants["bias"].astype(np.float64)
    scales = weight_scales(node.constants["weight"], bias, data.scale)
    weight = quantize_weight(node.constants["weight"], scales)
    assert not np.any(weight[node.constants["weight"] == 0]), f"{node.name}: a zero weight came back"
    bias = np.round(bias / (data.scale * scales.astype(np.float64)))
    quantized = replace(
        node,
        constants={"weight": weight, "weight_scale": scales, "bias": bias},
        pad_value=_steps(node.pad_value, node, tensors) if any(node.window.pads) else 0.0,
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


def _steps(value: float, node: Node, tensors: Mapping[str, Tensor]) -> float:
    """A padding as steps from the zero point; clipping only what rounding pushes over an end."""
    data = tensors[node.inputs[0]].quant
    assert data is not None
    return float(np.clip(round(value / data.scale), -128 - data.zero_point, 127 - data.zero_point))


def check_int8(graph: Graph) -> None:
    """Refuse an int8 graph from elsewhere that the kernels would not compute as it says."""
    for node in graph.nodes:
        quants = {graph.tensors[name].quant for name in (*node.inputs, node.output)}
        if node.op in MOVES and len(quants) > 1:
            raise FedtinyError(
                f"operator {node.name} ({node.op}) changes the scale or zero point, which its kernel does not do"
            )
        prove_sums(node, graph.tensors)


def prove_sums(node: Node, tensors: Mapping[str, Tensor]) -> None:
    """Refuse an operator whose 32-bit numbers some input could overflow, by the kernels' own rules."""
    proof = _PROOFS.get(node.op)
    if proof is None:
        return
    try:
        with np.errstate(over="ignore"):
            proof(node, tensors)
    except (OverflowError, ValueError) as error:  # a ratio of steps that no 32-bit float holds
        names = " and ".join(f"{name} ({_scale(tensors[name]):.3g})" for name in (*node.inputs, node.output))
        raise FedtinyError(
            f"operator {node.name}: its arithmetic cannot take the steps of {names}: are their ranges right?"
        ) from error


def _scale(tensor: Tensor) -> float:
    assert tensor.quant is not None
    return tensor.quant.scale


def _prove_add(node: Node, tensors: Mapping[str, Tensor]) -> None:
    numbers = add_numbers(node, tensors)
    if max(shift for _, shift in (numbers.first, numbers.second, numbers.output)) > 0:
        raise _too_fine(node, tensors[node.output], "the sum of its inputs")


def _prove_mean(node: Node, tensors: Mapping[str, Tensor]) -> None:
    height, width, _ = tensors[node.inputs[0]].image
    _check_worst(node, tensors, np.array([255.0 * height * width]), np.array([mean_numbers(node, tensors)[1]]))


def _prove_weighted(node: Node, tensors: Mapping[str, Tensor]) -> None:
    data = tensors[node.inputs[0]].quant
    assert data is not None
    weight = node.constants["weight"].astype(np.int64).reshape(node.constants["weight"].shape[0], -1)
    folded = np.abs(node.constants["bias"].astype(np.int64) - data.zero_point * weight.sum(axis=1))
    worst = folded + float(SUM_STEP) * weight.shape[1]
    if not np.all(worst < 2**31):
        raise FedtinyError(
            f"operator {node.name}: sums can reach {worst.max():.3g}, over 2^31; it has {weight.shape[1]:,} inputs"
        )
    _check_worst(node, tensors, worst, conv_multipliers(node, tensors)[1])


def _prove_product(node: Node, tensors: Mapping[str, Tensor]) -> None:
    _check_worst(node, tensors, np.array([255.0 * 255.0]), np.array([mul_numbers(node, tensors)[1]]))


def _prove_rescale(node: Node, tensors: Mapping[str, Tensor]) -> None:
    _check_worst(node, tensors, np.array([255.0]), np.array([rescale_numbers(node, tensors)[1]]))


def _prove_leaky_relu(node: Node, tensors: Mapping[str, Tensor]) -> None:
    shifts = [shift for _, shift in leaky_relu_numbers(node, tensors)]
    _check_worst(node, tensors, np.array([255.0]), np.array(shifts))


def _prove_hard_swish(node: Node, tensors: Mapping[str, Tensor]) -> None:
    numbers = hard_swish_numbers(node, tensors)
    if numbers.output[1] > 0 or numbers.gate[1] > 16:
        raise _too_fine(node, tensors[node.output], "its input")


def _prove_softmax(node: Node, tensors: Mapping[str, Tensor]) -> None:
    output, data = tensors[node.output], tensors[node.inputs[0]]
    assert data.quant is not None
    if output.quant != SHARES:
        raise FedtinyError(f"operator {node.name}: a softmax must give steps of 1/256 from -128")
    if not node.settings["beta"] * data.quant.scale * 2.0**26 > 1.0:
        raise FedtinyError(
            f"operator {node.name}: its input has steps of {data.quant.scale:.3g}: too fine to tell apart"
        )
    if data.shape[-1] > MAX_CLASSES:
        raise FedtinyError(
            f"operator {node.name}: a softmax over {data.shape[-1]:,} values; the limit is {MAX_CLASSES:,}"
        )


def _prove_logistic(node: Node, tensors: Mapping[str, Tensor]) -> None:
    if node.op is Op.LOGISTIC and tensors[node.output].quant != SHARES:
        raise FedtinyError(f"operator {node.name}: a logistic must give steps of 1/256 from -128")
    if node.op is Op.TANH and tensors[node.output].quant != SIGNED_SHARES:
        raise FedtinyError(f"operator {node.name}: a tanh must give steps of 1/128 from 0")
    if logistic_numbers(node, tensors)[2] < 1:  # the runtimes do not agree there
        raise FedtinyError(f"operator {node.name}: one step of its input is over 8; is its range right?")


_PROOFS: Mapping[Op, Callable[[Node, Mapping[str, Tensor]], None]] = {
    Op.CONV: _prove_weighted,
    Op.DEPTHWISE: _prove_weighted,
    Op.DENSE: _prove_weighted,
    Op.ADD: _prove_add,
    Op.MUL: _prove_product,
    Op.MEAN: _prove_mean,
    Op.RELU: _prove_rescale,
    Op.REQUANTIZE: _prove_rescale,
    Op.LEAKY_RELU: _prove_leaky_relu,
    Op.HARD_SWISH: _prove_hard_swish,
    Op.LOGISTIC: _prove_logistic,
    Op.TANH: _prove_logistic,
    Op.ADD_NUMBER: _prove_add,
    Op.MUL_NUMBER: _prove_product,
    Op.SOFTMAX: _prove_softmax,
}


def _check_worst(node: Node, tensors: Mapping[str, Tensor], worst: Array, shifts: Array) -> None:
    """The kernels shift left before they multiply."""
    if not np.all((shifts <= 30) & (worst * 2.0 ** np.maximum(shifts, 0) < 2**31)):
        raise _too_fine(node, tensors[node.output], "the sums that make it")


def _too_fine(node: Node, output: Tensor, what: str) -> FedtinyError:
    assert output.quant is not None
    return FedtinyError(
        f"operator {node.name}: the range of tensor {output.name} (steps of {output.quant.scale:.3g}) is far finer "
        f"than {what}; is its range right?"
    )
