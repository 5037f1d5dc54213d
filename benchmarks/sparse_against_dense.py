"""One pruned network, and the same network with its zeros filled by small numbers: flash, RAM, instructions.

Both run on the emulated Cortex-M4 and must give TFLite Micro's bytes. Beside them the size of the .tflite file, which
does not change with zeros.

    python benchmarks/sparse_against_dense.py RUN [--out result.json]     # RUN: a run folder of fedtiny-train
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
from fedtiny_export.board.budget import Report
from fedtiny_export.board.compare import check_folder
from fedtiny_export.board.devices import load_device
from fedtiny_export.export import make_export, write_export
from fedtiny_export.source import read_source
from onnx import numpy_helper

BOARD = "qemu-m4"
FIGURES = (
    ("flash.model", "measured-elf"),
    ("flash.code", "measured-elf"),
    ("flash.total", "measured-elf"),
    ("ram.arena", "measured-elf"),
    ("ram.stack", "measured-run"),
    ("instructions", "measured-run"),
)


def filled(run: Path, target: Path) -> Path:
    """Copy a run with every zero weight replaced by a fiftieth of its layer's largest, of random sign."""
    shutil.copytree(run, target)
    model = onnx.load(target / "model.onnx")
    random = np.random.default_rng(0)
    weights = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            values = numpy_helper.to_array(initializer)
            small = random.choice([-1, 1], values.shape) * np.abs(values).max() * 0.02
            changed = np.where(values == 0, small, values).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(changed, initializer.name))
    onnx.save(model, target / "model.onnx")
    return target


def measure(run: Path, target: Path) -> tuple[Report, int]:
    """Export and check one run; return its report and the size of its .tflite file."""
    device = load_device(BOARD)
    source = read_source(run, calibration=None, evaluation=None)
    exported = make_export(source, device, None)
    write_export(target, exported, device, source.labels)
    checked = check_folder(target, inputs=None, outputs=None, log=None, use_pio=False, require_run=True)
    if checked.problems:
        raise SystemExit(f"{run}: {checked.problems}")
    return checked.report, len(exported.tflite)


def main() -> None:
    """Print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = {"sparse": options.run, "filled": filled(options.run, folder / "filled")}
        table: dict[str, dict[str, float]] = {}
        for case, run in cases.items():
            report, tflite = measure(run, folder / f"{case}-out")
            found = {(f.name, f.source): f.value for f in report.figures}
            table[case] = {"density": report.model.density, "tflite file": tflite}
            table[case] |= {figure: found[figure, source] or 0 for figure, source in FIGURES}
    print(f"{BOARD}, {platform.machine()} host, run {options.run}")
    print(f"{'':<14} {'sparse':>10} {'filled':>10} {'ratio':>7}")
    for figure in table["sparse"]:
        a, b = table["sparse"][figure], table["filled"][figure]
        print(
            f"{figure:<14} {a:>10,.4g} {b:>10,.4g} {a / b:>7.2f}"
            if a < 1
            else f"{figure:<14} {a:>10,} {b:>10,} {a / b:>7.2f}"
        )
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
