"""report.html: one run, to look at. A single file without scripts or links, light or dark as the reader's screen.

It says what is shown and in which words; `charts` draws it, from the same numbers as metrics.jsonl and
summary.json. Nothing is computed anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from fedtiny_train.charts import STYLE, Bar, Series, bars, columns, curves, mosaic, round_up, table
from fedtiny_train.display import flops, size

Line = Mapping[str, Any]
Summary = Mapping[str, Any]
Holdings = Sequence[Sequence[int]]
MANY = 50  # clients; more are shown as groups and extremes
MOST_ROWS, WORST, REASONS = 100, 10, 8
# What a reason of refusal is counted as, by words in it.
KINDS = {
    "no answer": "no answer",
    "too late": "too late",
    "checksum": "damaged message",
    "not a message": "damaged message",
    "not finite": "values that are not finite",
    "huge value": "huge values",
    "shape": "wrong shape",
    "not asked for": "wrong shape",
}


def page(summary: Summary, lines: Sequence[Line], holdings: Holdings) -> str:
    """Return the whole page. `holdings` has one row a client: how many samples of each class it holds."""
    title = f"{summary['method']} on {summary['data']}"
    sections = [
        ("Accuracy by round", _accuracy_text(summary), _accuracy(lines)),
        ("Loss by round", "Cross-entropy on the test set, and in training at the clients of a round.", _loss(lines)),
        ("Accuracy by client", "What each client would see of the test set, by round.", _spread(lines)),
        ("Bytes by round", "Of all clients; round 0 is the set-up and selection.", _bytes(lines)),
        ("Density by layer", _layers_text(summary["layers"]), _layers(summary["layers"])),
        ("Who holds what", _holdings_text(holdings), _holdings(summary, holdings)),
        ("Cost", "What one device needs at most, and what all of them send.", _costs(summary, lines)),
        ("Clients", "Accuracy of the final network as each client would see it.", _clients(summary, holdings)),
    ]
    if summary["refused"]:
        sections.append(("Refused answers", _refused_text(summary), _refused(summary, lines)))
    if summary["selection"]:
        text = "Loss of each candidate mask on the clients' development data; the lowest was chosen."
        sections.append(("Selection", text, _selection(summary["selection"])))
    body = "".join(section(*one) for one in sections)
    intro = f"{summary['model']}, {summary['clients']} clients, {summary['rounds']} rounds, seed {summary['seed']}"
    return document(title, intro, f'{cards(_figures(summary))}<div class="grid">{body}</div>')


def document(title: str, intro: str, body: str) -> str:
    """Return an HTML page that needs nothing but itself."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(intro)}</p>{body}</body></html>\n"
    )


def section(title: str, text: str, body: str) -> str:
    """Return one part of a page."""
    return f'<section><h2>{escape(title)}</h2><p>{escape(text)}</p><div class="wide">{body}</div></section>'


def cards(figures: Sequence[tuple[str, str]]) -> str:
    """Return the figures at the top of a page, each with what it is."""
    inner = "".join(f'<div class="card"><b>{escape(b)}</b><span>{escape(text)}</span></div>' for b, text in figures)
    return f'<div class="cards">{inner}</div>'


def _figures(summary: Summary) -> list[tuple[str, str]]:
    cost = summary["cost"]
    return [
        (f"{summary['accuracy']:.2%}", f"accuracy on {summary['test_samples']} samples"),
        (f"{summary['density']:.2%}", f"density: {summary['nonzero']:,} of {summary['weights']:,} weights"),
        (size(cost["memory_max"]), "memory of a device in training"),
        (flops(cost["flops_max"]), "work of a device in a round"),
        (size(cost["bytes_up"]), "sent by all clients"),
    ]


def _lost(lines: Sequence[Line]) -> list[int]:
    return [line["round"] for line in lines if not line["counted"]]


def _accuracy_text(summary: Summary) -> str:
    return f"On the test set; {summary['accuracy']:.2%} with fresh batch-norm statistics after the last round."


def _accuracy(lines: Sequence[Line]) -> str:
    values = [line["accuracy"] for line in lines]
    return curves("accuracy by round", [Series("test set", 0, values)], 1.0, ".0%", _lost(lines))


