"""Samples through a network: the float graph in numpy, ranges from calibration data, accuracy before and after int8.

Data files are `.npz` with `x` and, for accuracy, `y`, as the user has them: (N,H,W), (N,H,W,C) or (N,F).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError
from ..untrusted import read_arrays
from . import reference
from .ir import Graph, Node, Quant
from .ops import ARITHMETIC

Floats = NDArray[np.floating[Any]]
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs in the shape a graph takes, (n, *shape), as float; labels where there are any."""

    x: Floats
    y: NDArray[np.int64] | None


def read_samples(path: Path, graph: Graph, *, need_labels: bool = False) -> Samples:
    """Read and check a data file for a network."""
    arrays = read_arrays(path)
    names, x, y = sorted(arrays), arrays.get("x"), arrays.get("y")
    if x is None or (need_labels and y is None):
        raise FedtinyError(f"{path}: has {names}, needs {'x and y' if need_labels else 'x'}")
    return Samples(_shaped(path, x, graph), None if y is None else _labels(path, y, x.shape[0]))


def _shaped(path: Path, x: NDArray[np.generic], graph: Graph) -> Floats:
    shape = graph.tensors[graph.input].shape
    if x.dtype.kind not in "fiub" or x.ndim < 2 or x.shape[0] < 1:
        raise FedtinyError(f"{path}: x must be at least one sample of numbers, is {x.dtype} of shape {x.shape}")
    if x.shape[1:] not in (shape, shape[:-1] if shape[-1] == 1 else shape):
        raise FedtinyError(f"{path}: samples have shape {x.shape[1:]}; the network takes {shape}, channels last")
    values = x.astype(np.float64).reshape(-1, *shape)
    if not np.all(np.isfinite(values)):
        raise FedtinyError(f"{path}: x holds a value that is not finite")
    return values


def _labels(path: Path, y: NDArray[np.generic], count: int) -> NDArray[np.int64]:
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise FedtinyError(f"{path}: y must be {count} integers, is {y.dtype} of shape {y.shape}")
    return y.astype(np.int64)


def run_float(graph: Graph, x: Floats) -> dict[str, Floats]:
    """Run the float graph; return every tensor by name."""
    values: dict[str, Floats] = {graph.input: x}
    for node in graph.nodes:
        result = run_float_node(node, [values[name] for name in node.inputs])
        values[node.output] = result.reshape(-1, *graph.tensors[node.output].shape)
    return values


def run_float_node(node: Node, inputs: list[Floats]) -> Floats:
    """One operator in float, its clamp included."""
    compute = ARITHMETIC[node.op].real
    assert compute is not None, node.op
    result = compute(node, inputs)
    return result if node.low is None and node.high is None else np.clip(result, node.low, node.high)


def batches(graph: Graph, count: int) -> Iterator[slice]:
    """Parts of `count` samples that a network can take at once."""
    step = min(_BATCH, reference.samples_at_once(graph))
    for start in range(0, count, step):
        yield slice(start, start + step)


def calibrate(graph: Graph, samples: Samples) -> dict[str, tuple[float, float]]:
    """Minimum and maximum of every tensor over the samples."""
    ranges: dict[str, tuple[float, float]] = {}
    for part in batches(graph, samples.x.shape[0]):
        for name, values in run_float(graph, samples.x[part]).items():
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))
    return ranges


def to_int8(graph: Graph, x: Floats) -> NDArray[np.int8]:
    """Quantise sensor values as the device does."""
    quant = graph.tensors[graph.input].quant
    assert quant is not None
    return in_steps(x, quant)


def in_steps(x: Floats, quant: Quant) -> NDArray[np.int8]:
    """Real numbers as int8: divide, round half away from zero, shift, clamp."""
    steps = x / quant.scale
    rounded = np.sign(steps) * np.floor(np.abs(steps) + 0.5)
    return np.asarray(np.clip(rounded + quant.zero_point, -128, 127), np.int8)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers on the same samples."""

    int8: float
    float32: float | None
    samples: int


def accuracy(float_graph: Graph | None, int8_graph: Graph, samples: Samples) -> Accuracy:
    """Compare both networks' answers with the labels; a network that came as int8 has no float one."""
    assert samples.y is not None
    right = {"float": 0, "int8": 0}
    for part in batches(int8_graph, samples.x.shape[0]):
        batch, labels = samples.x[part], samples.y[part]
        coarse = reference.run(int8_graph, to_int8(int8_graph, batch)).reshape(batch.shape[0], -1)
        if float_graph is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                values = run_float(float_graph, batch.astype(np.float32))  # as the trainer computes; half the time
            exact = values[float_graph.output].reshape(batch.shape[0], -1)
            right["float"] += int((exact.argmax(axis=1) == labels).sum())
        right["int8"] += int((coarse.argmax(axis=1) == labels).sum())
    count = samples.x.shape[0]
    return Accuracy(right["int8"] / count, None if float_graph is None else right["float"] / count, count)
