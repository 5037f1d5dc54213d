"""The report of a run: which filters are dead, and that its pictures say what the numbers say."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from torch import nn

from fedtiny_train import charts, liveness, report
from fedtiny_train.charts import Bar, Series
from fedtiny_train.liveness import dead_filters
from fedtiny_train.models import ModelSpec, build
from fedtiny_train.trace import Step


def dead_of(model, shape, changes):
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1}
    masks = {name: np.ones(tuple(weight.shape), np.bool_) for name, weight in weights.items()}
    for name, place in changes:
        masks[name][place] = False
    return {name: dead for name, dead in dead_filters(model, shape[0], masks).items() if dead}


def chain():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))


def one_after_the_other(model):
    """The steps of a chain, whatever modules the trace of this package knows."""
    names = ["input", *(path for path, _ in model.named_children())][:-1]
    plan = [Step(m, path, (before,), path) for before, (path, m) in zip(names, model.named_children(), strict=True)]
    return [*plan[:-1], dataclasses.replace(plan[-1], output="logits")]


@pytest.mark.parametrize(
    ("changes", "dead"),
    [
        ([], {}),
        ([("0.weight", 1)], {"0.weight": [1]}),  # no live weight; who reads it is not dead for that
        ([("4.weight", (slice(None), 2))], {"0.weight": [2], "2.weight": [2]}),  # read by nobody, and so before it
        ([("2.weight", 3)], {"0.weight": [3], "2.weight": [3]}),  # an empty depthwise filter reads nothing
        # Filter 0 of the last convolution does not read channel 2, and filter 1, which does, is itself unread.
        (
            [("4.weight", (0, 2)), ("7.weight", (slice(None), slice(4, 8)))],
            {"0.weight": [2], "2.weight": [2], "4.weight": [1]},
        ),
        ([("7.weight", (slice(None), slice(5, 8)))], {}),  # one of four places of the channel is read
        ([("7.weight", 2)], {"7.weight": [2]}),
        (
            [("7.weight", slice(None))],
            {"0.weight": [0, 1, 2, 3], "2.weight": [0, 1, 2, 3], "4.weight": [0, 1], "7.weight": [0, 1, 2]},
        ),
    ],
)
def test_dead_filters_by_hand(monkeypatch, changes, dead):
    # 1 x 8 x 8, then 4 x 6 x 6, 4 x 4 x 4, 2 x 4 x 4, pooled to 2 x 2 x 2, eight features.
    monkeypatch.setattr(liveness, "steps", one_after_the_other)
    assert dead_of(chain(), (1, 8, 8), changes) == dead


def test_what_a_shortcut_reads_is_read():
    model = build(ModelSpec("resnet8", (1, 8, 8), 10, 4))
    whole = slice(None)
    assert dead_of(model, (1, 8, 8), [("stack2.conv1.weight", (whole, 3))]) == {}  # the shortcut reads it still
    both = [("stack2.conv1.weight", (whole, 3)), ("stack2.shortcut.weight", (whole, 3))]
    # Channel 3 is the sum of the stem's and of the first stack's: nobody reads it, and so nothing that only makes it.
    assert dead_of(model, (1, 8, 8), both) == {"stack1.conv2.weight": [3]}
    more = [*both, ("stack1.conv1.weight", (whole, 3))]
    assert dead_of(model, (1, 8, 8), more) == {"stem.conv.weight": [3], "stack1.conv2.weight": [3]}


def points_of(drawing):
    return [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', drawing).group(1).split()]


def test_a_curve_lies_where_its_numbers_say():
    drawing = charts.curves("c", [Series("one", 0, [0.0, None, 1.0, 5.0])], 2.0, ".0f", lost=[1])
    assert points_of(drawing) == [(56.0, 190.0), (332.0, 101.0), (470.0, 12.0)]  # 5 is cut off at the top, 2
    assert '<rect class="lost" x="125.0" y="12" width="138.0" height="178"/>' in drawing
    assert "no quorum" in drawing
    assert "no quorum" not in charts.curves("c", [Series("one", 0, [0.0, 1.0])], 2.0, ".0f")


def test_columns_are_stacked():
    drawing = charts.columns("c", [Series("a", 0, [1.0, 0.0]), Series("b", 1, [1.0, 4.0])], ".0f")
    assert 'class="f0" x="56.00" y="145.50" width="175.95" height="44.50"' in drawing
    assert 'class="f1" x="56.00" y="101.00" width="175.95" height="44.50"' in drawing
    assert 'class="f1" x="263.00" y="12.00" width="175.95" height="178.00"' in drawing
    assert drawing.count("<rect") == 3  # nothing is drawn for 0


@pytest.mark.parametrize(("value", "top"), [(0, 1e-9), (1, 1), (13, 16), (97, 100), (0.33, 0.4), (712, 800), (5, 6)])
def test_the_top_of_a_scale_is_a_short_number(value, top):
    assert charts.round_up(value) == pytest.approx(top)


def test_dead_filters_are_marked_below_their_bar():
    drawing = charts.bars("b", [Bar("x", 0.5, "half", 4, (1, 3))])
    assert re.findall(r'class="dead" x="([\d.]+)"', drawing) == ["171.00", "277.00"]  # 118 + 212 / 4, 118 + 3 * 212 / 4
    assert 'class="f0" x="118" y="6" width="106.0"' in drawing


def summary_of(clients, **changes):
    return {"class_names": ["a", "b"], "accuracy_per_client": [k / clients for k in range(clients)]} | changes


def test_many_clients_are_drawn_in_the_order_of_their_classes_and_joined():
    holdings = [[k % 2 * 10, (1 - k % 2) * 10] for k in range(200)]
    drawing = report._holdings(summary_of(200), holdings)
    tips = re.findall(r"<title>client ([^:]*), class (.): (\d+)</title>", drawing)
    assert len(tips) == report.MOST_ROWS  # 200 clients in pairs, each with one class alone
    assert tips[0] == ("1, 3", "a", "10")
    assert [name for _, name, _ in tips] == ["a"] * 50 + ["b"] * 50
    few = report._holdings(summary_of(3), [[1, 2], [0, 4], [3, 0]])
    tips = re.findall(r"<title>client ([^:]*), class (.): (\d+)</title>", few)
    assert tips[:3] == [("0", "a", "1"), ("0", "b", "2"), ("1", "a", "0")]


def test_of_many_clients_the_worst_are_named():
    text = report._clients(summary_of(100), [[1, 2]] * 100)
    rows = re.findall(r"<tr><td>(\d+)</td><td>3</td><td>([\d.]+)%</td></tr>", text)
    assert rows == [(str(k), f"{k}.00") for k in range(10)]
    counts = re.findall(r">(\d+) clients<", text)
    assert counts == ["5"] * 20
    assert report._clients(summary_of(5), [[1, 2]] * 5).count("<tr>") == 6
    assert "unknown" in report._clients(summary_of(2, accuracy_per_client=[None, 0.5]), [[1, 2]] * 2)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("no answer", "no answer"),
        ("too late: after 1.2 deadlines", "too late"),
        ("its checksum is wrong: it was cut off, or damaged on the way", "damaged message"),
        ("fc.bias has shape (3,), not (2,)", "wrong shape"),
        ("x" * 90, "x" * 60),
    ],
)
def test_reasons_are_counted_by_kind(reason, kind):
    assert report.kind_of(reason) == kind


def test_refusals_are_counted_by_round_and_reason():
    def refused(*reasons):
        return [{"id": 0, "reason": reason} for reason in reasons]

    lines = [{"refused": refused("no answer")}, {"refused": refused("no answer", "too late: x", "no answer")}]
    summary = {"refused": 5, "rounds_missed": 0, "refused_closing": refused("<b> has shape")}
    text = report._refused(summary, lines)
    assert "<tr><td>no answer</td><td>3</td><td>2</td><td>0</td></tr>" in text
    assert "<tr><td>wrong shape</td><td>1</td><td>0</td><td>1</td></tr>" in text
    assert "<b>" not in text


def test_the_report_says_what_a_dense_network_costs(run):
    summary = json.loads((run / "summary.json").read_text())
    dense, page = summary["cost_dense"], (run / "report.html").read_text()
    assert dense["memory_max"] > summary["cost"]["memory_max"]  # most of it is activations, which no mask shrinks
    assert dense["flops_max"] > summary["cost"]["flops_max"]
    # 3 clients and 3 rounds: nine messages either way, of as many bytes, each a little over four a value.
    assert dense["bytes_up"] == dense["bytes_down"]
    assert 4 * summary["weights"] < dense["bytes_up"] / 9 < 4 * summary["weights"] * 1.4
    for title in ("Accuracy by client", "Bytes by round", "Density by layer", "Who holds what", "Selection"):
        assert f"<h2>{title}</h2>" in page
    assert "Refused answers" not in page
    assert all(layer["filters"] == layer["shape"][0] for layer in summary["layers"])
    assert page.count('class="dead"') == sum(len(layer["dead"]) for layer in summary["layers"])


def test_bytes_are_written_in_the_unit_of_the_largest_round():
    lines = [{"bytes_up": 900, "bytes_down": 230}, {"bytes_up": 3 << 20, "bytes_down": 1 << 20}]
    drawn = report._bytes(lines)
    assert "MiB from clients" in drawn
    assert "e+" not in drawn
    assert "KiB to clients" in report._bytes([{"bytes_up": 0, "bytes_down": 1024}])
    assert ">B to clients" in report._bytes([{"bytes_up": 500, "bytes_down": 523}])


def test_names_above_columns_are_whole_and_inside_the_picture():
    names = ["airplane", "automobile", "one-that-is-far-too-long"]
    slanted = charts.mosaic("m", [("0", [1.0] * 10)], [*names, *"abcdefg"], "client")
    assert [">airplane<" in slanted, ">automobile<" in slanted, ">one-that-i\u2026<" in slanted] == [True] * 3
    found = [(float(x), float(y)) for x, y in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", slanted)]
    for name, (x, y) in zip(names, found, strict=False):
        long = 7.0 * min(11, len(name))  # of a text that ends at (x, y) and comes from the upper left, at 40 degrees
        assert x - 0.766 * long >= 0
        assert y - 0.643 * long >= 0
    level = charts.mosaic("m", [("0", [1.0, 2.0])], names[:2], "client")
    assert ">automobile<" in level
    assert "rotate" not in level
