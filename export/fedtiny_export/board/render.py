"""The memory report as plain text, to read and grep; page.py shows the same as HTML.

Both show the same `Report`; neither computes anything the report does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..errors import printable
from ..quant.explain import worst
from .budget import Figure, Layer, Report
from .clients import client_text
from .ledger import MODEL_AREA, PLANNED, Row, totals

_BAR = 10


def value(figure: Figure | None) -> str:
    """A figure with its unit, or `unknown`."""
    if figure is None or figure.value is None:
        return "unknown"
    return f"{figure.value:,} {figure.unit}" if figure.unit == "B" else f"{figure.value:,}"


def share(part: float | None) -> str:
    """A share in per cent, or `unknown`."""
    return "unknown" if part is None else percent(float(part))


def percent(part: float) -> str:
    """A share in per cent."""
    return f"{100 * part:.1f} %"


def rows(report: Report) -> list[tuple[Figure, Figure | None]]:
    """Each planned figure with the measured one beside it; a run says more than the ELF file."""
    pairs = []
    for planned in report.figures:
        if planned.source != PLANNED:
            continue
        same = [f for f in report.figures if f.name == planned.name and f.source != PLANNED]
        pairs.append((planned, same[-1] if same else None))
    return pairs


def usage_line(label: str, figure: Figure) -> str:
    """A bar like PlatformIO's."""
    assert figure.value is not None
    assert figure.limit is not None
    share = figure.value / figure.limit
    filled = min(_BAR, round(_BAR * share))
    bar = "=" * filled + " " * (_BAR - filled)
    used = f"(used {figure.value:,} bytes of {figure.limit:,} in {figure.region}, {figure.limit - figure.value:,} left)"
    return f"{label:<7}[{bar}] {100 * share:5.1f}% {used}"


