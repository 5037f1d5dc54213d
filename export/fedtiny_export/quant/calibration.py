"""Activation ranges: what is known of every tensor's values, and how much of it the int8 steps shall cover.

What is known comes from the clients (`ranges.json`: least, greatest, a histogram) or from calibration samples; both
are the same value here, so every way to choose a range works with either. The network's input and output keep their
whole ranges: a sensor's peaks and the order of the largest outputs are not to be cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError, UsageError
from ..graph.evaluate import Samples, batches, calibrate, run_float
from ..graph.ir import Graph
from ..untrusted import guarded, read_json_object

Floats = NDArray[np.float64]
BINS = 1024  # of a histogram made here
MAX_BINS = 2048  # of one that was read: both ends of a range are tried at every bin
MOST_COUNTED = 1 << 53
STEPS = 255
DEFAULT_PERCENTILE = 99.99
WAYS = "auto, minmax, percentile:SHARE or mse"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which part of the values a range covers: `minmax`, `percentile` (of `share` per cent) or `mse`.

    `auto` is mse where there is a histogram, else minmax.
    """

    way: str = "auto"
    share: float = 100.0

    def __str__(self) -> str:
        return f"percentile:{self.share:g}" if self.way == "percentile" else self.way


AUTO, MINMAX = Choice(), Choice("minmax")


def read_choice(text: str) -> Choice:
    """The value of --ranges."""
    way, _, share = text.partition(":")
    if way in ("auto", "minmax", "mse") and not share:
        return Choice(way)
    try:
        wanted = float(share) if share else DEFAULT_PERCENTILE
    except ValueError:
        wanted = -1.0
    if way != "percentile" or not 50.0 < wanted <= 100.0:
        raise UsageError(f"--ranges {text}: give {WAYS}; a share is above 50 and at most 100")
    return Choice(way, wanted)


@dataclass(frozen=True, slots=True)
class Observed:
    """One tensor: its least and greatest value, and `counts` of its values in equal bins from `first` to `last`."""

    low: float
    high: float
    first: float = 0.0
    last: float = 0.0
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ends = (self.low, self.high, self.first, self.last)
        if not all(np.isfinite(ends)) or self.low > self.high or self.first > self.last:
            raise FedtinyError(f"a range from {self.low} to {self.high}, a histogram from {self.first} to {self.last}")
        if len(self.counts) > MAX_BINS or (self.counts and not 0 < sum(self.counts) < MOST_COUNTED):
            raise FedtinyError(f"a histogram of {len(self.counts)} bins holding {sum(self.counts)} values")
        if any(count < 0 for count in self.counts):
            raise FedtinyError("a histogram with less than nothing in a bin")


def read_ranges(path: Path) -> dict[str, Observed]:
    """Read `ranges.json`: minimum, maximum and histogram by tensor name."""
    content = read_json_object(path)
    return {name: _observed(path, name, item) for name, item in content.items()}


def _observed(path: Path, name: str, item: Any) -> Observed:
    def read() -> Observed:
        low, high, drawn = float(item["min"]), float(item["max"]), item.get("histogram") or {}
        if not drawn:
            return Observed(low, high)
        first, last = drawn["edges"]
        if not all(type(count) is int for count in drawn["counts"]):
            raise TypeError("a histogram counts in whole numbers")
        return Observed(low, high, float(first), float(last), tuple(drawn["counts"]))

    try:
        return guarded(path, "a usable ranges file", read)
    except FedtinyError as error:
        raise FedtinyError(f"{path}: tensor {name}: {str(error).removeprefix(f'{path}: ')}") from error


def observe(graph: Graph, samples: Samples, *, histograms: bool) -> dict[str, Observed]:
    """Run samples through the float network; histograms cost a second time."""
    ends = calibrate(graph, samples)
    if not histograms:
        return {name: Observed(low, high) for name, (low, high) in ends.items()}
    counts = {name: np.zeros(BINS, np.int64) for name in ends}
    for part in batches(graph, samples.x.shape[0]):
        for name, values in run_float(graph, samples.x[part]).items():
            low, high = ends[name]
            if high > low:
                counts[name] += np.histogram(values, BINS, (low, high))[0]
            else:
                counts[name][0] += values.size
    return {name: Observed(*ends[name], *ends[name], tuple(counts[name].tolist())) for name in ends}


def choose_ranges(
    graph: Graph, observed: Mapping[str, Observed], choice: Choice = AUTO
) -> dict[str, tuple[float, float]]:
    """The range of every tensor that something is known of."""
    ends = (graph.input, graph.output)
    return {
        name: (one.low, one.high) if choice.way == "minmax" or name in ends else _cut(name, one, choice)
        for name, one in observed.items()
        if name in graph.tensors
    }


def _cut(name: str, one: Observed, choice: Choice) -> tuple[float, float]:
    if not one.counts:
        if choice.way == "auto":
            return one.low, one.high
        raise FedtinyError(f"tensor {name} has no histogram: export with --ranges minmax, or give --calibration")
    if one.first == one.last:
        return one.low, one.high
    counts = np.array(one.counts, np.float64)
    edges = np.linspace(one.first, one.last, len(counts) + 1)
    low, high = percentile_ends(counts, edges, choice.share) if choice.way == "percentile" else mse_ends(counts, edges)
    return max(low, one.low), min(high, one.high)


def percentile_ends(counts: Floats, edges: Floats, share: float) -> tuple[float, float]:
    """The shortest row of whole bins that leaves out at most half of the rest at each end."""
    outside = counts.sum() * (100.0 - share) / 200.0
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    first, last = int((below <= outside).sum()), len(counts) - int((above <= outside).sum())
    return float(edges[first]), float(edges[last])


def mse_ends(counts: Floats, edges: Floats) -> tuple[float, float]:
    """The range with the least squared error: what it cuts off, and the rounding of what is inside.

    Every pair of edges around zero is tried, since a range holds zero. Values in zero's bin are taken as exact, for
    that is where a ReLU puts its zeros.
    """
    start, end = max(0, int((edges <= 0.0).sum()) - 1), min(len(counts), int((edges < 0.0).sum()))
    centres = (edges[:-1] + edges[1:]) / 2
    lows, highs = np.minimum(edges[: start + 1], 0.0), np.maximum(edges[end:], 0.0)
    below = [float((counts * np.minimum(centres - low, 0.0) ** 2).sum()) for low in lows]
    above = [float((counts * np.maximum(centres - high, 0.0) ** 2).sum()) for high in highs]
    rounded = np.where((edges[:-1] <= 0.0) & (edges[1:] >= 0.0), 0.0, counts)
    inside = np.concatenate([[0.0], np.cumsum(rounded)])
    between = inside[None, end:] - inside[: start + 1, None]
    noise = ((highs[None, :] - lows[:, None]) / STEPS) ** 2 / 12.0 * between
    cost = noise + np.array(below)[:, None] + np.array(above)[None, :]
    cost[highs[None, :] <= lows[:, None]] = np.inf
    first, last = np.unravel_index(int(cost.argmin()), cost.shape)
    return float(lows[first]), float(highs[last])
