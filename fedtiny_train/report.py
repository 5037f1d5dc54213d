"""report.html: one run, to look at. A single file without scripts or links, light or dark as the reader's screen.

Charts are SVG drawn here from the same numbers as metrics.jsonl and summary.json; nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedtiny_train.display import flops, size

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --back: #ffffff;
  --card: #f5f7f9; --first: #0b66c3; --second: #b4540a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #39424c;
  --back: #14181c; --card: #1d2329; --first: #6cb2f5; --second: #f2a35e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p { margin: 0 0 .5rem; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .75rem; }
.card b { display: block; font-size: 1.35rem; } .card span { color: var(--soft); font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
section { min-width: 0; } .wide { overflow-x: auto; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
.mesh { stroke: var(--line); } .one { stroke: var(--first); } .two { stroke: var(--second); }
.curve { fill: none; stroke-width: 2; } .bar { fill: var(--first); } .rail { fill: var(--line); }
"""

Line = Mapping[str, Any]


def page(summary: Mapping[str, Any], lines: Sequence[Line], holdings: Sequence[Sequence[int]]) -> str:
    """Return the whole page. `holdings` has one row a client: how many samples of each class it holds."""
    title = f"{summary['method']} on {summary['data']}"
    fresh = "with fresh batch-norm statistics after the last round"
    sections = [
        _section("Accuracy by round", f"On the test set; {summary['accuracy']:.2%} {fresh}.", _accuracy(lines)),
        _section("Loss by round", "Cross-entropy on the test set.", _loss(lines)),
        _section("Density by layer", "Share of each layer's weights that is kept.", _layers(summary["layers"])),
        _section("Who holds what", "Training samples by client and class.", _holdings(summary, holdings)),
        _section("Cost", "What one device needs at most, and what all of them send.", _costs(summary, lines)),
        _section("Clients", "Accuracy of the final network as each client would see it.", _clients(summary, holdings)),
    ]
    if summary["selection"]:
        text = "Loss of each candidate mask on the clients' development data; the lowest was chosen."
        sections.append(_section("Selection", text, _selection(summary["selection"])))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(summary['model'])}, {summary['clients']} clients, "
        f"{summary['rounds']} rounds, seed {summary['seed']}</p>{_cards(summary)}"
        f'<div class="grid">{"".join(sections)}</div></body></html>\n'
    )


