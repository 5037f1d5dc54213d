"""What users of other tools were hit by: each is caught before anything is soldered, with exit 3 or one clear line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from commands import call
from fedtiny_export.board.devices import load_device_file
from fedtiny_export.board.project import project_files
from fedtiny_export.cli import check_main, export_main
from runs import make_run
from small_project import artifacts

BOARD = """
name = "a board of somebody's own"
cpu = "cortex-m4f"
clock_hz = 64_000_000
status = "listed"
sources = ["made up for this test"]

[platformio]
platform = "ststm32@19.0.0"
board = "somebody"
framework = "arduino"

[[memory]]
name = "flash"
kind = "flash"
start = 0x0800_0000
size = {flash}
holds = ["code", "model"]

[[memory]]
name = "ram"
kind = "ram"
start = 0x2000_0000
size = {ram}
holds = {holds}

[[memory]]
name = "second"
kind = "ram"
start = 0x6000_0000
size = {second}
holds = {second_holds}

[reserve]
stack_bytes = {stack}
sdk_ram_bytes = {sdk_ram}
"""
ALL = '["arena", "static", "stack"]'
USUAL = {
    "flash": 1 << 20,
    "ram": 65536,
    "second": 4096,
    "holds": ALL,
    "second_holds": "[]",
    "stack": 2048,
    "sdk_ram": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "digits", widths=(24, 32))


@pytest.fixture(scope="module")
def arena(run) -> int:
    out = run.parent / "whole"
    assert call(export_main, run, "--target", "qemu-m4", "--out", out) == 0
    return figures(out)["ram.arena"]["value"]


def figures(folder: Path) -> dict[str, dict]:
    return {f["name"]: f for f in json.loads((folder / "report.json").read_text())["figures"]}


def export(run: Path, folder: Path, *more: object, **board: object) -> int:
    path = folder / "own.toml"
    path.write_text(BOARD.format(**USUAL | board))
    return call(export_main, run, "--board", path, "--out", folder / "out", *more)


def test_an_arena_below_the_sum_of_two_regions_but_over_each(run, arena, tmp_path, capsys):
    """A 100 KB arena on a chip of 96 + 32 KB: totals say that it fits."""
    each = arena - 100
    holds = {"holds": '["arena", "static"]', "second_holds": '["stack"]'}
    assert export(run, tmp_path, ram=each, second=each, **holds) == 3
    assert f"ram.arena needs {arena:,} bytes; ram of own has {each:,}: 100 bytes too many" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "report.json").read_text())["fits"] is False
    assert (tmp_path / "out" / "model.ftm").exists(), "everything is written, marked"


def test_an_arena_that_meets_stack_and_heap(run, arena, tmp_path, capsys):
    """executorch PR 21788: the arena fits beside the static data, and overlaps Zephyr's stack and heap."""
    region = arena + 2000 + 3000 - 1
    assert arena < region * 0.9, "by itself it looks harmless"
    assert export(run, tmp_path, ram=region, stack=2000, sdk_ram=3000) == 3
    said = capsys.readouterr().err
    assert f"ram.total needs {region + 1:,} bytes; ram of own has {region:,}: 1 bytes too many" in said
    found = figures(tmp_path / "out")
    assert found["ram.stack_reserved"]["value"] == 2000
    assert found["ram.static"]["value"] == 3000
    (tmp_path / "one").mkdir()
    assert export(run, tmp_path / "one", ram=region + 1, stack=2000, sdk_ram=3000) == 0


def test_ram_over_100_percent_is_no_warning(run, tmp_path, capsys):
    """platformio-core#4791: RAM over 100 % is printed and flashed; the board freezes at boot."""
    assert export(run, tmp_path, ram=3000) == 3
    text = (tmp_path / "out" / "report.txt").read_text()
    share = next(line for line in text.splitlines() if line.startswith("RAM:"))
    assert float(share.split("]")[1].split("%")[0]) > 100
    assert "does NOT fit own" in text.splitlines()[-1]


