"""Every pruning method on the same data, network and optimiser, at the densities where they part.

Runs are kept in benchmarks/results/methods.jsonl and never repeated, so this can be stopped and gone on with:

    python benchmarks/methods.py --data-dir DIR --jobs 2 [--only cifar --seeds 0 --densities 0.01] [--ablation]

With --ablation the rows are FedPack and what becomes of it with one part changed. DIR holds cifar10_jpeg.npz and
speech_commands.npz. Accuracy is that of the final round, never of the best one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import campaign

RESULTS = Path(__file__).parent / "results" / "methods.jsonl"
COMMON: dict[str, bool | int | float | str] = {
    "model": "resnet8",
    "width": 16,
    "precision": "bf16",
    "first_dense": False,  # a dense first layer alone would be more than half of 1 %
}
SETTINGS: dict[str, dict[str, bool | int | float | str]] = {
    "cifar": {
        "data": "cifar10_jpeg.npz",
        "train_samples": 10_000,
        "test_samples": 2_500,
        "clients": 10,
        "partition": "dirichlet:0.5",
        "public": "holdout:500",
        "rounds": 50,
        "local_epochs": 1,
        "batch": 32,
        "lr": 0.1,
    },
    "speech": {
        "data": "speech_commands.npz",
        "clients": 0,
        "partition": "natural",
        "participation": 0.2,
        "public": "holdout:200",
        "rounds": 40,
        "local_epochs": 3,
        "batch": 16,
        "lr": 0.1,
    },
}
# Each method as it is compared; what it needs beyond the common settings is said here and nowhere else.
METHODS: dict[str, dict[str, bool | int | float | str]] = {
    "fedpack": {},
    "fedtiny": {},
    "fedmef": {},
    "rigl": {},
    "erk": {},
    "magnitude": {},
    "feddst": {},
    "prunefl": {},
    "lotteryfl": {},
    "snip": {},
    "synflow": {},
    "random": {},
    "fl-pqsu": {},
}
# FedPack, then without one of its parts, then with one that is off.
ABLATION: dict[str, dict[str, bool | int | float | str]] = {
    "as it is": {},
    "density from the start": {"start_density": 0.001},
    "no class floor": {"class_floor": 0},
    "growth not weighed": {"weigh_growth": False},
    "dead ends stay": {"clear_dead_ends": False},
    "start at 20 x": {"start_density": 0.2},
    "extrusion": {"press": True},
    "server momentum": {"server_momentum": 0.5},
    "mean of the last fifth": {"average_last": 0.2},
    "half of it by competition": {"global_share": 0.5},
}
Variants = dict[str, dict[str, bool | int | float | str]]


def cases(
    only: Sequence[str], densities: Sequence[float], seeds: Sequence[int], variants: Variants
) -> Iterator[tuple[str, campaign.Flags]]:
    """Yield (row, flags), the cases that tell most first: seed by seed, density by density."""
    for seed in seeds:
        for density in densities:
            for data in only:
                for name, extra in variants.items():
                    method = name if name in METHODS else "fedpack"
                    flags = {**SETTINGS[data], **COMMON, **extra, "method": method, "density": density, "seed": seed}
                    yield f"{data} {density:.0%} {name}", flags


def table(found: dict[str, campaign.Result], rows: Sequence[tuple[str, campaign.Flags]]) -> None:
    """Print one line a method: accuracy by seed, worst tenth of the clients, cost, packed bytes."""
    print(f"{'':26} {'accuracy':>18} {'worst':>6} {'MFLOP':>8} {'kB':>6} {'up MB':>6} {'down MB':>7} {'packed B':>8}")
    for row in dict.fromkeys(name for name, _ in rows):
        got = [found[k] for name, flags in rows if name == row and (k := campaign.key(flags)) in found]
        if not got:
            continue
        accuracy = " ".join(f"{100 * one['accuracy']:.1f}" for one in got)
        mean = lambda pick: sum(map(pick, got)) / len(got)  # noqa: E731, B023
        packed = [one["packed"]["flash.model"] for one in got if one["packed"]]
        print(
            f"{row:26} {accuracy:>18} {100 * mean(lambda r: r['worst_tenth']):6.1f} "
            f"{mean(lambda r: r['cost']['flops_max']) / 1e6:8.0f} {mean(lambda r: r['cost']['memory_max']) / 1e3:6.0f} "
            f"{mean(lambda r: r['cost']['bytes_up']) / 1e6:6.1f} {mean(lambda r: r['cost']['bytes_down']) / 1e6:7.1f} "
            f"{sum(packed) / len(packed) if packed else 0:8.0f}"
        )


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.01, 0.02, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ablation", action="store_true", help="FedPack part by part")
    parser.add_argument("--keep", type=Path, help="leave the run folders here")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args()
    variants = ABLATION if options.ablation else {name: METHODS[name] for name in options.methods}
    rows = list(cases(options.only, options.densities, options.seeds, variants))
    todo = [flags | {"data": str(options.data_dir / str(flags["data"]))} for _, flags in rows]
    found = campaign.known(RESULTS) if options.table else campaign.carry_out(todo, RESULTS, options.jobs, options.keep)
    table(found, rows)


if __name__ == "__main__":
    main()
