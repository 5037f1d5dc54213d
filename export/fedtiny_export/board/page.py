"""The memory report as one HTML file with inline SVG, to look at: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .budget import ArenaBuffer, Report
from .clients import client_text
from .ledger import PLANNED
from .render import (
    break_even_cells,
    byte_cells,
    byte_source,
    figure_cells,
    model_cells,
    noise_cells,
    noise_verdict,
    percent,
    share,
    value,
    verdict,
)

TEXT_COLUMNS = {"owner", "part", "source", "region", "operator", "chosen"}
_STYLE = """
:root{--bg:#fff;--fg:#1d2330;--soft:#5b6577;--line:#d9dee7;--card:#f5f7fa;
--a:#2563a8;--b:#d97b29;--bad:#b3261e;--ok:#1a7f4b}
@media(prefers-color-scheme:dark){:root{--bg:#14181f;--fg:#e6e9ef;--soft:#9aa4b5;--line:#323a47;--card:#1c222c;
--a:#6ea8e6;--b:#e9a35f;--bad:#ff8a80;--ok:#62c796}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1220px;padding:1.2rem;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif}h1{font-size:1.35rem;margin:.2rem 0}h2{font-size:1.05rem;margin:1.6rem 0 .5rem}
p{margin:.3rem 0}.soft{color:var(--soft)}.ok{color:var(--ok)}.bad{color:var(--bad)}.wide{overflow-x:auto}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.6rem;margin:1rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem}
.card b{display:block;font-size:1.2rem}table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.t,th.t{text-align:left}svg{display:block;width:100%;height:auto}
svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft)}
.legend span{margin-right:.9rem;white-space:nowrap}.legend i{display:inline-block;width:.7em;height:.7em;
margin-right:.35em}
@media(max-width:600px){body{padding:.8rem}table,tbody{display:block}tr{display:grid;grid-template-columns:1fr 1fr;
padding:.3rem 0;border-bottom:1px solid var(--line)}tr:first-child,td:empty{display:none}
td,td.t{border:0;padding:0 .3rem;text-align:left;white-space:normal;overflow-wrap:anywhere}
td:first-child{grid-column:1/3;font-weight:600}td+td::before{content:attr(data-is) " ";color:var(--soft)}}
"""


def _kib(size: int) -> str:
    return f"{size / 1024:.1f} KiB"


def _bar_svg(parts: Sequence[tuple[str, int]], limit: int) -> str:
    """A bar of parts against a limit; parts beyond the limit are drawn, in the warning colour."""
    total = sum(size for _, size in parts)
    span = max(total, limit, 1)
    x, shapes, legend = 0.0, [], []
    colours = ("var(--a)", "var(--b)", "var(--ok)", "var(--soft)")
    for index, (name, size) in enumerate(parts):
        width = 600 * size / span
        colour = colours[index % len(colours)]
        shapes.append(f'<rect x="{x:.1f}" y="0" width="{max(width, 0.8):.1f}" height="18" fill="{colour}"/>')
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)} {size:,} B</span>')
        x += width
    edge = 600 * limit / span
    warning = (
        f'<rect x="{edge:.1f}" y="0" width="{600 - edge:.1f}" height="18" fill="var(--bad)"/>' if total > limit else ""
    )
    return (
        f'<svg viewBox="0 0 600 18" preserveAspectRatio="none" style="height:18px" role="img">'
        f'<rect width="600" height="18" fill="var(--line)"/>{"".join(shapes)}{warning}</svg>'
        f'<p class="legend">{" ".join(legend)} <span class="soft">of {limit:,} B</span></p>'
    )


def _arena_svg(buffers: Sequence[ArenaBuffer], names: Sequence[str]) -> str:
    """Operators from left to right, bytes from bottom to top: which buffer lies where, and when."""
    if not buffers:
        return ""
    top = max(b.offset + b.size for b in buffers)
    steps = max(b.last for b in buffers) + 1
    width, height = 600 / steps, 200.0
    parts = ['<svg viewBox="-2 -2 604 216" role="img">']
    for buffer in buffers:
        x, w = buffer.first * width, (buffer.last - buffer.first + 1) * width
        y, h = height * (1 - (buffer.offset + buffer.size) / top), height * buffer.size / top
        colour = "var(--b)" if buffer.scratch else "var(--a)"
        label = f"{buffer.name}: {buffer.size:,} B at {buffer.offset:,}, operators {buffer.first} to {buffer.last}"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{colour}" fill-opacity=".75" '
            f'stroke="var(--bg)"><title>{escape(label)}</title></rect>'
        )
    parts.append(f'<text x="0" y="212" class="soft">{escape(names[0])}</text>')
    parts.append(f'<text x="600" y="212" text-anchor="end" class="soft">{escape(names[-1])}</text></svg>')
    return "".join(parts)


def _html_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table; on a narrow screen each row is a block, and each cell says its column's name."""
    sides = [' class="t"' if name in TEXT_COLUMNS else "" for name in header]
    head = "".join(f"<th{side}>{escape(name)}</th>" for side, name in zip(sides, header, strict=True))
    lines = []
    for row in body:
        cells = zip(sides, header, row, strict=True)
        made = "".join(f'<td{side} data-is="{escape(name)}">{escape(cell)}</td>' for side, name, cell in cells)
        lines.append(f"<tr>{made}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _head(table: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return table[0], table[1:]


def _parts(report: Report, group: str) -> list[tuple[str, int]]:
    total = report.figure(f"{group}.total", PLANNED)
    if total is None or total.value is None:
        return []
    names = {"flash": ("model", "code", "selftest", "labels", "sdk"), "ram": ("arena", "static", "stack_reserved")}[
        group
    ]
    figures = [report.figure(f"{group}.{name}", PLANNED) for name in names]
    return [(f.name.split(".")[1].replace("_", " "), f.value) for f in figures if f and f.value]


def _bars(report: Report) -> str:
    pieces = []
    for group, title in (("flash", "Flash"), ("ram", "RAM")):
        total = report.figure(f"{group}.total", PLANNED)
        if total is None or total.value is None or total.limit is None:
            continue
        text = f"{total.value:,} B ({_kib(total.value)}), {percent(total.value / total.limit)} of {total.region}"
        pieces.append(f"<p><b>{title}</b> {escape(text)}</p>{_bar_svg(_parts(report, group), total.limit)}")
    return "".join(pieces)


def _cards(report: Report) -> str:
    instructions = report.figure("instructions", "measured-run") or report.figure("instructions", PLANNED)
    arena = report.figure("ram.arena", PLANNED)
    cards = [
        (
            "non-zero weights",
            f"{report.model.nonzero:,}",
            f"{percent(report.model.density)} of {report.model.weights:,}",
        ),
        ("MACs executed", f"{report.model.macs_executed:,}", f"of {report.model.macs:,}"),
        ("arena", value(arena), f"lower bound {report.arena_lower_bound:,} B"),
        ("instructions", value(instructions), instructions.source if instructions else ""),
    ]
    if report.accuracy["int8"] is not None:
        said = f"float {share(report.accuracy['float'])}, {report.accuracy['samples']} samples"
        cards.insert(0, ("int8 accuracy", percent(float(report.accuracy["int8"])), said))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><span class="soft">{escape(a)}</span><b>{escape(b)}</b>'
            f'<span class="soft">{escape(c)}</span></div>'
            for a, b, c in cards
        )
        + "</div>"
    )


