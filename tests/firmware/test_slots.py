"""Models in the field: two slots of flash, and power that goes at any byte."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from commands import call
from fedtiny_export.assets import asset_root
from fedtiny_export.board.devices import load_device
from fedtiny_export.board.elf import read_image
from fedtiny_export.board.emulator import build
from fedtiny_export.cli import export_main
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.file import write_ftm
from networks import residual
from runs import make_run
from small_project import write_export

BITMAP = {kernel: 10**9 * (kernel is not Kernel.CONV_BITMAP) for kernel in Kernel}
SLOT_BYTES, UNIT = 8192, 32


def simulated(host_runtime, folder: Path, old: bytes, new: bytes, *limits: int) -> subprocess.CompletedProcess[str]:
    (folder / "old.ftm").write_bytes(old)
    (folder / "new.ftm").write_bytes(new)
    library = asset_root() / "firmware/templates/platformio/common/lib/fedtiny"
    flags = (f"-I{library / 'include'}", str(library / "src" / "ft_slots.c"))
    command = [host_runtime.program(*flags, main="slots.c"), folder / "old.ftm", folder / "new.ftm", *limits]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def test_power_lost_at_any_byte_leaves_a_working_model(host_runtime, tmp_path):
    old, new = (write_ftm(residual(seed=1, density=density), BITMAP) for density in (0.3, 0.4))
    assert len(old.data) != len(new.data)
    arena = max(old.plan.arena_bytes, new.plan.arena_bytes)
    if new.plan.arena_bytes < arena:
        old, new = new, old
    done = simulated(host_runtime, tmp_path, old.data, new.data, arena, 64, 5)
    assert done.returncode == 0, done.stdout + done.stderr
    updates = 2 * (2 * (SLOT_BYTES + UNIT) + sum(len(f.data) + -len(f.data) % UNIT for f in (old, new)))
    assert int(done.stdout) == updates, "every byte of four updates"


def test_what_no_firmware_asks_for_costs_no_flash(tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    write_export(tmp_path, "qemu-m4")
    image = read_image(build(tmp_path, load_device("qemu-m4")).elf, load_device("qemu-m4"))
    assert not [symbol.name for symbol in image.symbols if "slot" in symbol.name]


@pytest.fixture(scope="module")
def flashed(tmp_path_factory) -> Path:
    """An export whose firmware is in the field, with one encoding and an arena of its own."""
    folder = tmp_path_factory.mktemp("field")
    run = make_run(folder / "run", density=0.3)
    assert call(export_main, run, "--target", "qemu-m4", "--encoding", "bitmap", "--out", folder / "out") == 0
    return folder / "out"


def test_a_model_that_the_firmware_takes_is_written(flashed, tmp_path, capsys):
    run = make_run(tmp_path / "run", seed=0, density=0.2)
    more = ("--encoding", "bitmap", "--compatible-with", flashed)
    assert call(export_main, run, "--target", "qemu-m4", *more, "--out", tmp_path / "out") == 0
    assert "can replace the model of" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.ftm").exists()


REFUSED = {
    "another kernel": (("--encoding", "gap"), {}, "needs kernels that the firmware lacks: conv_gap"),
    "a larger arena": (("--encoding", "bitmap"), {"widths": (16, 24)}, "bytes of arena; the firmware has"),
    "another input": (("--encoding", "bitmap"), {"side": 6}, "takes 6x6x1; the firmware gives 8x8x1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_the_firmware_would_refuse_is_refused_here(flashed, tmp_path, capsys, case):
    more, network, reason = REFUSED[case]
    run = make_run(tmp_path / "run", **{"density": 0.3, **network})
    out = tmp_path / "out"
    code = call(export_main, run, "--target", "qemu-m4", *more, "--compatible-with", flashed, "--out", out)
    assert code == 1
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not out.exists(), "nothing is written"


def test_what_is_no_export_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert call(export_main, run, "--target", "qemu-m4", "--compatible-with", tmp_path, "--out", tmp_path / "o") == 1
    assert "model.ftm" in capsys.readouterr().err
