"""A board of the user's own: exported by its file, carried by the export, and checked as any other."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from commands import call
from fedtiny_export.assets import asset_root
from fedtiny_export.board.budget import board_sizes
from fedtiny_export.board.devices import load_device, load_device_file
from fedtiny_export.cli import check_main, export_main
from runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "digits")


def own_board(folder: Path, like: str, name: str, *changes: tuple[str, str]) -> Path:
    """A file of one's own, made from one that comes with fedtiny."""
    text = (asset_root() / "devices" / f"{like}.toml").read_text()
    for old, new in (('aliases = ["', 'aliases = ["own-'), *changes):
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


SMALLER = (("size = 1_048_576", "size = 262_144"), ("size = 196_608", "size = 65_536"))


def test_an_emulated_board_of_one_s_own_is_built_run_and_as_planned(run, tmp_path, need_tool, capsys):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    board = own_board(tmp_path, "qemu-m4", "thermometer", *SMALLER)
    assert call(export_main, run, "--board", board, "--out", tmp_path / "o") == 0
    board.unlink()  # the export carries what a check needs
    assert call(check_main, tmp_path / "o", "--require-run") == 0
    assert capsys.readouterr().err.count("written to") == 1
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["board"] == "thermometer"
    values = {(figure["name"], figure["source"]): figure for figure in report["figures"]}
    assert values["flash.total", "measured-elf"]["limit"] == 262_144
    assert values["ram.total", "measured-elf"]["value"] == values["ram.total", "planned"]["value"]
    assert values["ram.total", "measured-elf"]["limit"] == 65_536
    rows = [row["bytes"] for row in report["ledger"] if row["area"] == "flash.code" and row["source"] == "planned"]
    assert sum(rows) == values["flash.code", "planned"]["value"]


def test_a_real_board_of_one_s_own_answers_by_its_log(run, tmp_path, capsys):
    board = own_board(tmp_path, "feather_m4", "sensor")
    assert call(export_main, run, "--target", board, "--out", tmp_path / "o") == 0
    model = (tmp_path / "o" / "model.ftm").read_bytes()
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    arena = next(figure["value"] for figure in report["figures"] if figure["name"] == "ram.arena")
    fields = {"schema": 1, "format": 1, "model_bytes": len(model), "model_crc32": zlib.crc32(model)}
    fields |= {"arena_bytes": arena, "stack_used": 0, "stack_bytes": 0, "microseconds": 5, "vectors": 4, "passed": 1}
    text = json.dumps(fields, separators=(",", ":"))
    (tmp_path / "log").write_text(f"FEDTINY {text} {zlib.crc32(text.encode()):08x}\n")
    assert call(check_main, tmp_path / "o", "--log", tmp_path / "log") == 0
    assert "[env:sensor]" in (tmp_path / "o" / "platformio.ini").read_text()
    capsys.readouterr()


def test_a_wrong_file_exits_1_with_its_line(run, tmp_path, capsys):
    board = own_board(tmp_path, "qemu-m4", "mine", ("size = 196_608", "size = 0"))
    line = board.read_text().splitlines().index("size = 0") + 1
    assert call(export_main, run, "--board", board, "--out", tmp_path / "o") == 1
    assert capsys.readouterr().err == (
        f"error: mine.toml:{line}: memory[1].size: 0 is not above 0; write the size in bytes\n"
    )
    assert not (tmp_path / "o").exists()
    assert call(export_main, run, "--board", tmp_path / "none.toml", "--out", tmp_path / "o") == 2
    assert call(export_main, run, "--board", tmp_path, "--out", tmp_path / "o") == 2
    assert call(export_main, run, "--board", board, "--target", "esp32") == 2


def test_an_export_runs_no_program_but_qemu_and_a_gcc(run, tmp_path, capsys):
    """A folder from elsewhere may hold any board.toml."""
    board = own_board(tmp_path, "qemu-m4", "mine")
    assert call(export_main, run, "--board", board, "--out", tmp_path / "o") == 0
    carried = tmp_path / "o" / "board.toml"
    assert carried.read_bytes() == board.read_bytes()
    carried.write_text(carried.read_text().replace('"qemu-system-arm"', '"/bin/sh"'))
    assert call(check_main, tmp_path / "o") == 1
    assert "board.toml:" in (said := capsys.readouterr().err)
    assert "'/bin/sh' is not QEMU's" in said


def test_one_folder_is_for_one_board(run, tmp_path, capsys):
    board = own_board(tmp_path, "feather_m4", "feather_m4", ("size = 507_904", "size = 262_144"))
    assert call(export_main, run, "--board", board, "--out", tmp_path / "o") == 0
    assert call(export_main, run, "--target", "feather_m4", "--out", tmp_path / "o") == 1
    assert "holds an export for a board file, not for this one" in capsys.readouterr().err
    assert call(export_main, run, "--target", "feather_m4", "--out", tmp_path / "p") == 0
    assert call(export_main, run, "--board", board, "--out", tmp_path / "p") == 1
    assert "holds an export for the board of that name that comes with fedtiny" in capsys.readouterr().err
    assert call(export_main, run, "--board", board, "--out", tmp_path / "o") == 0


def test_what_start_up_takes_is_known_of_boards_alike(tmp_path):
    assert board_sizes(load_device_file(own_board(tmp_path, "qemu-xtensa", "x"))) == board_sizes(
        load_device("qemu-xtensa")
    )
    assert board_sizes(load_device_file(own_board(tmp_path, "qemu-m4", "m"))) == board_sizes(load_device("qemu-m4"))
    assert board_sizes(load_device_file(own_board(tmp_path, "feather_m4", "f"))) is None
