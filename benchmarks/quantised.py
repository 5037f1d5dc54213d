"""What int8 costs in accuracy: float beside int8 on the whole test split, for finished runs.

The int8 networks take their ranges from the clients (ranges.json, what an export does by itself) and, beside it, from
training samples that the server would have to hold. Runs are those that benchmarks/methods.py left with --keep:

    python benchmarks/quantised.py --data-dir DIR --runs FOLDER [--out result.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import tomllib
from pathlib import Path

import numpy as np
from fedtiny_export.errors import FedtinyError
from fedtiny_export.export import quantized
from fedtiny_export.graph.evaluate import accuracy
from fedtiny_export.quant.calibration import read_choice
from fedtiny_export.source import Wishes, read_source

WAYS = ("minmax", "percentile:99.99", "mse")
CALIBRATION = 500  # training samples
COLUMNS = ("float", *WAYS, "central")


def splits(data: Path, folder: Path) -> tuple[Path, Path]:
    """Write the test split and some training samples as files that an export takes."""
    with np.load(data) as arrays:
        np.savez(folder / "test.npz", x=arrays["x_test"], y=arrays["y_test"])
        np.savez(folder / "some.npz", x=arrays["x_train"][:: len(arrays["x_train"]) // CALIBRATION])
    return folder / "test.npz", folder / "some.npz"


def accuracies(run: Path, test: Path, some: Path) -> dict[str, float]:
    """Return the accuracy of one run by column."""
    sources = [
        read_source(run, calibration=None, evaluation=test, wishes=Wishes(ranges=read_choice(way))) for way in WAYS
    ]
    sources.append(read_source(run, calibration=some, evaluation=test))
    found: dict[str, float] = {}
    for column, source in zip(COLUMNS[1:], sources, strict=True):
        assert source.samples is not None
        both = accuracy(source.graph if "float" not in found else None, quantized(source), source.samples)
        if both.float32 is not None:
            found["float"] = both.float32
        found[column] = both.int8
    return found


def described(run: Path) -> tuple[str, str]:
    """Return the data file of a run and its name in the table."""
    options = tomllib.loads((run / "config.toml").read_text())
    summary = json.loads((run / "summary.json").read_text())
    data = Path(options["data"]["data"]).name
    return data, f"{data.split('.')[0]} {summary['method']} {summary['density']:.1%} seed {summary['seed']}"


def main() -> None:
    """Look at every run; print a line for each and the largest losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    print(f"{'':46}" + "".join(f"{column:>18}" for column in COLUMNS))
    for run in sorted(path.parent for path in options.runs.glob("*/summary.json")):
        data, name = described(run)
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows[name] = accuracies(run, *splits(options.data_dir / data, Path(folder)))
            except FedtinyError as error:  # a network that answers the same whatever it sees
                print(f"{name:46} {error}")
                continue
        print(f"{name:46}" + "".join(f"{100 * rows[name][column]:18.2f}" for column in COLUMNS), flush=True)
    for column in COLUMNS[1:]:
        print(
            f"{column}: float loses {100 * max(row['float'] - row[column] for row in rows.values()):.2f} points at most"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
