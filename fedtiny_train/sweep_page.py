"""sweep.html: accuracy against density with the spread over seeds, and the table of all combinations.

A single file like report.html, whose parts it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedtiny_train.charts import BASE, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, legend, mesh, svg, table
from fedtiny_train.display import size
from fedtiny_train.report import document, section
from fedtiny_train.sweep import grouped, mean_and_spread

Result = Mapping[str, Any]
Point = tuple[float, float, float, float]  # density, mean accuracy, least, greatest


def page(results: Sequence[Result]) -> str:
    """Return the whole page."""
    failed = [one for one in results if "error" in one]
    parts = [section("All combinations", "Mean over the seeds, with the least and the greatest.", _table(results))]
    if len(failed) < len(results):
        text = "On the test set; a bar goes from the least to the greatest of the seeds. Density is on a log scale."
        drawn = f'<div class="narrow">{plot(curves_of(results))}</div><p></p>'
        parts.insert(0, section("Accuracy against density", text, drawn))
    if failed:
        rows = [(one["name"], one["error"]) for one in failed]
        parts.append(section("Failed runs", "They are tried again when the sweep is.", table(("run", "why"), rows)))
    intro = f"{len(results)} runs, {len(failed)} of them failed" if failed else f"{len(results)} runs"
    return document("Sweep", intro, "".join(parts))


def curves_of(results: Sequence[Result]) -> dict[str, list[Point]]:
    """Return the points of each curve by its name: all swept options but the seed and the density."""
    found: dict[str, list[Point]] = {}
    for key, runs in grouped(results).items():
        name = ", ".join(f"{option} {value}" for option, value in key if option != "density")
        density = sum(run["density"] for run in runs) / len(runs)
        found.setdefault(name or "accuracy", []).append((density, *mean_and_spread([r["accuracy"] for r in runs])))
    return {name: sorted(points) for name, points in found.items()}


def plot(curves: Mapping[str, Sequence[Point]]) -> str:
    """Draw the curves, density from left to right on a log scale."""
    points = [point for curve in curves.values() for point in curve]
    densities = sorted({point[0] for point in points})
    low = max(0.0, math.floor(min(point[2] for point in points) * 10 + 1e-9) / 10)
    left, right = math.log(max(densities[0], 1e-9)), math.log(max(densities[-1], 1e-9))
    if right - left < 1e-6:
        left, right = left - 1, right + 1

    def across(density: float) -> float:
        return LEFT + 20 + (WIDTH - LEFT - RIGHT - 40) * (math.log(max(density, 1e-9)) - left) / (right - left)

    def up(accuracy: float) -> float:
        return BASE - (BASE - TOP) * (accuracy - low) / (1 - low) if low < 1 else BASE

    parts = [mesh(1.0, ".0%", low), _densities(densities, across)]
    for index, curve in enumerate(curves.values()):
        colour, shift = index % COLOURS, 3 * (index - (len(curves) - 1) / 2)
        line = " ".join(f"{across(d) + shift:.1f},{up(mean):.1f}" for d, mean, _, _ in curve)
        parts.append(f'<polyline class="curve s{colour}" points="{line}"/>')
        for density, mean, least, most in curve:
            x = across(density) + shift
            parts.append(
                f'<line class="s{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{up(least):.1f}" y2="{up(most):.1f}"/>'
            )
            parts.append(f'<circle class="f{colour}" cx="{x:.1f}" cy="{up(mean):.1f}" r="3"/>')
    drawing = svg(WIDTH, HEIGHT, "accuracy against density", "".join(parts))
    return drawing + (legend([(name, i % COLOURS) for i, name in enumerate(curves)]) if len(curves) > 1 else "")


def _densities(densities: Sequence[float], across: Any) -> str:
    """Write the densities below the axis, those that would overlap left out."""
    parts, last = [], -100.0
    for density in densities:
        if (x := across(density)) - last > 40:
            parts.append(f'<text x="{x:.1f}" y="{BASE + 18}" text-anchor="middle">{density:.3g}</text>')
            last = x
    return "".join(parts) + f'<text x="{WIDTH - RIGHT}" y="{BASE + 34}" text-anchor="end">density</text>'


def rows_of(results: Sequence[Result], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table, one row a combination of all options but the seed.

    A brief table fits a terminal.
    """
    groups = grouped(results)
    names = [name for name, _ in next(iter(groups), ())]
    rows = []
    for key, runs in groups.items():
        mean, least, most = mean_and_spread([run["accuracy"] for run in runs])
        worst = [run["worst_client"] for run in runs if run["worst_client"] is not None]
        spread = f"{least:.2%} to {most:.2%}" if len(runs) > 1 else ""
        row = [str(value) for _, value in key] + [str(len(runs)), f"{mean:.2%}", spread, f"{runs[0]['nonzero']:,}"]
        more = [f"{sum(worst) / len(worst):.2%}" if worst else "unknown"]
        more.append(size(max(run["cost"]["memory_max"] for run in runs)))
        more.append(size(sum(run["cost"]["bytes_up"] for run in runs) / len(runs)))
        rows.append(row if brief else row + more)
    head = [*names, "runs", "accuracy", "over seeds", "weights"]
    return head if brief else [*head, "worst client", "memory", "sent up"], rows


def _table(results: Sequence[Result]) -> str:
    return table(*rows_of(results))
