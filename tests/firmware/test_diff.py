"""fedtiny-check --diff: what changed between two exports, readable, and a gate for pull requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call
from fedtiny_export.cli import check_main, export_main
from runs import make_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Exports of a thin network and of a thicker one."""
    folder = tmp_path_factory.mktemp("pair")
    for name, density in (("thin", 0.2), ("thick", 0.4)):
        run = make_run(folder / f"run-{name}", density=density)
        assert call(export_main, run, "--target", "esp32", "--out", folder / name) == 0
    return folder / "thin", folder / "thick"


def model_bytes(folder: Path) -> int:
    return (folder / "model.ftm").stat().st_size


def test_the_table_says_what_changed_by_how_much_and_whose_it_is(pair, capsys):
    assert call(check_main, "--diff", *pair) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A: {pair[0]}"
    a, b = map(model_bytes, pair)
    row = next(line.split() for line in lines if line.startswith("flash.model"))
    assert row[:6] == ["flash.model", "app0", "planned", f"{a:,}", f"{b:,}", f"{b - a:+,}"]
    assert row[6:] == [f"{100 * (b - a) / a:+.1f}", "%"]
    assert next(line.split() for line in lines if line.startswith("flash.labels"))[-1] == "="
    assert any(line.startswith("b2.c2, weights") for line in lines)
    assert not any(line.startswith("b2.c2, biases") for line in lines), "what did not change is not listed"


def test_an_export_does_not_differ_from_itself(pair, capsys):
    assert call(check_main, "--diff", pair[0], pair[0], "--tolerance", 0) == 0
    assert "nothing differs" in capsys.readouterr().out


def test_the_rows_explain_the_whole_change(pair, capsys):
    assert call(check_main, "--diff", *pair, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    a, b = map(model_bytes, pair)
    assert sum(row["change"] for row in found["rows"] if row["place"] == "flash.model") == b - a
    figures = {row["name"]: row for row in found["figures"]}
    assert figures["flash.model"]["change"] == b - a
    assert figures["instructions"]["change"] is None, "unknown on this board"
    assert found["fits"] == [True, True]


def test_growth_beyond_a_tolerance_exits_5(pair, capsys):
    thin, thick = pair
    a, b = model_bytes(thin), model_bytes(thick)
    grown = 100 * (b - a) / a
    assert call(check_main, "--diff", thin, thick, "--tolerance", grown + 0.01) == 0
    assert capsys.readouterr().err == ""
    assert call(check_main, "--diff", thin, thick, "--tolerance", grown - 0.01) == 5
    assert f"flash.model (planned) grew by {grown:.1f} % from {a:,} to {b:,} B" in capsys.readouterr().err
    assert call(check_main, "--diff", thick, thin, "--tolerance", 0) in (0, 5)
    assert "flash.model" not in capsys.readouterr().err, "what shrinks is no fault"


def test_a_gate_on_a_model_that_does_not_fit_exits_3(pair, tmp_path, capsys):
    thick = tmp_path / "thick"
    thick.mkdir()
    report = json.loads((pair[1] / "report.json").read_text())
    (thick / "report.json").write_text(json.dumps({**report, "fits": False}))
    assert call(check_main, "--diff", pair[0], thick) == 0, "without a tolerance it is a question, not a gate"
    assert "does NOT fit" in capsys.readouterr().out
    assert call(check_main, "--diff", pair[0], thick, "--tolerance", 1000) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("o", "--tolerance", "1"), "--tolerance is for --diff"),
        (("--diff", "a", "b", "--tolerance", "-1"), "from 0 on"),
        (("--diff", "a", "b", "--tolerance", "nan"), "from 0 on"),
    ],
)
def test_a_tolerance_that_means_nothing_exits_2(arguments, said, capsys):
    assert call(check_main, *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_export_exits_1(pair, tmp_path, capsys):
    assert call(check_main, "--diff", pair[0], tmp_path) == 1
    assert "report.json: there is no such file" in capsys.readouterr().err