def _loss(lines: Sequence[Line]) -> str:
    def of_clients(combine: Callable[[list[float]], float]) -> list[float | None]:
        losses = [[c["loss"] for c in line["clients"] if "loss" in c] for line in lines]
        return [combine(values) if values else None for values in losses]

    series = [
        Series("test set", 0, [line["loss"] for line in lines]),
        Series("clients, median", 2, of_clients(median)),
        Series("clients, greatest", 1, of_clients(max)),
    ]
    highest = max(value for one in series for value in one.values if value is not None)
    return curves("loss by round", series, round_up(max(0.1, min(highest, 4.0))), ".2f", _lost(lines))


def _spread(lines: Sequence[Line]) -> str:
    if lines[0]["accuracy_worst"] is None:
        return "<p>The test set has nothing of any client.</p>"
    which = (("best", 2), ("median", 0), ("worst", 1))
    series = [Series(name, colour, [line[f"accuracy_{name}"] for line in lines]) for name, colour in which]
    return curves("accuracy by client over rounds", series, 1.0, ".0%", _lost(lines))


def _bytes(lines: Sequence[Line]) -> str:
    most = max(line["bytes_up"] + line["bytes_down"] for line in lines)
    unit, name = next(((u, n) for u, n in ((1 << 20, "MiB"), (1 << 10, "KiB")) if most >= u), (1, "B"))
    series = [
        Series(f"{name} from clients", 0, [line["bytes_up"] / unit for line in lines]),
        Series(f"{name} to clients", 2, [line["bytes_down"] / unit for line in lines]),
    ]
    return columns("bytes by round", series, ".3g")


def _layers_text(layers: Sequence[Mapping[str, Any]]) -> str:
    dead = sum(len(layer["dead"]) for layer in layers)
    text = "Share of each layer's weights that is kept. "
    if not dead:
        return text + "Every filter has live weights and is read."
    return text + f"Marked below a bar: dead filters, {dead} in all, with no live weight or read by nobody."


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for layer in layers:
        share, dead = layer["kept"] / layer["weights"], layer["dead"]
        text = f"{share:.1%} ({layer['kept']:,})" + (f", {len(dead)} dead" if dead else "")
        rows.append(Bar(layer["name"].removesuffix(".weight"), share, text, layer["filters"], dead))
    return bars("density by layer", rows)


def _holdings_text(holdings: Holdings) -> str:
    sizes = sorted(sum(row) for row in holdings)
    text = f"Training samples by client (down) and class (across): {sizes[0]:,} to {sizes[-1]:,} a client"
    if len(holdings) <= MANY:
        return text + "."
    return text + f", {median(sizes):,g} the median; clients in the order of their most frequent class."


def _holdings(summary: Summary, holdings: Holdings) -> str:
    rows = [(str(k), [float(count) for count in row]) for k, row in enumerate(holdings)]
    if len(rows) > MANY:
        rows.sort(key=lambda one: (one[1].index(max(one[1])), -max(one[1]) / max(1.0, sum(one[1]))))
        rows = _grouped(rows)
    names = [str(name) for name in summary["class_names"]]
    return mosaic("samples by client and class", rows, names, "client")


