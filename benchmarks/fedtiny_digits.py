"""What FedTiny is worth on the bundled digits, against a random mask of the same density and its own halves.

Every run is a default run of fedtiny-train but for what the table names. Prints accuracy by seed on the whole
test split and writes it as JSON:  python benchmarks/fedtiny_digits.py --out digits.json --jobs 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fedtiny_train.config import apply_flags, settle
from fedtiny_train.options import Config
from fedtiny_train.rounds import carry_out

SEEDS = (0, 1, 2)
CASES: dict[str, dict[str, bool | int | float | str]] = {
    "FedTiny, 10 %": {},
    "random mask, 10 %": {"method": "random"},
    "FedTiny, 5 %": {"density": 0.05},
    "random mask, 5 %": {"density": 0.05, "method": "random"},
    "FedTiny, 5 %, no selection": {"density": 0.05, "selection": False},
    "FedTiny, 5 %, no progressive pruning": {"density": 0.05, "progressive": False},
    "FedTiny, 5 %, no floor of class rows": {"density": 0.05, "row_floor": 0},
    "FedTiny, 5 %, no tuning under the mask": {"density": 0.05, "tune_epochs": 0},
    "random mask, 5 %, no tuning under the mask": {"density": 0.05, "tune_epochs": 0, "method": "random"},
    "FedAvg, dense": {"method": "fedavg"},
}


def accuracy(case: str, seed: int) -> float:
    """Return the accuracy of one run."""
    config = settle(apply_flags(Config(), {**CASES[case], "seed": seed}))
    with tempfile.TemporaryDirectory() as folder:
        return float(carry_out(config, Path(folder) / "run", lambda line: None)["accuracy"])


def main() -> None:
    """Measure all cases, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fedtiny_digits.json"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    orders = [(case, seed) for case in CASES for seed in SEEDS]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(pool.map(accuracy, *zip(*orders, strict=True)))
    print(f"{'accuracy in %':44}" + "".join(f"seed {seed:<4}" for seed in SEEDS) + "mean")
    table = {}
    for case in CASES:
        values = [value for (name, _), value in zip(orders, found, strict=True) if name == case]
        table[case] = {"seeds": dict(zip(map(str, SEEDS), values, strict=True)), "mean": sum(values) / len(values)}
        print(f"{case:44}" + "".join(f"{100 * v:<9.2f}" for v in values) + f"{100 * table[case]['mean']:.2f}")
    options.out.write_text(json.dumps({"unit": "accuracy", "cases": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
