"""TensorFlow Lite Micro's answers, byte for byte, on every emulated processor, and what was planned beside what is.

Each model, an int8 .tflite file or a run folder, is exported for each board. On an emulated one it is built and run on
random inputs of several amplitudes; TensorFlow Lite Micro runs the file as it was given, or a run's model.tflite.
`flash` is how far the ELF file is from the plan, which was written before any compiler ran, `stack` how many bytes the
high-water mark lies below it; static RAM and arena are those planned, or it is said. Where a network does not fit, exit
code 3 is what is asked for. For real boards every source is compiled by the stand-in of their processor.

    python benchmarks/equality.py [--inputs 100] [--boards qemu-m4 esp32 ...] --models RUN FILE.tflite ...
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from fedtiny_export.board.devices import all_devices, load_device  # noqa: E402
from fedtiny_export.tflite.read import read_tflite  # noqa: E402
from oracles import tflite_micro  # noqa: E402
from stand_ins import compile_project  # noqa: E402

EVERY = [device.id for device in all_devices()]
TOO_LARGE, ARENA = 3, 1 << 21
EXACT = ("ram.arena", "ram.static", "flash.model")


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of our commands."""
    code = f"from fedtiny_export.cli import {name}; {name}()"
    called = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(called, capture_output=True, text=True, check=False)


def figures(folder: Path, planned: bool) -> dict[str, int]:
    """Return an export's figures by name, those planned or those measured."""
    found = json.loads((folder / "report.json").read_text())["figures"]
    return {f["name"]: f["value"] for f in found if (f["source"] == "planned") == planned and f["value"] is not None}


def random_inputs(model: Path, count: int) -> np.ndarray:
    """Return int8 inputs of several amplitudes around the zero point, so that nothing saturates everywhere."""
    graph = read_tflite(model)
    tensor = graph.tensors[graph.input]
    assert tensor.quant is not None
    random = np.random.default_rng(0)
    steps = [random.normal(0, 2.0 ** (1 + index % 7), tensor.shape) for index in range(count)]
    return np.clip(np.round(np.stack(steps)) + tensor.quant.zero_point, -128, 127).astype(np.int8)


def verdict(model: Path, board: str, count: int, folder: Path) -> str:
    """Return what came of a model on a board, in a few words; those that begin with FAILED are failures."""
    exported = command("export_main", model, "--target", board, "--out", folder / "export")
    if exported.returncode == TOO_LARGE:
        return exported.stderr.strip().splitlines()[1]
    if exported.returncode:
        return "FAILED: " + exported.stderr.strip().splitlines()[-1]
    if load_device(board).emulator is None:
        complaints = compile_project(folder / "export", load_device(board))[1]
        return f"FAILED: {complaints[0]}" if complaints else "exported, compiled by a stand-in, fits"
    plan = figures(folder / "export", planned=True)
    original = model if model.is_file() else folder / "export" / "model.tflite"
    inputs = random_inputs(original, count)
    np.save(folder / "x.npy", inputs)
    ran = command("check_main", folder / "export", "--inputs", folder / "x.npy", "--outputs", folder / "y.npy")
    if ran.returncode:
        return "FAILED: " + ran.stderr.strip().splitlines()[-1]
    expected = tflite_micro(original.read_bytes(), inputs, ARENA)
    equal = int((np.load(folder / "y.npy").reshape(count, -1) == expected).all(axis=1).sum())
    real = figures(folder / "export", planned=False)
    flash = 100 * (real["flash.total"] / plan["flash.total"] - 1)
    off = [f"{name} {plan[name]:,} is {real[name]:,}" for name in EXACT if plan[name] != real[name]]
    stack = (
        f", stack {plan['ram.stack'] - real['ram.stack']:+d} B" if "ram.stack" in plan and "ram.stack" in real else ""
    )
    failed = "FAILED: " if equal < count or off or abs(flash) > 1 else ""
    said = (
        f"{failed}{equal} of {count} equal ({len(np.unique(expected, axis=0))} different), flash {flash:+.2f} %{stack}"
    )
    return ", ".join([said, *off])


def main() -> None:
    """Print one line for every model and board; exit 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, default=sorted((HERE / "models").glob("*.tflite")))
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--boards", nargs="+", default=EVERY, choices=EVERY, metavar="BOARD")
    options = parser.parse_args()
    failed = 0
    for model in options.models:
        print(f"{model.name}", flush=True)
        for board in options.boards:
            with tempfile.TemporaryDirectory() as folder:
                said = verdict(model, board, options.inputs, Path(folder))
            failed += said.startswith("FAILED")
            print(f"  {board:20} {said}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