def test_a_project_over_its_ram_does_not_compile(tmp_path, need_tool):
    """PlatformIO would flash it. The export said so before; this is for who did not read it."""
    need_tool("gcc", "gcc")
    path = tmp_path / "own.toml"
    path.write_text(BOARD.format(**USUAL | {"ram": 20_000, "stack": 2000, "sdk_ram": 3000}))
    made, said = artifacts(), {}
    for arena in (15_000, 15_001):
        files = project_files(load_device_file(path), dataclasses.replace(made, arena_bytes=arena))
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        library = tmp_path / "lib" / "fedtiny"
        command = ["gcc", "-c", f"-I{library / 'include'}", str(library / "src" / "model.c"), "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
        said[arena] = done.stderr
    assert said[15_000] == ""
    assert "the arena does not fit this board's RAM, see report.txt" in said[15_001]
    assert subprocess.run([*command, "-DFT_ARENA_ANYWAY"]).returncode == 0


def test_a_model_that_needs_external_ram_is_told_where_it_would_fit(run, arena, tmp_path, capsys):
    assert export(run, tmp_path, ram=3000, second=8 << 20) == 3
    said = capsys.readouterr().err
    assert f"another place: the arena's {arena:,} bytes fit second, 8,388,608 bytes" in said
    (tmp_path / "none").mkdir()
    assert export(run, tmp_path / "none", ram=3000, second=arena - 1) == 3
    assert "another place" not in capsys.readouterr().err


@pytest.fixture
def emulated(run, tmp_path, need_tool) -> Path:
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    assert call(export_main, run, "--target", "qemu-m4", "--out", tmp_path / "m4") == 0
    return tmp_path / "m4"


def test_a_firmware_that_does_not_link_has_a_report_all_the_same(emulated, capsys):
    """platformio-core#3368: the memory inspector fails when flash is over 100 %, exactly when it is needed."""
    main = emulated / "src" / "main.c"
    own = "volatile char own[200000];\nint main(void) {\n own[0] = 1;"
    main.write_text(main.read_text().replace("int main(void) {", own))
    capsys.readouterr()
    assert call(check_main, emulated) == 3
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "bytes too many in RAM" in printed.err
    report = json.loads((emulated / "report.json").read_text())
    assert report["fits"] is False
    found = {f["name"]: f for f in report["figures"] if f["source"] == "measured-elf"}
    over = found["ram.total"]["value"] - found["ram.total"]["limit"]
    assert f"{over:,} bytes too many in RAM" in printed.err, "the linker and the report agree"
    rows = [row for row in report["ledger"] if row["section"] == ".bss" and row["owner"] == "your src/"]
    assert sum(row["bytes"] for row in rows) >= 200_000
    assert report["run"]["run on"] == "nothing: it does not link"


# What helps, and that it does.


def test_the_density_that_is_named_does_fit(run, tmp_path, capsys):
    import numpy as np
    from fedtiny_export.board.advice import _density_advice
    from fedtiny_export.ftm.file import write_ftm
    from networks import residual

    graph = residual(0, 0.5, shape=(8, 8, 3), widths=(16, 24))
    ftm = write_ftm(graph, {})
    streams = sum(len(packed.data) for packed in ftm.packed.values())
    said = _density_advice(ftm, streams // 3)
    kept = int(said.partition("as about ")[2].split(" of ")[0].replace(",", ""))
    density = float(said.partition("--density ")[2].split(",")[0])
    weights = sum(n.constants["weight"].size for n in graph.nodes if "weight" in n.constants)
    assert density == pytest.approx(kept / weights, abs=0.0006)
    share = kept / sum(np.count_nonzero(n.constants["weight"]) for n in graph.nodes if "weight" in n.constants)
    thinner = write_ftm(residual(0, 0.5 * share * 0.97, shape=(8, 8, 3), widths=(16, 24)), {})
    assert sum(len(packed.data) for packed in thinner.packed.values()) <= streams - streams // 3
    assert "pruning alone cannot" in _density_advice(ftm, streams)


def test_an_encoding_that_is_named_fits(run, tmp_path, capsys):
    """Kernels differ in the stack they take, and layers in the scratch that an encoding needs."""
    assert export(run, tmp_path, "--encoding", "dense", stack=1024) == 3
    said = capsys.readouterr().err
    assert "ram.stack needs" in said
    way = said.partition("another encoding: ")[2].split()[:3]
    assert way[2] == "fits"
    (tmp_path / "fits").mkdir()
    assert export(run, tmp_path / "fits", *way[:2], stack=1024) == 0
    (tmp_path / "gap").mkdir()
    assert export(run, tmp_path / "gap", "--encoding", "gap") == 0
    layers = json.loads((tmp_path / "gap" / "out" / "report.json").read_text())["layers"]
    assert {layer["encoding"] for layer in layers if layer["weights"]} == {"gap"}
    (tmp_path / "none").mkdir()
    capsys.readouterr()
    assert export(run, tmp_path / "none", flash=12_000) == 3
    assert "another encoding" not in capsys.readouterr().err, "what was chosen is the smallest already"


def test_an_encoding_is_for_our_runtime(run, capsys):
    assert call(export_main, run, "--target", "esp32", "--runtime", "tflm", "--encoding", "gap") == 2
    assert "--encoding gap is for the runtime ft" in capsys.readouterr().err
