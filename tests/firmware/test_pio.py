"""PlatformIO itself, without its registry: emulated boards build, run, are tested; real boards' files are in order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pio_offline
import pytest
from fedtiny_export.board.check import measure, read_log
from fedtiny_export.board.devices import all_devices, load_device
from fedtiny_export.board.elf import read_image
from fedtiny_export.board.emulator import build
from fedtiny_export.board.project import project_files
from small_project import artifacts, write_export

REAL_BOARDS = [device.id for device in all_devices() if device.platformio]
EMULATED = [device.id for device in all_devices() if device.emulator]
FAST = ["qemu-m4"]
PIO = Path(sys.executable).with_name("pio")


@pytest.fixture(scope="module")
def offline(tmp_path_factory, need_tool):
    """The environment of a PlatformIO that downloads nothing. A core folder of its own: two never wait for another."""
    need_tool(str(PIO), "none: pip install platformio")
    return {**os.environ, **pio_offline.prepare(tmp_path_factory.mktemp("pio-core"))}


@pytest.fixture(scope="module")
def project(tmp_path_factory, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    folder = tmp_path_factory.mktemp("pio") / "qemu-m4"
    write_export(folder, "qemu-m4")
    return folder


@pytest.fixture(
    scope="module",
    params=[board if board in FAST else pytest.param(board, marks=pytest.mark.slow) for board in EMULATED],
)
def emulated(request, tmp_path_factory, need_tool):
    """A project for each emulated board; its compiler and its emulator are here."""
    emulator = load_device(request.param).emulator
    assert emulator is not None
    need_tool(f"{emulator.toolchain}gcc", f"with {emulator.toolchain}gcc")
    need_tool(emulator.program, f"with {emulator.program}")
    folder = tmp_path_factory.mktemp("pio") / request.param
    write_export(folder, request.param)
    return folder


def pio(environment, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PIO), *arguments, "-d", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_pio_run_gives_the_sections_of_the_direct_build(offline, project):
    done = pio(offline, project, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr.lower()
    device = load_device("qemu-m4")
    by_pio = read_image(project / ".pio" / "build" / "qemu-m4" / "firmware.elf", device)
    direct = read_image(build(project, device).elf, device)
    assert by_pio.sections == direct.sections
    assert f"used {by_pio.flash_bytes} bytes" in done.stdout
    assert f"used {by_pio.ram_bytes} bytes" in done.stdout


def test_pio_upload_runs_the_firmware(offline, emulated):
    done = pio(offline, emulated, "run", "-t", "upload")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr.lower()
    assert read_log(done.stdout).golden_equal


def test_pio_test_runs_the_vectors_in_the_emulator(offline, emulated):
    done = pio(offline, emulated, "test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS golden_outputs" in done.stdout
    assert "3 test cases: 3 succeeded" in done.stdout


@pytest.mark.parametrize(
    ("name", "before", "said"),
    [
        ("golden.c", "ft_golden_outputs[FT_GOLDEN_VECTORS * FT_GOLDEN_OUTPUT_WORDS] = {\n    0x", "golden_outputs"),
        ("model.c", "= {\n    0x", "model_opens"),
    ],
    ids=["output", "model"],
)
def test_pio_test_fails_where_the_device_is_wrong(name, before, said, offline, tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    write_export(tmp_path, "qemu-m4")
    path = tmp_path / "lib/fedtiny/src" / name
    text = path.read_text()
    at = text.index(before) + len(before)
    path.write_text(f"{text[:at]}{int(text[at], 16) ^ 1:X}{text[at + 1 :]}")
    done = pio(offline, tmp_path, "test")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAIL {said}" in done.stdout


def test_pio_test_says_that_a_firmware_crashed(offline, tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    write_export(tmp_path, "qemu-m4")
    main = tmp_path / "test/test_model/test_main.c"
    crash = "    *(volatile int *)0xF0000000u = 1;\n    ft_port_text("
    main.write_text(main.read_text().replace("    ft_port_text(", crash, 1))
    done = pio(offline, tmp_path, "test")
    assert done.returncode == 1
    assert "FAULT exception" in done.stdout
    assert "ERRORED" in done.stdout + done.stderr


def test_pio_check_finds_nothing_in_a_new_project(offline, project, need_tool):
    need_tool("cppcheck", "cppcheck")
    done = pio(offline, project, "check", "--fail-on-defect", "low")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No defects found" in done.stdout
    everything = ("--src-filters", "+<src/> +<lib/> +<test/>", "--fail-on-defect", "medium")
    done = pio(offline, project, "check", *everything, "--fail-on-defect", "high")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lib/fedtiny/src/ft_model.c" in done.stdout, "the runtime's files were not read"


def test_pio_check_finds_what_the_user_gets_wrong(offline, tmp_path, need_tool):
    need_tool("cppcheck", "cppcheck")
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    write_export(tmp_path, "qemu-m4")
    with (tmp_path / "src/main.c").open("a") as file:
        file.write("\nint wrong(void);\nint wrong(void) {\n    int values[4] = {0};\n    return values[7];\n}\n")
    done = pio(offline, tmp_path, "check", "--fail-on-defect", "high")
    assert done.returncode == 1
    assert "arrayIndexOutOfBounds" in done.stdout


def test_measuring_with_pio_gives_what_measuring_directly_gives(offline, project, need_tool, monkeypatch):
    need_tool("qemu-system-arm", "qemu-system-arm")
    monkeypatch.setenv("PLATFORMIO_CORE_DIR", offline["PLATFORMIO_CORE_DIR"])
    device = load_device("qemu-m4")
    assert measure(project, device, None, use_pio=True) == measure(project, device, None)


def test_each_project_uses_its_own_platform(offline, project, tmp_path, need_tool):
    """PlatformIO remembers a linked platform by name for all projects; a platform found in the project it does not."""
    assert pio(offline, project, "run").returncode == 0
    write_export(tmp_path, "qemu-m4")
    start = tmp_path / "platforms" / "fedtiny_emulator" / "support" / "start.c"
    start.write_text("#error this project's own\n")
    assert "#error this project's own" in pio(offline, tmp_path, "run").stderr


def test_platformio_finds_no_fault_in_any_platformio_ini(tmp_path):
    """What `pio project config --lint` calls, for all real boards at once."""
    config = pytest.importorskip("platformio.project.config")
    for board in REAL_BOARDS:
        device = load_device(board)
        path = tmp_path / f"{board}.ini"
        path.write_bytes(project_files(device, artifacts())[PurePosixPath("platformio.ini")])
        assert config.ProjectConfig.lint(str(path)) == {"errors": [], "warnings": []}, board
        found = config.ProjectConfig.get_instance(str(path))
        assert found.envs() == [board]
        for name in ("platform", "board"):
            assert found.get(f"env:{board}", name) == getattr(device.platformio, name)
    wrong = tmp_path / "wrong.ini"
    wrong.write_text("[env:x]\nplatfrom = y\n")
    assert config.ProjectConfig.lint(str(wrong))["warnings"]


def test_pio_reads_a_real_board_s_project(offline, tmp_path):
    write_export(tmp_path, "nucleo_l476rg")
    done = pio(offline, tmp_path, "project", "config", "--lint")
    assert done.returncode == 0
    assert "free from linting errors" in done.stdout, done.stdout
    shown = pio(offline, tmp_path, "project", "config").stdout.split()
    assert shown[shown.index("board_upload.maximum_ram_size") + 2] == "98304"
