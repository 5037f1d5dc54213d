"""--project plain: C files that need nothing of ours to be compiled, linked and run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import call
from fedtiny_export.assets import asset_root
from fedtiny_export.board.check import read_log
from fedtiny_export.board.devices import all_devices, load_device
from fedtiny_export.board.project import build_settings
from fedtiny_export.cli import check_main, export_main
from runs import make_run
from stand_ins import STRICT


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("plain")
    run = make_run(place / "run")
    assert call(export_main, run, "--target", "qemu-m4", "--project", "plain", "--out", place / "out") == 0
    return place / "out"


def parts(folder: Path) -> tuple[list[Path], list[str]]:
    """Sources and include folders, as README.md names them."""
    sources = [*sorted((folder / "fedtiny" / "src").rglob("*.c")), *sorted((folder / "app").glob("*.c"))]
    return sources, [f"-I{folder / place}" for place in ("fedtiny/include", "fedtiny/src", "app")]


def test_there_are_c_files_and_a_readme_and_nothing_of_platformio(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("README.md", "fedtiny", "app", "golden.npz", "model.ftm", "model.tflite"),
        *("report.html", "report.json", "report.txt"),
    }
    text = (folder / "README.md").read_text()
    assert "qemu-m4" in text
    assert "target_sources(app PRIVATE ${fedtiny_sources})" in text
    for place in ("fedtiny/include", "fedtiny/src", "app/fedtiny_app.h"):
        assert place in text
        assert (folder / place).exists()


CPUS = {
    "cortex-m0": [],
    "cortex-m4": ["-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"],
    "cortex-m33": [],
    "cortex-m55": ["-mfloat-abi=hard"],
}


@pytest.mark.parametrize("cpu", CPUS)
def test_every_file_compiles_strictly(folder, tmp_path, need_tool, cpu):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    sources, includes = parts(folder)
    command = ["arm-none-eabi-gcc", f"-mcpu={cpu}", "-mthumb", *CPUS[cpu], *STRICT, "-Os", *includes, "-c"]
    done = subprocess.run([*command, *map(str, sources)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MAIN = """
#include <stdio.h>
#include "fedtiny_app.h"
#include "ft_port.h"
int putchar(int character) { ft_port_put((char)character); return character; }
int main(void) { return fedtiny_run() == -1 && fedtiny_start() == 0 ? 50 + fedtiny_run() : 1; }
"""


def test_it_links_with_a_main_of_the_user_s_own_and_runs(folder, tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    device = load_device("qemu-m4")
    settings = build_settings(device)
    boards = asset_root() / "firmware" / "boards"
    (tmp_path / "main.c").write_text(MAIN)
    sources, includes = parts(folder)
    sources += [tmp_path / "main.c", *(boards / "common").glob("*.c"), *(boards / "cortex-m").glob("*.c")]
    flags = [*settings.cflags, "-std=c99", "-Os", "-ffunction-sections", "-fdata-sections", *includes]
    flags += [f"-I{boards / 'common'}", *settings.link_flags, "-T", str(boards / "common" / "board.ld")]
    elf = tmp_path / "f.elf"
    done = subprocess.run(
        ["arm-none-eabi-gcc", *flags, *map(str, sources), "-o", str(elf)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    command = device.emulator.command(str(elf))
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    said = read_log(ran.stdout, (folder / "model.ftm").read_bytes())
    assert said.golden_equal
    best = int(np.load(folder / "golden.npz")["outputs"][0].argmax())
    assert ran.returncode == 50 + best
    assert f"answer: output {best} (class {best})" in ran.stdout


@pytest.mark.parametrize("board", [device.id for device in all_devices() if device.emulator is None])
def test_any_board_can_have_one(tmp_path, board):
    from fedtiny_export.board.project import plain_files
    from small_project import artifacts

    files = plain_files(load_device(board), artifacts())
    assert Path("fedtiny/src/model.c") in files
    assert not any(path.parts[0] in ("lib", "src", "platformio.ini", "include") for path in files)


def test_a_second_export_keeps_the_user_s_files(folder):
    app = folder / "app" / "fedtiny_app.c"
    before = app.read_text()
    app.write_text("/* mine */\n")
    (folder / "fedtiny" / "src" / "stale.c").write_text("int stale;\n")
    run = folder.parent / "run"
    assert call(export_main, run, "--target", "qemu-m4", "--project", "plain", "--out", folder) == 0
    assert app.read_text() == "/* mine */\n"
    assert not (folder / "fedtiny" / "src" / "stale.c").exists()
    app.write_text(before)


def test_one_folder_holds_one_kind(folder, capsys):
    assert call(export_main, folder.parent / "run", "--target", "qemu-m4", "--out", folder) == 1
    assert "holds a plain project" in capsys.readouterr().err


def test_it_is_checked_on_the_board_only(folder, capsys):
    assert call(check_main, folder) == 0
    assert '"run": null' in (folder / "report.json").read_text()
    capsys.readouterr()
    assert call(check_main, folder, "--require-run") == 6
    assert "use the board, with --serial or --log" in capsys.readouterr().err


def test_it_is_for_our_runtime(tmp_path, capsys):
    assert call(export_main, "x.onnx", "--target", "esp32", "--project", "plain", "--runtime", "tflm") == 2
    assert "--project plain is for the runtime ft" in capsys.readouterr().err