def columns(table: Sequence[Sequence[str]], right: Iterable[int]) -> list[str]:
    """Lines of a table, header first; the columns `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    numeric = set(right)
    lines = []
    for row in table:
        cells = [
            cell.rjust(w) if i in numeric else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _deviation(planned: Figure, measured: Figure | None) -> str:
    if measured is None or measured.value is None or not planned.value:
        return ""
    if measured.value == planned.value:
        return "exact"
    return f"{100 * (measured.value / planned.value - 1):+.1f} %"


def figure_cells(report: Report) -> list[list[str]]:
    """The table of figures, header first; columns for what was measured only where something was.

    `dense int8` is the plan of the same network with every weight stored.
    """
    measured, dense = any(figure.source != PLANNED for figure in report.figures), report.dense
    head = ["figure", "planned", *(["measured", "deviation", "source"] if measured else [])]
    table = [[*head, *(["dense int8"] if dense else []), "limit", "region"]]
    for planned, real in rows(report):
        cells = [planned.name, value(planned)]
        if measured:
            cells += [value(real), _deviation(planned, real), real.source] if real else ["", "", ""]
        cells += [value(replace(planned, value=dense.get(planned.name)))] if dense else []
        table.append([*cells, f"{planned.limit:,}" if planned.limit else "", planned.region or ""])
    return table


def _figure_table(report: Report) -> list[str]:
    table = figure_cells(report)
    words = {"figure", "source", "region"}
    return columns(table, {place for place, name in enumerate(table[0]) if name not in words})


def _layer_table(layers: Sequence[Layer]) -> list[str]:
    table = [["layer", "output", "weights", "nonzero", "density", "encoding", "bytes", "dense", "MACs", "executed"]]
    table[0] += ["smaller below", "faster below"]
    for layer in layers:
        shape = "x".join(str(side) for side in layer.output)
        if not layer.weights:
            table.append([layer.name, shape, *[""] * 10])
            continue
        density = percent(layer.nonzero / layer.weights)
        numbers = (layer.sizes.get("dense", 0), layer.macs, layer.macs_executed)
        counts = [
            f"{layer.weights:,}",
            f"{layer.nonzero:,}",
            density,
            layer.encoding,
            f"{layer.packed_bytes:,}",
        ]
        table.append([layer.name, shape, *counts, *(f"{number:,}" for number in numbers), *break_even_cells(layer)])
    return columns(table, {2, 3, 4, 6, 7, 8, 9, 10, 11})


def break_even_cells(layer: Layer) -> list[str]:
    """The densities below which pruning the layer pays, in bytes and in instructions."""
    pays = layer.break_even
    return ["", ""] if pays is None else [percent(pays["size"]), percent(pays["speed"])]


def noise_cells(report: Report) -> list[list[str]]:
    """Signal over noise by layer, header first."""

    def shown(value: float | None) -> str:
        return "exact" if value is None else f"{value:.1f} dB"

    header = ["layer", "operator", "gathered here", "output, if only this"]
    return [header, *([row.name, row.op, shown(row.gathered_db), shown(row.output_db)] for row in report.noise)]


def noise_verdict(report: Report) -> str:
    """The line that names the layer."""
    found = worst(report.noise)
    if found is None:
        return "int8 loses nothing on these samples"
    return f"{found.name} ({found.op}) hurts most: alone it leaves {found.output_db:.1f} dB at the output"


def _noise_text(report: Report) -> list[str]:
    if not report.noise:
        return []
    return [
        "",
        "signal over noise, float against int8:",
        *columns(noise_cells(report), {2, 3}),
        noise_verdict(report),
    ]


def verdict(report: Report) -> str:
    """Whether it fits, in one line."""
    words = f"fits {report.board}" if report.fits else f"does NOT fit {report.board}"
    return f"{words} ({report.board_name})"


def _accuracy_text(report: Report) -> str:
    if report.accuracy["int8"] is None:
        return "unknown (no labelled samples)"
    number = report.accuracy
    shares = f"int8 {percent(float(number['int8'] or 0))}, float {share(number['float'])}"
    return f"{shares} on {number['samples']} samples"


def plain_text(report: Report) -> str:
    """Render `report.txt`; what matters most stands last, where a terminal shows it."""
    lines = [
        f"fedtiny memory report: {report.source} on {report.board}, runtime {report.runtime}",
        "",
        *_figure_table(report),
        "",
        *_layer_table(report.layers),
        *_noise_text(report),
        "",
        f"{_model_file(report)}, byte by byte:",
        *("  " + line for line in _wide_columns(model_cells(report))),
        "",
        f"flash and RAM, byte by byte ({byte_source(report)}):",
        *("  " + line for line in columns(byte_cells(report), {3})),
        "",
        *(f"note: {line}" for line in report.notes),
        "",
        *_summary(report),
    ]
    return "\n".join(map(printable, lines)) + "\n"


def _summary(report: Report) -> list[str]:
    model = report.model
    lines = [
        f"weights   : {model.weights:,}, {model.nonzero:,} non-zero (density {percent(model.density)})",
        f"MACs      : {model.macs:,}, {model.macs_executed:,} executed",
        f"accuracy  : {_accuracy_text(report)}",
    ]
    if report.client is not None:
        lines.append(f"training  : {client_text(report.client, report.board)}")
    if report.run is not None:
        lines += [f"{key:<10}: {value}" for key, value in report.run.items()]
    for label, name in (("RAM:", "ram.total"), ("Flash:", "flash.total")):
        figure = report.figure(name, PLANNED)
        if figure is not None and figure.value is not None and figure.limit is not None:
            lines.append(usage_line(label, figure))
    return [*lines, *report.advice, *report.gates, verdict(report)]


def _model_file(report: Report) -> str:
    return "model.ftm" if report.runtime == "ft" else "model.tflite"


def byte_source(report: Report) -> str:
    """Where the rows of flash and RAM come from."""
    return "measured-elf" if any(row.source != PLANNED for row in report.ledger) else PLANNED


def _wide_columns(table: Sequence[Sequence[str]]) -> list[str]:
    return columns(table, range(1, len(table[0])))


def model_cells(report: Report) -> list[list[str]]:
    """The model file: a row for each owner, a column for each kind of bytes, header first and sums last."""
    rows = [row for row in report.ledger if row.area == MODEL_AREA and row.source == PLANNED]
    parts = list(dict.fromkeys(row.part for row in rows))
    sizes: dict[str, dict[str, int]] = {}
    for row in rows:
        sizes.setdefault(row.owner, {})[row.part] = row.bytes
    table = [["owner", *parts, "total"]]
    for owner, of_owner in [*sizes.items(), ("total", _sums(rows))]:
        cells = [f"{of_owner[part]:,}" if part in of_owner else "" for part in parts]
        table.append([owner, *cells, f"{sum(of_owner.values()):,}"])
    return table


def _sums(rows: Iterable[Row]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row.part] = found.get(row.part, 0) + row.bytes
    return found


def byte_cells(report: Report) -> list[list[str]]:
    """Flash and RAM by owner: sections of the ELF file where one was linked, else as planned; header first."""
    measured = [row for row in report.ledger if row.source != PLANNED]
    rows = measured or [row for row in report.ledger if row.source == PLANNED]
    sizes = totals(rows)
    table = [["section" if measured else "figure", "owner", "part", "bytes"]]
    for place, total in sizes.items():
        of_place = {(r.owner, r.part): r.bytes for r in rows if (r.section or r.area) == place}
        if MODEL_AREA in (r.area for r in rows if (r.section or r.area) == place):
            of_place = {("model", "see above"): total}
        for (owner, part), size in of_place.items():
            table.append([place, owner, part, f"{size:,}"])
        if len(of_place) > 1:
            table.append([place, "total", "", f"{total:,}"])
    return table
