"""MLPerf Tiny's networks on the emulated Cortex-M4, some of them at several densities, beside TFLite Micro.

Image classification is the networks trained at 100, 10, 5 and 1 % density that lie in benchmarks/models; DS-CNN, the
autoencoder and densities that are named have random weights (the first convolution is dense). TFLite Micro's figures
were measured once (benchmarks/incumbent.json); they are the same at every density, because it stores and multiplies
zeros. Cycles are a model's, never measured: instructions as counted, each at the cost that
firmware/boards/qemu/count.c gives, memory without wait states.

    python benchmarks/runtime.py [--out result.json] [DENSITY | DENSITYx2 | ds-cnn | ad01-DENSITY | FILE.tflite ...]

0.1x2 has pairs of input channels that were pruned together, as fedtiny-train --prune-block 2 does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fedtiny_export.board.devices import load_device
from fedtiny_export.graph.ir import Graph
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.tflite.read import read_tflite
from footprint import FIGURES, HERE, MAIN_BOARD, measure_row, read_incumbent  # makes the next line find its file
from networks import ad01, dscnn, ic01

TRAINED = [str(HERE / "models" / f"ic01-{percent}.tflite") for percent in (100, 10, 5, 1)]


def network(name: str) -> Graph:
    """A density of the image classification network, in blocks or not, or of the autoencoder, ds-cnn, or a file."""
    if name.endswith(".tflite"):
        return reduce_graph(read_tflite(Path(name)))
    if name == "ds-cnn":
        return dscnn()
    if name.startswith("ad01-"):
        return ad01(float(name.removeprefix("ad01-")))
    density, _, block = name.partition("x")
    return ic01(float(density), block=int(block or 1))


def main() -> None:
    """Measure each network; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=[*TRAINED, "ds-cnn", "ad01-1", "ad01-0.1"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = load_device(MAIN_BOARD)
    table = {Path(name).name: measure_row(network(name), device) for name in options.networks}
    table |= {f"TFLite Micro, {name}": row for name, row in read_incumbent().items()}
    print(f"{'':<24}" + "".join(f"{name:>14}" for name in FIGURES) + f"{'cycles, model':>15}")
    for name, row in table.items():
        print(f"{name:<24}" + "".join(f"{row[figure]:>14,}" for figure in FIGURES) + f"{row['cycles']:>15,}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