def _figures_html(report: Report) -> str:
    header, *body = figure_cells(report)
    return _html_table(header, body)


def _layers_html(report: Report) -> str:
    body = []
    for layer in report.layers:
        shape = "×".join(str(side) for side in layer.output)
        if not layer.weights:
            body.append([layer.name, shape, *[""] * 10])
            continue
        dense = layer.sizes.get("dense") or layer.sizes.get("depthwise") or 0
        counts = [f"{layer.weights:,}", f"{layer.nonzero:,}", percent(layer.nonzero / layer.weights)]
        body.append(
            [
                layer.name,
                shape,
                *counts,
                f"{dense:,}",
                f"{layer.packed_bytes:,}",
                layer.encoding,
                f"{layer.macs:,}",
                f"{layer.macs_executed:,}",
                *break_even_cells(layer),
            ]
        )
    header = [
        "layer",
        "output",
        "weights",
        "non-zero",
        "density",
        "dense B",
        "chosen B",
        "encoding",
        "MACs",
        "executed",
        "smaller below",
        "faster below",
    ]
    return _html_table(header, body)


def _noise_html(report: Report) -> str:
    if not report.noise:
        return ""
    header, *body = noise_cells(report)
    return f"<h2>Signal over noise</h2><p>{escape(noise_verdict(report))}</p>{_html_table(header, body)}"


def _client_html(report: Report) -> str:
    if report.client is None:
        return ""
    return f"<h2>Training on this board</h2><p>{escape(client_text(report.client, report.board))}</p>"


def html_text(report: Report) -> str:
    """Render `report.html`."""
    said_first = f'<span class="{"ok" if report.fits else "bad"}">{escape(verdict(report))}</span>'
    said = "".join(f"<p>{escape(line)}</p>" for line in (*report.advice, *report.gates))
    notes = "".join(f'<p class="soft">{escape(line)}</p>' for line in report.notes)
    run = "".join(f"<p>{escape(str(key))}: {escape(str(value))}</p>" for key, value in (report.run or {}).items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(report.source)} on {escape(report.board)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(report.source)} on {escape(report.board)}</h1><p>{said_first}</p>{said}{_cards(report)}"
        f"<h2>Memory</h2>{_bars(report)}<h2>Planned and measured</h2>{_figures_html(report)}{run}"
        f"{_client_html(report)}<h2>Layers</h2>{_layers_html(report)}{_noise_html(report)}"
        '<h2>Arena</h2><p class="soft">Operators from left to right, bytes from '
        "bottom to top; blue: activations, orange: scratch.</p>"
        f"{_arena_svg(report.arena, [layer.name for layer in report.layers])}<h2>The model, byte by byte</h2>"
        f"{_html_table(*_head(model_cells(report)))}<h2>Flash and RAM, byte by byte ({byte_source(report)})</h2>"
        f"{_html_table(*_head(byte_cells(report)))}<h2>Notes</h2>{notes}</html>\n"
    )
