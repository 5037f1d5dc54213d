"""What a user relies on: the emulated Cortex-M4 gives TFLite Micro's bytes, inside the memory that was planned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
from commands import call
from fedtiny_export.cli import check_main, export_main
from runs import make_run


@pytest.fixture(scope="module", params=[0.1, 1.0], ids=["sparse", "dense"])
def exported(request, tmp_path_factory, need_tool) -> Path:
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    folder = tmp_path_factory.mktemp("device")
    make_run(folder / "run", seed=3, density=request.param)
    assert call(export_main, folder / "run", "--target", "qemu-m4", "--out", folder / "out") == 0
    return folder / "out"


def figures(folder: Path) -> dict[tuple[str, str], int]:
    report = json.loads((folder / "report.json").read_text())
    return {(f["name"], f["source"]): f["value"] for f in report["figures"]}


def test_a_hundred_fresh_inputs_give_tflite_micros_bytes(exported, tmp_path):
    inputs = np.random.default_rng().integers(-128, 128, (100, 8, 8, 1), np.int8)
    np.save(tmp_path / "x.npy", inputs)
    assert call(check_main, exported, "--inputs", tmp_path / "x.npy", "--outputs", tmp_path / "y.npy") == 0
    outputs = np.load(tmp_path / "y.npy")
    expected = oracles.tflite_micro((exported / "model.tflite").read_bytes(), inputs)
    assert len(np.unique(expected)) > 20
    assert np.array_equal(outputs, expected)


def test_measured_memory_is_what_was_planned_before_any_compiler_ran(exported):
    planned = {name: value for (name, source), value in figures(exported).items() if source == "planned"}
    assert call(check_main, exported) == 0
    after = figures(exported)
    assert {n: v for (n, s), v in after.items() if s == "planned"} == planned, "planned figures are never rewritten"
    for name in ("flash.model", "ram.arena"):
        assert after[name, "measured-elf"] == planned[name]
    for name in ("flash.code", "flash.total", "ram.total"):
        assert abs(after[name, "measured-elf"] / planned[name] - 1) < 0.02
    assert after["ram.stack", "measured-run"] <= planned["ram.stack"]
    assert abs(after["instructions", "measured-run"] / planned["instructions"] - 1) < 0.15


def test_parts_add_up_to_the_elf_file(exported):
    call(check_main, exported)
    found = {name: value for (name, source), value in figures(exported).items() if source == "measured-elf"}
    parts = sum(value for name, value in found.items() if name.startswith("flash.") and name != "flash.total")
    assert parts == found["flash.total"]
    assert found["ram.arena"] + found["ram.static"] + found["ram.stack_reserved"] == found["ram.total"]


def test_no_buffer_at_run_time_could_hold_the_weights(exported):
    """RAM is the arena, the stack and a few words. Scratch is a window of input rows and a channel's weights."""
    call(check_main, exported)
    found = {name: value for (name, source), value in figures(exported).items() if source == "measured-elf"}
    report = json.loads((exported / "report.json").read_text())
    weights = sum(layer["weights"] for layer in report["layers"])
    assert found["ram.static"] < weights / 10
    sections = (exported / ".fedtiny/firmware.map").read_text()
    assert ".ft_arena" in sections
    scratch = [b["size"] for b in report["arena"] if b["scratch"]]
    assert max(scratch) < weights / 2


def test_sparse_is_smaller_and_needs_fewer_instructions_than_the_same_network_filled(tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    import onnx
    from onnx import numpy_helper

    run = make_run(tmp_path / "sparse", seed=1, density=0.1, widths=(12, 16))
    filled = make_run(tmp_path / "filled", seed=1, density=0.1, widths=(12, 16))
    model = onnx.load(filled / "model.onnx")
    random = np.random.default_rng(0)
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer).copy()
        if initializer.name.endswith("weight"):
            small = random.choice([-1, 1], values.shape) * np.abs(values).max() * 0.02
            values = np.where(values == 0, small, values).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    onnx.save(model, filled / "model.onnx")
    found = {}
    for name, folder in (("sparse", run), ("filled", filled)):
        assert call(export_main, folder, "--target", "qemu-m4", "--out", tmp_path / f"{name}-out") == 0
        assert call(check_main, tmp_path / f"{name}-out") == 0
        found[name] = figures(tmp_path / f"{name}-out")
    for figure in (("flash.model", "measured-elf"), ("flash.total", "measured-elf"), ("instructions", "measured-run")):
        assert found["sparse"][figure] < 0.8 * found["filled"][figure], figure


def test_a_device_that_answers_differently_exits_5(exported, tmp_path, capsys):
    golden = dict(np.load(exported / "golden.npz"))
    original = (exported / "golden.npz").read_bytes()
    golden["outputs"] = golden["outputs"].copy()
    golden["outputs"].reshape(-1)[3] ^= 1
    np.savez(exported / "golden.npz", **golden)
    try:
        assert call(check_main, exported) == 5
        assert "golden outputs differ: vector 0 byte 3" in capsys.readouterr().err
    finally:
        (exported / "golden.npz").write_bytes(original)
