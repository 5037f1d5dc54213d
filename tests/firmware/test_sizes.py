"""firmware/sizes.json is what the compilers give: the plan rests on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark import script

ROOT = Path(__file__).parents[2]


CORTEX = ["cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]


@pytest.mark.parametrize("cpu", [*CORTEX, "rv32imc", "xtensa-lx106", "xtensa-lx6"])
def test_the_code_of_every_part_is_as_the_table_says(cpu, need_tool):
    module = script("code_sizes")
    compiler = module.CPUS[cpu]
    need_tool(compiler[0], f"for {cpu}")
    committed = json.loads((ROOT / "firmware/sizes.json").read_text())["cpus"][cpu]["parts"]
    measured = module.parts(compiler)
    assert set(measured) == set(committed)
    for part, size in measured.items():
        assert abs(size - committed[part]) <= 0.01 * size, (
            f"{part}: run benchmarks/code_sizes.py and look at the change"
        )
