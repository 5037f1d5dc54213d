"""How accurate a network of a size in flash becomes: pruned by FedPack, by FedTiny, uniformly, or dense and small.

Every network of a size has the same budget of bytes. FedPack has width and density by `--flash-budget`; FedTiny and
layer-wise magnitude pruning (uniform) get the same network and the same number of weights; `dense` is the widest
network that fits whole. Runs are kept in benchmarks/results/iso_bytes.jsonl and never repeated:

    python benchmarks/iso_bytes.py --data-dir DIR --jobs 2 [--only speech --budgets 4K 8K]

It prints a table of what the exporter planned for a Cortex-M4 and writes results/iso_bytes.html with the plots.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import campaign
import methods

RESULTS = Path(__file__).parent / "results" / "iso_bytes.jsonl"
PAGE = RESULTS.with_suffix(".html")
NAMES = {"fedpack": "FedPack", "fedtiny": "FedTiny", "magnitude": "uniform", "fedavg": "dense"}
AXES = {"flash.model": "bytes of flash", "ram.arena": "bytes of arena", "instructions": "instructions"}
Row = tuple[str, str, str, campaign.Flags]


def cases(only: Sequence[str], budgets: Sequence[str], seeds: Sequence[int], names: Sequence[str]) -> Iterator[Row]:
    """Yield (data, budget, method, flags) of every run."""
    common = {name: value for name, value in methods.COMMON.items() if name != "width"}
    for seed in seeds:
        for budget in budgets:
            for data in only:
                for name in names:
                    flags = {**methods.SETTINGS[data], **common, "method": name, "flash_budget": budget, "seed": seed}
                    yield data, budget, name, flags


def table(found: dict[str, campaign.Result], rows: Sequence[Row]) -> None:
    """Print one line a network: accuracy by seed, and what the exporter planned."""
    print(f"{'':24} {'width':>5} {'density':>8} {'accuracy':>18} {'flash':>7} {'arena':>7} {'instructions':>13}")
    for data, budget, name in dict.fromkeys(row[:3] for row in rows):
        got = results(found, rows, data, name, budget)
        if not got or not got[0]["packed"]:
            continue
        accuracy = " ".join(f"{100 * one['accuracy']:.1f}" for one in got)
        packed = got[0]["packed"]
        print(
            f"{data:6} {budget:>4} {NAMES[name]:12} {got[0]['width']:5} {got[0]['density']:8.3f} {accuracy:>18} "
            f"{packed['flash.model']:7,} {packed['ram.arena']:7,} {packed['instructions'] or 0:13,}"
        )


def results(
    found: dict[str, campaign.Result], rows: Sequence[Row], data: str, name: str, budget: str
) -> list[campaign.Result]:
    """Return the runs that are there, seed by seed."""
    keys = [campaign.key(flags) for *row, flags in rows if row == [data, budget, name]]
    return [found[key] for key in keys if key in found]


def page(found: dict[str, campaign.Result], rows: Sequence[Row]) -> str:
    """Draw accuracy against flash, arena and instructions, for each data set."""
    from fedtiny_train.charts import spread
    from fedtiny_train.report import document, section

    parts = []
    for data in dict.fromkeys(row[0] for row in rows):
        drawings = []
        for figure, axis in AXES.items():
            curves = {title: points(found, rows, data, name, figure) for name, title in NAMES.items()}
            curves = {title: drawn for title, drawn in curves.items() if drawn}
            if curves:
                drawings.append(section(f"{data}: {axis}", "", spread(curves, axis, short)))
        parts.append(f'<div class="grid">{"".join(drawings)}</div>')
    intro = "Accuracy of the last round on the test set; flash, arena and instructions as planned for a Cortex-M4."
    return document("Equal bytes", intro, "".join(parts))


def short(value: float) -> str:
    """Return a count in a few characters."""
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.3g}k"


def points(
    found: dict[str, campaign.Result], rows: Sequence[Row], data: str, name: str, figure: str
) -> list[tuple[float, float, float, float]]:
    """Return (figure, mean, least, most accuracy) of each budget."""
    drawn: list[tuple[float, float, float, float]] = []
    for budget in dict.fromkeys(row[1] for row in rows):
        got: list[dict[str, Any]] = [r for r in results(found, rows, data, name, budget) if r["packed"]]
        values = [one["packed"][figure] for one in got if one["packed"][figure]]
        if values:
            accuracy = [one["accuracy"] for one in got]
            drawn.append((sum(values) / len(values), sum(accuracy) / len(accuracy), min(accuracy), max(accuracy)))
    return sorted(drawn)


def main() -> None:
    """Run what is missing, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", default=list(methods.SETTINGS), choices=list(methods.SETTINGS))
    parser.add_argument("--budgets", nargs="+", default=["4K", "8K", "16K", "32K", "64K"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args()
    rows = list(cases(options.only, options.budgets, options.seeds, options.methods))
    todo = [flags | {"data": str(options.data_dir / str(flags["data"]))} for *_, flags in rows]
    found = campaign.known(RESULTS) if options.table else campaign.carry_out(todo, RESULTS, options.jobs)
    table(found, rows)
    PAGE.write_text(page(found, rows))


if __name__ == "__main__":
    main()
