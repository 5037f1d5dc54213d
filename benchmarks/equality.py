"""TensorFlow Lite Micro's answers, byte for byte, on every emulated processor.

Each int8 .tflite file is exported for each emulated board, built, and run on random inputs of several amplitudes;
TensorFlow Lite Micro runs the file as it was given. Where a network does not fit a board that is said.

    python benchmarks/equality.py [--inputs 100] [--boards qemu-m4 ...] [FILE.tflite ...]
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
from fedtiny_export.board.devices import all_devices  # noqa: E402
from fedtiny_export.graph.ir import Graph  # noqa: E402
from fedtiny_export.tflite.read import read_tflite  # noqa: E402
from oracles import tflite_micro  # noqa: E402

BOARDS = [device.id for device in all_devices() if device.emulator]
FITS, TOO_LARGE = 0, 3
ARENA = 1 << 21


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of our commands."""
    code = f"from fedtiny_export.cli import {name}; {name}()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def random_inputs(graph: Graph, count: int) -> np.ndarray:
    """Return int8 inputs of several amplitudes around the zero point, so that nothing saturates everywhere."""
    tensor = graph.tensors[graph.input]
    assert tensor.quant is not None
    random = np.random.default_rng(0)
    steps = [random.normal(0, 2.0 ** (1 + index % 7), tensor.shape) for index in range(count)]
    return np.clip(np.round(np.stack(steps)) + tensor.quant.zero_point, -128, 127).astype(np.int8)


def verdict(model: Path, board: str, inputs: np.ndarray, expected: np.ndarray) -> str:
    """Return how many answers of a board are TensorFlow Lite Micro's, or why there are none."""
    with tempfile.TemporaryDirectory() as name:
        folder, given, made = Path(name) / "export", Path(name) / "x.npy", Path(name) / "y.npy"
        exported = command("export_main", model, "--target", board, "--out", folder)
        if exported.returncode == TOO_LARGE:
            over = [f for f in json.loads((folder / "report.json").read_text())["figures"] if f["limit"] is not None]
            worst = max(over, key=lambda f: f["value"] - f["limit"])
            return f"{worst['value'] - worst['limit']:,} B too large ({worst['name']})"
        if exported.returncode != FITS:
            return exported.stderr.strip().splitlines()[-1]
        np.save(given, inputs)
        ran = command("check_main", folder, "--inputs", given, "--outputs", made, "--require-run")
        if ran.returncode:
            return ran.stderr.strip().splitlines()[-1]
        answers = np.load(made).reshape(len(inputs), -1)
    return f"{int((answers == expected).all(axis=1).sum())} of {len(inputs)}"


def main() -> None:
    """Print one line for every model and board; exit 1 where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=sorted((HERE / "models").glob("*.tflite")))
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--boards", nargs="+", default=BOARDS, choices=BOARDS)
    options = parser.parse_args()
    sound = True
    for model in options.models:
        inputs = random_inputs(read_tflite(model), options.inputs)
        expected = tflite_micro(model.read_bytes(), inputs, ARENA)
        print(f"{model.stem}: {len(np.unique(expected, axis=0))} different answers", flush=True)
        for board in options.boards:
            said = verdict(model, board, inputs, expected)
            sound &= said == f"{options.inputs} of {options.inputs}" or "too large" in said
            print(f"  {board:12} {said}", flush=True)
    raise SystemExit(0 if sound else 1)


if __name__ == "__main__":
    main()
