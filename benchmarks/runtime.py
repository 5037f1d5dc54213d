"""MLPerf Tiny's networks on the emulated Cortex-M4, image classification at several densities, beside TFLite Micro.

Weights are random (the first convolution is dense): what is measured does not depend on their values, but accuracy is
no subject here. TFLite Micro's figures were measured once, with CMSIS-NN and int8 registrations, on the same emulator.

    python benchmarks/runtime.py [--out result.json] [DENSITY | ds-cnn | FILE.tflite ...]
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
from fedtiny_export.ir import Graph
from fedtiny_export.project import write_project
from fedtiny_export.read_tflite import read_tflite
from fedtiny_export.reduce import reduce_graph

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from networks import dscnn, ic01, samples

BOARD = "qemu-m4"
COLUMNS = ("instructions", "arena", "stack", "runtime code", "model")
# image classification is the same at every density: it stores and multiplies zeros
TFLITE_MICRO = {
    "image classification": (29_863_147, 54_996, 1_844, 51_088, 98_496),
    "keyword spotting": (7_699_734, 22_820, 1_844, 53_284, 53_936),
    "visual wake words": (24_101_543, 100_708, 1_844, 53_284, 333_288),
}


def network(name: str) -> Graph:
    """A density of the image classification network, ds-cnn, or a file."""
    if name.endswith(".tflite"):
        return reduce_graph(read_tflite(Path(name)))
    return dscnn() if name == "ds-cnn" else ic01(float(name))


def measured(graph: Graph, folder: Path) -> dict[str, int]:
    """Build, run and compare one network; its figures."""
    device = load_device(BOARD)
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
        raise SystemExit(f"not run, or not the reference's bytes: {found}")
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
    parser.add_argument("networks", nargs="*", default=["1", "0.1", "0.05", "0.01", "ds-cnn"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table: dict[str, dict[str, int]] = {}
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            table[Path(name).name] = measured(network(name), Path(folder))
    table |= {f"TFLite Micro, {name}": dict(zip(COLUMNS, row, strict=True)) for name, row in TFLITE_MICRO.items()}
    print(f"{'':<36}" + "".join(f"{name:>14}" for name in COLUMNS))
    for name, row in table.items():
        print(f"{name:<36}" + "".join(f"{row[column]:>14,}" for column in COLUMNS))
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
