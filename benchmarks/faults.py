"""What failing clients cost: the same run with all clients sound, and with a part of them failing.

Every run is a default run of fedtiny-train on the bundled digits but for what the table names. Prints accuracy by
seed, refused answers and lost rounds, and writes them as JSON:  python benchmarks/faults.py --out faults.json --jobs 2
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fedtiny_train.config import apply_flags, settle
from fedtiny_train.options import Config
from fedtiny_train.rounds import carry_out

SEEDS = (0, 1, 2)
BAD = "dropout=0.3,nan=0.04,corrupt=0.04,shape=0.02"
CASES: dict[str, dict[str, bool | int | float | str]] = {
    "FedTiny, all clients sound": {},
    "30 % drop out, 10 % send garbage": {"simulate_faults": BAD},
    "the same, updates clipped at 10": {"simulate_faults": BAD, "clip_norm": 10.0},
    "the same, median": {"simulate_faults": BAD, "aggregate": "median"},
    "the same, trimmed mean": {"simulate_faults": BAD, "aggregate": "trimmed:0.2"},
    "median, all clients sound": {"aggregate": "median"},
}


def result(case: str, seed: int, rounds: int) -> dict[str, Any]:
    """Return what the table wants of one run."""
    config = settle(apply_flags(Config(), {**CASES[case], "seed": seed, "rounds": rounds}))
    with tempfile.TemporaryDirectory() as folder:
        summary = carry_out(config, Path(folder) / "run", lambda line: None)
    return {key: summary[key] for key in ("accuracy", "refused", "rounds_missed")}


def main() -> None:
    """Measure all cases, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--rounds", type=int, default=Config().train.rounds)
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of the table's rows, from the first")
    options = parser.parse_args()
    cases = list(CASES)[: options.cases]
    orders = [(case, seed, options.rounds) for case in cases for seed in SEEDS]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = {}
        for order, one in zip(orders, pool.map(result, *zip(*orders, strict=True)), strict=True):
            found[order] = one
            print(order[0], f"seed {order[1]}: {one['accuracy']:.2%}", file=sys.stderr, flush=True)
    print(f"{'accuracy in %':36}" + "".join(f"seed {seed:<4}" for seed in SEEDS) + "mean     refused  rounds lost")
    table = {}
    for case in cases:
        runs = [found[case, seed, options.rounds] for seed in SEEDS]
        mean = sum(run["accuracy"] for run in runs) / len(runs)
        table[case] = {"seeds": dict(zip(map(str, SEEDS), runs, strict=True)), "mean": mean}
        print(
            f"{case:36}"
            + "".join(f"{100 * run['accuracy']:<9.2f}" for run in runs)
            + f"{100 * mean:<9.2f}{sum(run['refused'] for run in runs):<9}{sum(run['rounds_missed'] for run in runs)}"
        )
    options.out.write_text(json.dumps({"unit": "accuracy", "rounds": options.rounds, "cases": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