def _grouped(rows: Sequence[tuple[str, list[float]]]) -> list[tuple[str, list[float]]]:
    """Join neighbours until at most MOST_ROWS rows are left; a row of several has their mean."""
    each = -(-len(rows) // MOST_ROWS)
    found = []
    for at in range(0, len(rows), each):
        part = rows[at : at + each]
        means = [sum(values) / len(part) for values in zip(*(row for _, row in part), strict=True)]
        found.append((", ".join(name for name, _ in part[:5]) + (" ..." if len(part) > 5 else ""), means))
    return found


def _costs(summary: Summary, lines: Sequence[Line]) -> str:
    cost, dense, setup, rounds = summary["cost"], summary["cost_dense"], lines[0], lines[1:]
    up, down = sum(x["bytes_up"] for x in rounds), sum(x["bytes_down"] for x in rounds)
    compared = [
        ("memory of a device", size, cost["memory_max"], dense["memory_max"]),
        ("work of a device in a round", flops, cost["flops_max"], dense["flops_max"]),
        ("sent up in the rounds", size, up, dense["bytes_up"]),
        ("sent down in the rounds", size, down, dense["bytes_down"]),
    ]
    rows = [(name, unit(own), unit(whole), f"{own / max(whole, 1):.1%}") for name, unit, own, whole in compared]
    close_up = cost["bytes_up"] - up - setup["bytes_up"]
    close_down = cost["bytes_down"] - down - setup["bytes_down"]
    traffic = [
        ("set-up and selection", size(setup["bytes_up"]), size(setup["bytes_down"])),
        (f"{len(rounds)} rounds", size(up), size(down)),
        ("batch norm and ranges", size(close_up), size(close_down)),
        ("all", size(cost["bytes_up"]), size(cost["bytes_down"])),
    ]
    parts = [(f"memory for {name}", size(count)) for name, count in cost["memory"].items() if count]
    parts.append(("memory as the papers count, without activations", size(cost["memory_paper"])))
    head = ("at most", "this run", "dense network", "share")
    return table(head, rows) + table(("of a device's memory", ""), parts) + table(("traffic", "up", "down"), traffic)


def _clients(summary: Summary, holdings: Holdings) -> str:
    rows = [
        (k, sum(row), accuracy)
        for k, (accuracy, row) in enumerate(zip(summary["accuracy_per_client"], holdings, strict=True))
    ]
    if len(rows) <= MANY:
        texts = [(str(k), f"{n:,}", "unknown" if a is None else f"{a:.2%}") for k, n, a in rows]
        return table(("client", "samples", "accuracy"), texts)
    known = sorted((a, k, n) for k, n, a in rows if a is not None)
    worst = [(str(k), f"{n:,}", f"{a:.2%}") for a, k, n in known[:WORST]]
    return _histogram([a for a, _, _ in known]) + table((f"worst {len(worst)}", "samples", "accuracy"), worst)


def _histogram(values: Sequence[float]) -> str:
    """Count clients by accuracy, in steps of 5 %, from the first that has any."""
    counts = Counter(min(19, int(value * 20 + 1e-9)) for value in values)
    most = max(counts.values(), default=1)
    steps = range(min(counts, default=0), max(counts, default=0) + 1)
    rows = [Bar(f"{5 * s} to {5 * s + 5} %", counts[s] / most, f"{counts[s]} clients") for s in steps]
    return bars("clients by accuracy", rows)


def kind_of(reason: str) -> str:
    """Return what a reason of refusal is counted as."""
    return next((kind for words, kind in KINDS.items() if words in reason), reason[:60])


def _refused_text(summary: Summary) -> str:
    text = f"{summary['refused']} answers were not used"
    missed = summary["rounds_missed"]
    return text + (f", and {missed} rounds changed nothing for want of a quorum." if missed else ".")


def _refused(summary: Summary, lines: Sequence[Line]) -> str:
    by_round = [Counter(kind_of(one["reason"]) for one in line["refused"]) for line in lines]
    closing = Counter(kind_of(one["reason"]) for one in summary["refused_closing"])
    whole = sum(by_round, Counter()) + closing
    kinds = [kind for kind, _ in whole.most_common(REASONS)]
    shown = kinds[:5]
    series = [Series(kind, index, [counts[kind] for counts in by_round]) for index, kind in enumerate(shown)]
    rest = [sum(counts.values()) - sum(counts[kind] for kind in shown) for counts in by_round]
    if any(rest):
        series.append(Series("other", 5, rest))
    rows = [
        (kind, str(whole[kind]), str(sum(counts[kind] for counts in by_round[1:])), str(closing[kind]))
        for kind in kinds
    ]
    return columns("refused answers by round", series, ".3g") + table(("reason", "all", "rounds", "closing"), rows)


def _selection(selection: Mapping[str, Any]) -> str:
    rows = []
    for index, loss in enumerate(selection["losses"]):
        mark = " (chosen)" if index == selection["chosen"] else ""
        error, right = selection["standard_errors"][index], selection["accuracies"][index]
        rows.append((f"{index}{mark}", f"{loss:.4f}", f"{error:.4f}", f"{right:.1%}"))
    return table(("candidate", "loss", "standard error", "accuracy"), rows)
