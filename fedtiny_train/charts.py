"""Charts as SVG text, drawn from plain numbers; colours are those of the page's style sheet.

Nothing here knows a run. `report` and `sweep_page` say what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BASE = 480, 230, 56, 10, 12, 190
LETTER, LONGEST = 7.0, 11  # the width of a letter, and the most that a name above a column has

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --back: #ffffff;
  --card: #f5f7f9; --c0: #0b66c3; --c1: #b4540a; --c2: #2e7d4f; --c3: #8a3fa0; --c4: #a8324a; --c5: #6b6f1d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #39424c;
  --back: #14181c; --card: #1d2329; --c0: #6cb2f5; --c1: #f2a35e; --c2: #7fd0a0; --c3: #d09be0; --c4: #f08ba0;
  --c5: #cfd37a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p { margin: 0 0 .5rem; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .75rem; }
.card b { display: block; font-size: 1.35rem; } .card span { color: var(--soft); font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
section { min-width: 0; } .narrow { max-width: 42rem; } .wide { overflow-x: auto; }
svg { width: 100%; min-width: 21rem; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem;
  margin-bottom: .75rem; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } td:first-child { white-space: normal; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .35rem; }
.mesh { stroke: var(--line); } .lost { fill: var(--soft); opacity: .22; } .curve { fill: none; stroke-width: 2; }
.rail { fill: var(--line); } .dead { fill: var(--c1); }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); }
.s3 { stroke: var(--c3); } .s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
.f0 { fill: var(--c0); background: var(--c0); } .f1 { fill: var(--c1); background: var(--c1); }
.f2 { fill: var(--c2); background: var(--c2); } .f3 { fill: var(--c3); background: var(--c3); }
.f4 { fill: var(--c4); background: var(--c4); } .f5 { fill: var(--c5); background: var(--c5); }
.f6 { fill: var(--soft); background: var(--soft); }
"""
COLOURS, SOFT = 6, 6
Point = tuple[float, float, float, float]  # where, mean, least, most


@dataclass(frozen=True, slots=True)
class Series:
    """One curve or one kind of bar: its name, its colour (0 to 5), and a value by round, None where unknown."""

    name: str
    colour: int
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Bar:
    """One named bar: its share of the whole, a text behind it, and which of `ticks` places below it are marked."""

    name: str
    share: float
    text: str
    ticks: int = 0
    marked: Sequence[int] = ()