def _section(title: str, text: str, body: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p>{escape(text)}</p><div class="wide">{body}</div></section>'


def _cards(summary: Mapping[str, Any]) -> str:
    cost = summary["cost"]
    cards = [
        (f"{summary['accuracy']:.2%}", f"accuracy on {summary['test_samples']} samples"),
        (f"{summary['density']:.2%}", f"density: {summary['nonzero']:,} of {summary['weights']:,} weights"),
        (size(cost["memory_max"]), "memory of a device in training"),
        (flops(cost["flops_max"]), "work of a device in a round"),
        (size(cost["bytes_up"]), "sent by all clients"),
    ]
    inner = "".join(f'<div class="card"><b>{escape(b)}</b><span>{escape(text)}</span></div>' for b, text in cards)
    return f'<div class="cards">{inner}</div>'


def _chart(label: str, values: Sequence[float], top: float, form: str, style: str) -> str:
    """Draw one curve over the rounds, from 0 to `top`."""
    width, height, left, base = 480, 220, 46, 190
    last = max(1, len(values) - 1)
    points = " ".join(
        f"{left + (width - left - 10) * i / last:.1f},{base - (base - 12) * min(v, top) / top:.1f}"
        for i, v in enumerate(values)
    )
    mesh = ""
    for step in range(5):
        y = base - (base - 12) * step / 4
        mesh += f'<line class="mesh" x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        mesh += f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{format(top * step / 4, form)}</text>'
    ticks = sorted({0, last // 2, last})
    marks = "".join(
        f'<text x="{left + (width - left - 10) * i / last:.1f}" y="{base + 18}" text-anchor="middle">{i}</text>'
        for i in ticks
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{mesh}{marks}'
        f'<polyline class="curve {style}" points="{points}"/></svg>'
    )


def _accuracy(lines: Sequence[Line]) -> str:
    return _chart("accuracy by round", [line["accuracy"] for line in lines], 1.0, ".0%", "one")


def _loss(lines: Sequence[Line]) -> str:
    values = [line["loss"] for line in lines]
    return _chart("loss by round", values, max(0.1, min(max(values), 4.0)), ".2f", "two")


def _bars(label: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Draw named bars of 0 to 1, each with a text behind it."""
    width, left, right, step = 480, 130, 110, 24
    parts = []
    for index, (name, share, text) in enumerate(rows):
        y, full = index * step + 4, width - left - right
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="rail" x="{left}" y="{y + 2}" width="{full}" height="14" rx="3"/>'
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{full * share:.1f}" height="14" rx="3"/>'
            f'<text x="{left + full + 8}" y="{y + 13}">{escape(text)}</text>'
        )
    height = len(rows) * step + 8
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for layer in layers:
        share = layer["kept"] / layer["weights"]
        rows.append((layer["name"].removesuffix(".weight"), share, f"{share:.1%} ({layer['kept']:,})"))
    return _bars("density by layer", rows)


def _holdings(summary: Mapping[str, Any], holdings: Sequence[Sequence[int]]) -> str:
    if len(holdings) > 50 or summary["classes"] > 40:
        sizes = [sum(row) for row in holdings]
        return f"<p>{len(sizes)} clients with {min(sizes)} to {max(sizes)} samples.</p>"
    most = max(max(row) for row in holdings)
    cell, left, top = 26, 34, 22
    parts = [
        f'<text x="{left + c * cell + 13}" y="14" text-anchor="middle">{escape(name[:4])}</text>'
        for c, name in enumerate(summary["class_names"])
    ]
    for k, row in enumerate(holdings):
        y = top + k * cell
        parts.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{k}</text>')
        for c, count in enumerate(row):
            x, strength = left + c * cell, count / most
            tip = f"client {k}, class {summary['class_names'][c]}: {count}"
            parts.append(
                f'<g><title>{escape(tip)}</title><rect class="rail" x="{x}" y="{y}" width="24" height="24" rx="3"/>'
                f'<rect class="bar" x="{x}" y="{y}" width="24" height="24" rx="3" opacity="{strength:.2f}"/></g>'
            )
    wide, high = max(left + summary["classes"] * cell, 300), top + len(holdings) * cell
    return (
        f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="samples by client and class">{"".join(parts)}</svg>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _costs(summary: Mapping[str, Any], lines: Sequence[Line]) -> str:
    cost, setup, rounds = summary["cost"], lines[0], lines[1:]
    up, down = sum(x["bytes_up"] for x in rounds), sum(x["bytes_down"] for x in rounds)
    close_up = cost["bytes_up"] - up - setup["bytes_up"]
    close_down = cost["bytes_down"] - down - setup["bytes_down"]
    rows = [
        ("set-up and selection", size(setup["bytes_up"]), size(setup["bytes_down"])),
        (f"{len(rounds)} rounds", size(up), size(down)),
        ("batch norm and ranges", size(close_up), size(close_down)),
        ("all", size(cost["bytes_up"]), size(cost["bytes_down"])),
    ]
    device = [("memory", size(cost["memory_max"]))]
    device += [(f"for {name}", size(count)) for name, count in cost["memory"].items() if count]
    device += [
        ("memory as the papers count, without activations", size(cost["memory_paper"])),
        ("work in a round", flops(cost["flops_max"])),
    ]
    return _table(("traffic", "up", "down"), rows) + _table(("one device, at most", ""), device)


def _clients(summary: Mapping[str, Any], holdings: Sequence[Sequence[int]]) -> str:
    rows = []
    for k, (accuracy, row) in enumerate(zip(summary["accuracy_per_client"], holdings, strict=True)):
        rows.append((str(k), f"{sum(row):,}", "unknown" if accuracy is None else f"{accuracy:.2%}"))
    return _table(("client", "samples", "accuracy"), rows)


def _selection(selection: Mapping[str, Any]) -> str:
    rows = []
    for index, loss in enumerate(selection["losses"]):
        mark = " (chosen)" if index == selection["chosen"] else ""
        error, right = selection["standard_errors"][index], selection["accuracies"][index]
        rows.append((f"{index}{mark}", f"{loss:.4f}", f"{error:.4f}", f"{right:.1%}"))
    return _table(("candidate", "loss", "standard error", "accuracy"), rows)
