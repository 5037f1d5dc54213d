"""sweep.html: accuracy against density with the spread over seeds, and the table of all combinations.

A single file like report.html, whose parts it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedtiny_train.charts import Point, spread, table
from fedtiny_train.display import size
from fedtiny_train.report import document, section

Result = Mapping[str, Any]


def page(results: Sequence[Result]) -> str:
    """Return the whole page."""
    failed = [one for one in results if "error" in one]
    parts = [section("All combinations", "Mean over the seeds, with the least and the greatest.", _table(results))]
    if len(failed) < len(results):
        text = "On the test set; a bar goes from the least to the greatest of the seeds. Density is on a log scale."
        drawing = spread(curves_of(results), "density")
        drawn = f'<div class="narrow">{drawing}</div><p></p>'
        parts.insert(0, section("Accuracy against density", text, drawn))
    if failed:
        rows = [(one["name"], one["error"]) for one in failed]
        parts.append(section("Failed runs", "They are tried again when the sweep is.", table(("run", "why"), rows)))
    intro = f"{len(results)} runs, {len(failed)} of them failed" if failed else f"{len(results)} runs"
    return document("Sweep", intro, "".join(parts))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean, least, greatest)."""
    return sum(values) / len(values), min(values), max(values)


def grouped(results: Sequence[Result]) -> dict[tuple[tuple[str, Any], ...], list[Result]]:
    """Group the runs that ended well by all their options but the seed."""
    found: dict[tuple[tuple[str, Any], ...], list[Result]] = {}
    for one in results:
        if "error" not in one:
            key = tuple((name, value) for name, value in one["options"].items() if name != "seed")
            found.setdefault(key, []).append(one)
    return found


def curves_of(results: Sequence[Result]) -> dict[str, list[Point]]:
    """Return the points of each curve by its name: all swept options but the seed and the density."""
    found: dict[str, list[Point]] = {}
    for key, runs in grouped(results).items():
        name = ", ".join(f"{option} {value}" for option, value in key if option != "density")
        density = sum(run["density"] for run in runs) / len(runs)
        found.setdefault(name or "accuracy", []).append((density, *mean_and_spread([r["accuracy"] for r in runs])))
    return {name: sorted(points) for name, points in found.items()}


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