def svg(width: float, height: float, label: str, body: str) -> str:
    """Return a whole drawing."""
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Name the colours."""
    keys = (f'<span><i class="key f{colour}"></i>{escape(name)}</span>' for name, colour in names)
    return f'<div class="legend">{"".join(keys)}</div>'


def round_up(value: float) -> float:
    """Return the next number whose quarters are short to write."""
    unit = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(unit * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if unit * step >= value - 1e-12)


def mesh(top: float, form: str, low: float = 0.0) -> str:
    """Draw five horizontal lines from `low` to `top`, each with its number."""
    parts = []
    for step in range(5):
        y, value = BASE - (BASE - TOP) * step / 4, low + (top - low) * step / 4
        text = format(value, form)
        parts.append(f'<line class="mesh" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    return "".join(parts)


def across(index: float, last: float) -> float:
    """Return where a round lies, from left to right."""
    return LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, last)


def numbers_below(last: int) -> str:
    """Write a few numbers of rounds below the axis."""
    ticks = sorted({0, last // 2, last})
    return "".join(
        f'<text x="{across(i, last):.1f}" y="{BASE + 18}" text-anchor="middle">{i}</text>' for i in ticks
    ) + (f'<text x="{WIDTH - RIGHT}" y="{BASE + 34}" text-anchor="end">round</text>')


def curves(label: str, series: Sequence[Series], top: float, form: str, lost: Sequence[int] = ()) -> str:
    """Draw curves over the rounds, from 0 to `top`; rounds of `lost` are shaded."""
    last = max(1, max(len(one.values) for one in series) - 1)
    half = across(0.5, last) - LEFT
    shade = "".join(
        f'<rect class="lost" x="{across(i, last) - half:.1f}" y="{TOP}" width="{2 * half:.1f}" height="{BASE - TOP}"/>'
        for i in lost
    )
    lines = []
    for one in series:
        points = " ".join(
            f"{across(i, last):.1f},{BASE - (BASE - TOP) * min(value, top) / top:.1f}"
            for i, value in enumerate(one.values)
            if value is not None
        )
        lines.append(f'<polyline class="curve s{one.colour}" points="{points}"/>')
    names = [(one.name, one.colour) for one in series]
    drawing = svg(WIDTH, HEIGHT, label, mesh(top, form) + shade + numbers_below(last) + "".join(lines))
    if lost:
        names.append(("no quorum", SOFT))
    return drawing + (legend(names) if len(names) > 1 else "")


def columns(label: str, series: Sequence[Series], form: str) -> str:
    """Draw stacked columns over the rounds."""
    count = max(len(one.values) for one in series)
    top = round_up(max(sum(one.values[i] or 0 for one in series) for i in range(count)))
    wide = (WIDTH - LEFT - RIGHT) / count
    parts = []
    for index in range(count):
        y, x = float(BASE), LEFT + index * wide
        for one in series:
            high = (BASE - TOP) * (one.values[index] or 0) / top
            y -= high
            box = f'x="{x:.2f}" y="{y:.2f}" width="{wide * 0.85:.2f}" height="{high:.2f}"'
            parts.append(f'<rect class="f{one.colour}" {box}/>' if high > 0 else "")
    ticks = sorted({0, (count - 1) // 2, count - 1})
    marks = "".join(
        f'<text x="{LEFT + (i + 0.5) * wide:.1f}" y="{BASE + 18}" text-anchor="middle">{i}</text>' for i in ticks
    )
    marks += f'<text x="{WIDTH - RIGHT}" y="{BASE + 34}" text-anchor="end">round</text>'
    return svg(WIDTH, HEIGHT, label, mesh(top, form) + "".join(parts) + marks) + legend(
        [(one.name, one.colour) for one in series]
    )


def bars(label: str, rows: Sequence[Bar]) -> str:
    """Draw named bars of 0 to 1, each with a text behind it, and below it a mark for each of its marked places."""
    left, right, step = 118, 150, 26
    parts = []
    for index, row in enumerate(rows):
        y, full = index * step + 4, WIDTH - left - right
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>'
            f'<rect class="rail" x="{left}" y="{y + 2}" width="{full}" height="12" rx="2"/>'
            f'<rect class="f0" x="{left}" y="{y + 2}" width="{full * row.share:.1f}" height="12" rx="2"/>'
            f'<text x="{left + full + 8}" y="{y + 13}">{escape(row.text)}</text>'
        )
        wide = full / max(1, row.ticks)
        parts += [
            f'<rect class="dead" x="{left + place * wide:.2f}" y="{y + 16}" width="{wide * 0.9:.2f}" height="4"/>'
            for place in row.marked
        ]
    return svg(WIDTH, len(rows) * step + 8, label, "".join(parts))


def mosaic(label: str, rows: Sequence[tuple[str, Sequence[float]]], columns: Sequence[str], unit: str) -> str:
    """Draw a table of tiles, stronger where a number is larger; with many rows or columns tiles are small and bare."""
    many, wide = len(rows) > 50, len(columns) > 20
    high = max(3.0, 400 / len(rows)) if many else 22.0
    left = 8 if many else 34
    across_one = (WIDTH - left - 4) / len(columns)
    head, top = ("", 8.0) if wide else _heads([(left + (c + 0.5) * across_one, n) for c, n in enumerate(columns)])
    most = max(max((*row, 0)) for _, row in rows) or 1
    gap = 0.5 if many else 2
    parts = [head]
    for k, (name, row) in enumerate(rows):
        y = top + k * high
        if not many:
            parts.append(f'<text x="{left - 8}" y="{y + 15:.1f}" text-anchor="end">{escape(name)}</text>')
        for c, count in enumerate(row):
            box = (
                f'x="{left + c * across_one:.1f}" y="{y:.1f}" width="{across_one - gap:.1f}" height="{high - gap:.1f}"'
            )
            tip = f"{unit} {name}, class {columns[c]}: {count:g}"
            rail = "" if many else f'<rect class="rail" {box} rx="3"/>'
            tile = f'<rect class="f0" {box} opacity="{count / most:.2f}"/>' if count else ""
            if tile or rail:
                parts.append(f"<g><title>{escape(tip)}</title>{rail}{tile}</g>")
    return svg(WIDTH, top + len(rows) * high + 2, label, "".join(parts))


def _heads(places: Sequence[tuple[float, str]]) -> tuple[str, float]:
    """Return names above columns and the room that they take: slanted if they would touch, cut off if very long."""
    names = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "\u2026" for _, name in places]
    longest, apart = max(map(len, names)), (places[1][0] - places[0][0]) if len(places) > 1 else WIDTH
    if longest * LETTER < apart:
        texts = (
            f'<text x="{x:.1f}" y="14" text-anchor="middle">{escape(n)}</text>'
            for (x, _), n in zip(places, names, strict=True)
        )
        return "".join(texts), 22.0
    top = 16 + 0.64 * longest * LETTER  # the sine of 40 degrees
    # The last names lean to the left, over what is there already, so that none is cut off on the right.
    texts = (
        f'<text transform="translate({x + 4:.1f} {top - 6:.1f}) rotate(40)" text-anchor="end">{escape(n)}</text>'
        for (x, _), n in zip(places, names, strict=True)
    )
    return "".join(texts), top


def spread(curves: Mapping[str, Sequence[Point]], axis: str, label: Callable[[float], str] = "{:.3g}".format) -> str:
    """Draw accuracy with its spread against something else, which goes from left to right on a log scale."""
    points = [point for curve in curves.values() for point in curve]
    places = sorted({point[0] for point in points})
    low = max(0.0, math.floor(min(point[2] for point in points) * 10 + 1e-9) / 10)
    left, right = math.log(max(places[0], 1e-9)), math.log(max(places[-1], 1e-9))
    if right - left < 1e-6:
        left, right = left - 1, right + 1

    def place(value: float) -> float:
        return LEFT + 20 + (WIDTH - LEFT - RIGHT - 40) * (math.log(max(value, 1e-9)) - left) / (right - left)

    def up(accuracy: float) -> float:
        return BASE - (BASE - TOP) * (accuracy - low) / (1 - low) if low < 1 else BASE

    parts = [mesh(1.0, ".0%", low), _places([(place(value), label(value)) for value in places], axis)]
    for index, curve in enumerate(curves.values()):
        colour, shift = index % COLOURS, 3 * (index - (len(curves) - 1) / 2)
        line = " ".join(f"{place(value) + shift:.1f},{up(mean):.1f}" for value, mean, _, _ in curve)
        parts.append(f'<polyline class="curve s{colour}" points="{line}"/>')
        for value, mean, least, most in curve:
            x = place(value) + shift
            parts.append(
                f'<line class="s{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{up(least):.1f}" y2="{up(most):.1f}"/>'
            )
            parts.append(f'<circle class="f{colour}" cx="{x:.1f}" cy="{up(mean):.1f}" r="3"/>')
    drawing = svg(WIDTH, HEIGHT, f"accuracy against {axis}", "".join(parts))
    return drawing + (legend([(name, i % COLOURS) for i, name in enumerate(curves)]) if len(curves) > 1 else "")


def _places(places: Sequence[tuple[float, str]], axis: str) -> str:
    """Write values below the axis, those that would overlap left out."""
    parts, last = [], -100.0
    for x, text in places:
        if x - last > 40:
            parts.append(f'<text x="{x:.1f}" y="{BASE + 18}" text-anchor="middle">{escape(text)}</text>')
            last = x
    return "".join(parts) + f'<text x="{WIDTH - RIGHT}" y="{BASE + 34}" text-anchor="end">{escape(axis)}</text>'
