"""Two reports beside each other: figures, and the owners of bytes that changed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .budget import Report
from .compare import load_report
from .render import columns


@dataclass(frozen=True, slots=True)
class Change:
    """A figure or a ledger row in both reports; null where one of them has none."""

    name: str
    place: str
    source: str
    unit: str
    a: int | None
    b: int | None

    @property
    def grown(self) -> float | None:
        """By how many per cent B is above A; None where one of them is unknown."""
        if self.a is None or self.b is None:
            return None
        return 100 * (self.b - self.a) / self.a if self.a else (0.0 if self.b == self.a else float("inf"))


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between two exports: every figure, and the rows of the ledger that are not the same."""

    names: tuple[str, str]
    figures: tuple[Change, ...]
    rows: tuple[Change, ...]
    fits: tuple[bool, bool]

    def grown_beyond(self, percent: float) -> tuple[str, ...]:
        """A line for each figure that grew by more than this."""
        return tuple(
            f"{c.name} ({c.source}) grew by {c.grown:.1f} % from {c.a:,} to {c.b:,} {c.unit}; {percent:g} % is allowed"
            for c in self.figures
            if c.grown is not None and c.grown > percent
        )


def diff_folders(first: Path, second: Path) -> Diff:
    """Compare the reports of two export folders."""
    a, b = load_report(first), load_report(second)
    return Diff((str(first), str(second)), _figures(a, b), _rows(a, b), (a.fits, b.fits))


def _paired(a: dict[tuple[str, ...], int | None], b: dict[tuple[str, ...], int | None]) -> Iterable[Change]:
    for key in dict.fromkeys([*a, *b]):
        name, place, source, unit = key
        yield Change(name, place, source, unit, a.get(key), b.get(key))


def _figures(a: Report, b: Report) -> tuple[Change, ...]:
    def table(report: Report) -> dict[tuple[str, ...], int | None]:
        return {(f.name, f.region or "", f.source, f.unit): f.value for f in report.figures}

    return tuple(_paired(table(a), table(b)))


def _rows(a: Report, b: Report) -> tuple[Change, ...]:
    """Rows with other bytes. One that only one report has counts as 0 in the other, if that has such rows at all."""
    tables: list[dict[tuple[str, ...], int | None]] = []
    sources = {row.source for row in a.ledger} & {row.source for row in b.ledger}
    for report in (a, b):
        rows = [row for row in report.ledger if row.source in sources]
        tables.append({(f"{r.owner}, {r.part}", r.section or r.area, r.source, "B"): r.bytes for r in rows})
    keys = dict.fromkeys([*tables[0], *tables[1]])
    whole = [{key: table.get(key, 0) for key in keys} for table in tables]
    return tuple(change for change in _paired(*whole) if change.a != change.b)


def diff_json(diff: Diff) -> str:
    """The comparison as JSON: `figures` and `rows`, each with its `change`."""

    def value(change: Change) -> dict[str, object]:
        known = change.a is not None and change.b is not None
        return asdict(change) | {"change": (change.b or 0) - (change.a or 0) if known else None}

    parts = {"figures": [value(c) for c in diff.figures], "rows": [value(c) for c in diff.rows]}
    return json.dumps({"a": diff.names[0], "b": diff.names[1], "fits": diff.fits, **parts}, indent=1) + "\n"


def diff_text(diff: Diff) -> str:
    """The comparison as tables to read."""
    lines = [f"A: {diff.names[0]}{_misfit(diff.fits[0])}", f"B: {diff.names[1]}{_misfit(diff.fits[1])}", ""]
    lines += columns([["figure", "region", "source", "A", "B", "change", ""], *map(_cells, diff.figures)], {3, 4, 5, 6})
    if diff.rows:
        head = ["owner, part", "where", "source", "A", "B", "change", ""]
        lines += ["", "owners of bytes that changed:", *columns([head, *map(_cells, diff.rows)], {3, 4, 5, 6})]
    elif all(change.a == change.b for change in diff.figures):
        lines += ["", "nothing differs"]
    return "\n".join(lines) + "\n"


def _misfit(fits: bool) -> str:
    return "" if fits else " (does NOT fit its board)"


def _cells(change: Change) -> list[str]:
    numbers = ["-" if value is None else f"{value:,}" for value in (change.a, change.b)]
    share = change.grown
    said = ["", ""]
    if change.a is not None and change.b is not None and share is not None:
        said = [f"{change.b - change.a:+,}", "new" if share == float("inf") else f"{share:+.1f} %"]
        said = ["=", ""] if change.a == change.b else said
    return [change.name, change.place, change.source, *numbers, *said]
