"""MLPerf Tiny's image classification network on the emulated Cortex-M4, at several densities, beside TFLite Micro.

Weights are random (the first convolution is dense): what is measured does not depend on their values, but accuracy is
no subject here. TFLite Micro's figures were measured once (benchmarks/incumbent.json); they are the same at every
density, because it stores and multiplies zeros.

    python benchmarks/runtime.py [--out result.json] [DENSITY ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fedtiny_export.devices import load_device
from footprint import FIGURES, MAIN_BOARD, ic01, measure_row, read_incumbent


def main() -> None:
    """Print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("densities", nargs="*", type=float, default=[1.0, 0.1, 0.05, 0.01])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table: dict[str, dict[str, int]] = {}
    print(f"{'':<14}" + "".join(f"{name:>14}" for name in FIGURES), flush=True)
    for density in options.densities:
        table[f"{density:g}"] = measure_row(ic01(density), load_device(MAIN_BOARD))
    table["TFLite Micro"] = read_incumbent()["ic01"]
    for name, row in table.items():
        print(f"{name:<14}" + "".join(f"{row[figure]:>14,}" for figure in FIGURES))
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
