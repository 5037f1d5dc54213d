"""MLPerf Tiny's image classification network on the emulated Cortex-M4, at several densities, beside TFLite Micro.

Weights are random (the first convolution is dense): what is measured does not depend on their values, but accuracy is
no subject here. TFLite Micro's figures were measured once, with CMSIS-NN and int8 registrations, on the same emulator.

    python benchmarks/runtime.py [--out result.json] [DENSITY ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from fedtiny_export import reference
from fedtiny_export.check import measure
from fedtiny_export.code_sizes import load_board_sizes, load_code_sizes
from fedtiny_export.devices import load_device
from fedtiny_export.export import make_artifacts
from fedtiny_export.ftm import write_ftm
from fedtiny_export.project import write_project

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from networks import ic01, samples

BOARD = "qemu-m4"
COLUMNS = ("instructions", "arena", "stack", "runtime code", "model")
# the same at every density: it stores and multiplies zeros
TFLITE_MICRO = {"instructions": 29_863_147, "arena": 54_996, "stack": 1_844, "runtime code": 51_088, "model": 98_496}


def measured(density: float, folder: Path) -> dict[str, int]:
    """Build, run and compare one network; its figures."""
    device, graph = load_device(BOARD), ic01(density)
    sizes, board = load_code_sizes(device.cpu), load_board_sizes(BOARD)
    assert sizes is not None
    assert board is not None
    ftm = write_ftm(graph, sizes.kernel_bytes())
    inputs = samples(graph, 4)
    outputs = reference.run(graph, inputs)
    np.savez(folder / "golden.npz", inputs=inputs, outputs=outputs)
    labels = tuple(str(index) for index in range(outputs[0].size))
    write_project(folder, device, make_artifacts(graph, ftm, b"", inputs, outputs, labels))
    found = measure(folder, device, None)
    if found is None or not found.golden_equal:
        raise SystemExit(f"density {density:g}: not run, or not the reference's bytes: {found}")
    figures = {name: value or 0 for name, value, *_ in found.figures}
    return {
        "instructions": figures["instructions"],
        "arena": figures["ram.arena"],
        "stack": figures["ram.stack"],
        "runtime code": figures["flash.code"] - board.code,
        "model": figures["flash.model"],
    }


def main() -> None:
    """Print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("densities", nargs="*", type=float, default=[1.0, 0.1, 0.05, 0.01])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table: dict[str, dict[str, int]] = {}
    print(f"{'':<14}" + "".join(f"{name:>14}" for name in COLUMNS), flush=True)
    for density in options.densities:
        with tempfile.TemporaryDirectory() as name:
            table[f"{density:g}"] = measured(density, Path(name))
    table["TFLite Micro"] = TFLITE_MICRO
    for name, row in table.items():
        print(f"{name:<14}" + "".join(f"{row[column]:>14,}" for column in COLUMNS))
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
