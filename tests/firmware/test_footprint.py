"""The committed footprint of every reference model: nothing has grown by more than 1 %."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark import script
from fedtiny_export.board.devices import load_device
from fedtiny_export.board.emulator import PACKAGES

ROOT = Path(__file__).parents[2]


FOOTPRINT = script("footprint")
ROWS = [(name, board) for name, boards in FOOTPRINT.models().items() for board in boards]


@pytest.mark.parametrize(("name", "board"), ROWS)
def test_nothing_has_grown(name, board, need_tool):
    device = load_device(board)
    for tool in (f"{device.emulator.toolchain}gcc", device.emulator.program):
        need_tool(tool, PACKAGES[tool])
    committed = FOOTPRINT.read_table()[name][board]
    measured = FOOTPRINT.measure_row(FOOTPRINT.load_model(name), device, vectors=1)
    grown = FOOTPRINT.grown(committed, measured)
    assert grown == {}, "if this has its reason, run benchmarks/footprint.py and say so"


def test_growth_over_one_percent_is_told():
    old = {"code": 1000, "model": 1000, "arena": 1000, "stack": 1000, "instructions": 1000}
    assert FOOTPRINT.grown(old, old) == {}
    assert FOOTPRINT.grown(old, old | {"arena": 1010, "code": 500}) == {}
    assert FOOTPRINT.grown(old, old | {"arena": 1011, "stack": 2000}) == {
        "arena": "1,000 to 1,011",
        "stack": "1,000 to 2,000",
    }


def test_the_table_has_every_model_and_no_other():
    table = FOOTPRINT.read_table()
    assert [(name, board) for name, boards in table.items() for board in boards] == ROWS
    assert all(set(row) == set(FOOTPRINT.FIGURES) for boards in table.values() for row in boards.values())
    assert all(value > 0 for boards in table.values() for row in boards.values() for value in row.values())


def test_models_are_small_files_and_the_incumbent_says_where_its_figures_come_from():
    files = list((ROOT / "benchmarks/models").iterdir())
    assert files
    assert all(path.stat().st_size < 100_000 for path in files)
    incumbent = json.loads((ROOT / "benchmarks/incumbent.json").read_text())
    assert len(incumbent["how"]) > 3
    assert all(set(row) == {*FOOTPRINT.FIGURES, "cycles"} for row in incumbent["models"].values())
