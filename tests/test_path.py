"""The whole path as its users walk it: federated training, export, the emulated board; and the same bytes twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest

PROGRAMS = Path(sys.executable).parent
SHORT = ("--rounds", "3", "--local-epochs", "1", "--pretrain-epochs", "2", "--tune-epochs", "1")


def call(program: str, *arguments: object) -> str:
    command = [str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content for name, content in files.items() if name != "timing.json"}


def test_one_seed_gives_one_run_and_one_export_another_seed_another(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        call("fedtiny-train", *SHORT, "--seed", seed, "--out", tmp_path / name / "run")
        call("fedtiny-export", tmp_path / name / "run", "--target", "esp32", "--out", tmp_path / name / "esp32")
    for folder in ("run", "esp32"):
        assert tree(tmp_path / "a" / folder) == tree(tmp_path / "b" / folder)
    for model in ("run/model.onnx", "esp32/model.ftm", "esp32/model.tflite"):
        assert (tmp_path / "a" / model).read_bytes() != (tmp_path / "c" / model).read_bytes()


@pytest.fixture(scope="module")
def default_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("default") / "run"
    call("fedtiny-train", "--out", folder)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("default-run")
def test_the_default_run_reaches_93_percent_at_10_percent_density(default_run):
    summary = json.loads((default_run / "summary.json").read_text())
    assert summary["accuracy"] >= 0.93
    assert summary["test_samples"] == 355, "the whole test split"
    assert 0.0995 < summary["density"] <= 0.1


@pytest.mark.slow
@pytest.mark.xdist_group("default-run")
def test_int8_is_within_one_point_of_float_on_the_whole_test_split(default_run, tmp_path):
    from fedtiny_train.data import digits

    data = digits.read()
    np.savez(tmp_path / "test.npz", x=data.x_test, y=data.y_test)
    out = tmp_path / "out"
    call("fedtiny-export", default_run, "--target", "esp32", "--out", out, "--eval", tmp_path / "test.npz")
    report = json.loads((out / "report.json").read_text())
    summary = json.loads((default_run / "summary.json").read_text())
    assert report["accuracy"]["samples"] == 355
    assert report["accuracy"]["float"] == pytest.approx(summary["accuracy"]), "the exporter reads what was trained"
    assert report["accuracy"]["int8"] >= report["accuracy"]["float"] - 0.01


@pytest.mark.slow
@pytest.mark.xdist_group("default-run")
def test_the_trained_network_runs_on_the_emulated_board_as_in_tflite_micro(default_run, tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    out, inputs = tmp_path / "out", np.random.default_rng().integers(-128, 128, (100, 8, 8, 1), np.int8)
    np.save(tmp_path / "x.npy", inputs)
    call("fedtiny-export", default_run, "--target", "qemu-m4", "--out", out)
    call("fedtiny-check", out, "--inputs", tmp_path / "x.npy", "--outputs", tmp_path / "y.npy", "--require-run")
    assert np.array_equal(
        np.load(tmp_path / "y.npy"), oracles.tflite_micro((out / "model.tflite").read_bytes(), inputs)
    )
