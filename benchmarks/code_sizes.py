"""Measure what the planner has to know before any compiler runs, and write firmware/sizes.json.

Code: the runtime's objects, compiled for each CPU with -Os, by part. Board: what start-up, port and main add on each
emulated board, from linked ELF files. Stack: the high-water mark of runs there, by way through the kernels.
Instructions, of the Cortex-M4 alone: a non-negative least-squares fit of counted runs in QEMU to the steps that
`cost.features` counts.

    python benchmarks/code_sizes.py            # rewrites firmware/sizes.json
    python benchmarks/code_sizes.py --check    # exits 1 if it would change by more than 1 %
    python benchmarks/code_sizes.py --stack    # renews the stacks alone
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from elftools.elf.elffile import ELFFile
from fedtiny_export.board.devices import Device, all_devices
from fedtiny_export.board.project import build_settings
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.code_sizes import CodeSizes, table_cpu
from fedtiny_export.ftm.cost import FEATURES, features
from fedtiny_export.ftm.depth import ways
from fedtiny_export.ftm.file import Ftm, write_ftm
from fedtiny_export.ftm.sparse import SPARSE
from fedtiny_export.graph.ir import Graph, Op
from numpy.typing import NDArray
from scipy.optimize import nnls

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from networks import (  # noqa: E402
    CONV_KERNELS,
    Builder,
    every_operator,
    every_shape,
    one_way_each,
    perceptron,
    residual,
    separable,
    streamed,
)
from projects import built_and_run  # noqa: E402

TARGET = ROOT / "firmware" / "sizes.json"
BOARDS = {device.id: device for device in all_devices() if device.emulator}
FITTED = "qemu-m4"  # whose instructions are planned
MAIN_DIFFERS = 16  # bytes of stack that main may take beyond what it took here: it has the model's numbers in it


def _compiler(device: Device) -> list[str]:
    """Compiler and flags of an emulated board."""
    settings = build_settings(device)
    about_code = [flag for flag in settings.compile_flags if flag.startswith("-D")]
    return [f"{settings.toolchain}gcc", *settings.cflags, *about_code]


# The compiler of an ESP8266 stands in for those of an ESP32 and ESP32-S3, which can read bytes from flash.
CPUS = {table_cpu(device.cpu): _compiler(device) for device in BOARDS.values()}
CPUS["xtensa-lx6"] = [flag for flag in CPUS["xtensa-lx106"] if not flag.startswith("-D")]
FILES = {
    "ft_model": "core",
    "ft_invoke": "core",
    "ft_conv": "conv",
    "ft_conv_dense": "conv_dense",
    "ft_conv_bitmap": "conv_bitmap",
    "ft_conv_gap": "conv_gap",
    "ft_conv_rice": "conv_rice",
    "ft_conv_taps": "taps",
    "ft_conv_two": "two",
    "ft_conv_depthwise": "depthwise",
    "ft_vector": "vector",
    "arch/ft_dot_plain": "taps",
    "arch/ft_dot_arm_dsp": "taps",
    "ft_add": "add",
    "ft_mean": "mean",
    "ft_pool": "pool",
    "ft_softmax": "softmax",
    "ft_table": "table",
    "ft_mul": "mul",
    "ft_place": "place",
    "ft_resize": "resize",
}
# Instructions of each step, read off the compiled loops of a Cortex-M4: where the fit starts from.
LISTED = {
    "dense_taps": 12.75,
    "dense_blocks": 95.0,
    "depthwise_taps": 12.7,
    "depthwise_blocks": 95.0,
    "prepared": 3.3,
    "sparse_taps": 13.25,
    "sparse_blocks": 65.0,
    "decoded": 8.0,
    "tapped": 12.0,
    "rice_decoded": 19.0,
    "scanned": 15.0,
    "cells": 8.5,
    "constant": 2.5,
    "rescaled": 30.0,
    "vector_words": 24.0,
    "vector_tails": 11.0,
    "vector_blocks": 75.0,
    "vector_channels": 33.0,
    "vector_dense": 4.0,
    "vector_sparse": 5.0,
    "vector_lines": 75.0,
    "lines": 110.0,
    "line_rows": 12.0,
    "widened4": 2.2,
    "widened1": 8.0,
    "planes": 25.0,
    "padding": 5.0,
    "moved": 1.0,
    "passes": 400.0,
    "added": 16.0,
    "added_in_general": 90.0,
    "averaged": 6.0,
    "pooled": 9.0,
    "pooled_outputs": 30.0,
    "softmaxed": 400.0,
    "looked_up": 6.0,
    "multiplied": 35.0,
    "placed": 3.5,
    "placed_pieces": 25.0,
    "resized": 5.0,
    "resized_pixels": 30.0,
    "operators": 150.0,
}
CLOSENESS = 0.1  # how much a coefficient's own relative error weighs beside that of a run
# the inner loops of the dense kernels lie beside those of the sparse ones, what dense layers need beside the window
LOOPS = {"_2x4": "conv_dense", "_depthwise": "depthwise", "_of_two": "two", "sums_vector": "vector"}
LOOPS |= dict.fromkeys(
    ("conv_check", "check_arrays", "groups_ok", "measure", "tap_words", "conv_begin", "conv_store", "vector_store"),
    "channels",
)


def object_sections(compiler: list[str], source: Path) -> dict[str, int]:
    """Sizes of the code and constant sections of one compiled file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "o"
        flags = ["-std=c99", "-Os", "-ffunction-sections", "-fdata-sections", f"-I{ROOT / 'firmware/include'}"]
        subprocess.run([*compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
        elf = ELFFile(io.BytesIO(target.read_bytes()))
        wanted = (".text", ".rodata", ".literal", ".srodata", ".data.rel.ro")
        return {s.name: s["sh_size"] for s in elf.iter_sections() if s.name.startswith(wanted) and s["sh_flags"] & 2}


def parts(compiler: list[str]) -> dict[str, int]:
    """Bytes by part."""
    found = dict.fromkeys((*FILES.values(), *LOOPS.values()), 0)
    for stem, part in FILES.items():
        for name, size in object_sections(compiler, ROOT / "firmware" / "src" / f"{stem}.c").items():
            owner = next((owner for mark, owner in LOOPS.items() if mark in name), part)
            found[owner] += size + -size % 4
    return found


def compiler_name(compiler: list[str]) -> str:
    """Program and version, and the flag that matters."""
    version = subprocess.run([compiler[0], "-dumpfullversion"], capture_output=True, text=True, check=True)
    return f"{compiler[0]} {version.stdout.strip()} -Os"


def firmware_run(device: Device, graph: Graph, forced: Kernel | None, folder: Path) -> tuple[Ftm, dict[str, int]]:
    """Build and run one network on an emulated board: its file and what was measured, by figure."""
    # depthwise layers have a dense kernel of their own
    wanted = {forced, Kernel.DEPTHWISE if forced is Kernel.CONV_DENSE else forced}
    ftm = write_ftm(graph, {} if forced is None else {k: 0 if k in wanted else 1 << 30 for k in Kernel})
    measured = built_and_run(folder, device, graph, ftm, vectors=2)
    if measured is None or not measured.golden_equal or measured.notes:
        raise SystemExit(f"{device.id} cannot be built, run and counted here: {measured}")
    return ftm, {name: value for name, value, *_ in measured.figures if value is not None}


def networks() -> list[tuple[Graph, Kernel | None]]:
    """Networks that differ in every count the instruction plan is linear in."""
    cases: list[tuple[Graph, Kernel | None]] = []
    for seed, (shape, widths) in enumerate(
        [((8, 8, 1), (8, 12)), ((16, 16, 3), (6, 10)), ((6, 10, 2), (9, 7)), ((32, 32, 3), (8, 16))]
    ):
        for density in (1.0, 0.3, 0.1, 0.03):
            for forced in (Kernel.CONV_DENSE, Kernel.CONV_BITMAP, Kernel.CONV_GAP, Kernel.CONV_RICE):
                if density == 1.0 or forced is not Kernel.CONV_DENSE:
                    cases.append((residual(seed, density, 0.0, shape, widths), forced))
    for density, forced in ((1.0, Kernel.CONV_DENSE), (0.1, Kernel.CONV_GAP), (0.02, Kernel.CONV_RICE)):
        cases.append((residual(4, density, 0.0, (32, 32, 3), (16, 32)), forced))
    for seed, side in enumerate((4, 9, 16)):
        small = Builder((side, side, 4), seed)
        small.add(Op.MEAN)
        small.dense(10)
        cases.append((small.int8(), Kernel.CONV_DENSE))
        flat = Builder((side, side, 4), seed, 0.1)
        flat.dense(24)
        cases.append((flat.int8(), Kernel.CONV_GAP))
        wide = Builder((side, side, 4), seed, 0.2)
        wide.conv(12, 1)
        cases.append((wide.int8(), Kernel.CONV_BITMAP))
    for seed, (side, width) in enumerate(((12, 8), (20, 16), (33, 5))):
        cases += [(separable(seed, (side, side, 3), width), forced) for forced in (Kernel.DEPTHWISE, Kernel.CONV_RICE)]
    cases += [(every_operator(seed, side), Kernel.CONV_DENSE) for seed, side in enumerate((8, 12, 21))]
    for seed, widths in enumerate(((640, 128, 8, 640), (37, 50, 10), (64, 12), (6, 90, 90, 3))):
        cases += [(perceptron(seed, widths), kernel) for kernel in (Kernel.VECTOR, Kernel.CONV_DENSE)]
        cases += [(perceptron(seed, widths, 0.1), kernel) for kernel in SPARSE]
    return cases


def fit(matrix: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients near LISTED: small networks alone cannot tell all the steps apart."""
    listed = np.array([LISTED[name] for name in FEATURES])
    # relative errors are what a reader sees, so every run weighs the same
    rows = np.vstack([matrix / wanted[:, None], np.diag(CLOSENESS / listed)])
    fitted, _ = nnls(rows, np.concatenate([np.ones(len(wanted)), np.full(len(listed), CLOSENESS)]), maxiter=10_000)
    return np.asarray(fitted)


def few_networks() -> list[tuple[Graph, Kernel | None]]:
    """Every path through the kernels, each encoding and several at once, small enough for the smallest board."""
    graphs = (every_shape(), streamed(6, 0.3, (14, 13, 3)))
    mixed = (residual(1, 0.3), residual(5, 0.6, 0.4, (12, 12, 4), (8, 12)), separable(0), every_operator(0))
    cases = [(graph, kernel) for graph in graphs for kernel in CONV_KERNELS] + [(graph, None) for graph in mixed]
    return [*cases, (perceptron(0, (19, 10, 6, 3)), Kernel.VECTOR)]


Depth = tuple[frozenset[str], int]


@dataclass(frozen=True, slots=True)
class BoardRuns:
    """What the runs on one board gave."""

    code: int
    static: int
    stack: dict[str, int]
    steps: NDArray[np.float64]
    counts: NDArray[np.float64]


def measure_board(device: Device, more: list[tuple[Graph, Kernel | None]], parts: dict[str, int]) -> BoardRuns:
    """Build and run a few networks on one board, and more whose instructions count."""
    few = few_networks()
    rows, counts, codes, statics = [], [], [], []
    stacks: list[Depth] = []
    sizes = CodeSizes(device.cpu, "", False, parts, {}, {})
    for graph, forced in few + more:
        with tempfile.TemporaryDirectory() as folder:
            ftm, figures = firmware_run(device, graph, forced, Path(folder))
        rows.append([features(ftm.plan, ftm.packed)[name] for name in FEATURES])
        counts.append(figures["instructions"])
        stacks.append((ways(ftm), figures["ram.stack"]))
        codes.append(figures["flash.code"] + figures["flash.data"] - sizes.runtime_bytes(ftm.kernels))
        statics.append(figures["ram.static"])
    stack = stack_by_way(stacks[: len(few)] + depths(device, one_way_each()))
    said = f"code {min(codes)} to {max(codes)}, static {max(statics)}, stack {stack}"
    print(f"{device.id:<12} {said}, {sum(counts):,} instructions", flush=True)
    distinct = sorted(set(codes))
    code = round(sum(distinct) / len(distinct))
    return BoardRuns(code, max(statics), stack, np.array(rows, float), np.array(counts, float))


def depths(device: Device, cases: list[tuple[Graph, Kernel | None]]) -> list[Depth]:
    """The ways that networks take, and how deep the stack got."""
    found = []
    for graph, forced in cases:
        with tempfile.TemporaryDirectory() as folder:
            ftm, figures = firmware_run(device, graph, forced, Path(folder))
        found.append((ways(ftm), figures["ram.stack"]))
    return found


def stack_by_way(runs: list[Depth]) -> dict[str, int]:
    """The deepest stack of each way: a run is as deep as its deepest one, so that no way is deeper than a run.

    What else makes a difference, the way that is deepest already has.
    """
    every = sorted({way for taken, _ in runs for way in taken})
    found = {way: min(depth for taken, depth in runs if way in taken) for way in every}
    for taken, depth in runs:
        deepest = max(sorted(taken), key=lambda way: found[way])
        found[deepest] = max(found[deepest], depth)
    return {way: depth + MAIN_DIFFERS for way, depth in found.items()}


def instruction_plan(runs: BoardRuns) -> dict[str, float]:
    """Instructions of each step, from counted runs."""
    fitted = fit(runs.steps, runs.counts)
    worst = float(np.abs(runs.steps @ fitted / runs.counts - 1).max())
    plan = {name: round(float(value), 3) for name, value in zip(FEATURES, fitted, strict=True)}
    print(f"instruction plan: {len(runs.counts)} runs, largest deviation {100 * worst:.1f} %: {plan}")
    return plan


def table() -> dict[str, Any]:
    """The whole content of sizes.json."""
    cpus: dict[str, Any] = {}
    boards: dict[str, Any] = {}
    for name, compiler in CPUS.items():
        cpus[name] = {"compiler": compiler_name(compiler), "parts": parts(compiler), "stack": None, "instructions": {}}
        print(f"{name:<14}", cpus[name]["parts"])
    for device in BOARDS.values():
        row = cpus[table_cpu(device.cpu)]
        runs = measure_board(device, networks() if device.id == FITTED else [], row["parts"])
        boards[device.id] = {"code": runs.code, "static": runs.static}
        row["stack"] = runs.stack
        if device.id == FITTED:
            row["instructions"] = instruction_plan(runs)
    return {"cpus": cpus, "boards": boards}


def renewed_stacks() -> dict[str, Any]:
    """The committed table with stacks measured again."""
    content: dict[str, Any] = json.loads(TARGET.read_text())
    for device in BOARDS.values():
        stack = stack_by_way(depths(device, few_networks() + one_way_each()))
        content["cpus"][table_cpu(device.cpu)]["stack"] = stack
        print(f"{device.id:<12} {stack}", flush=True)
    return content


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a nested dictionary by its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in numbers(inner, f"{path}/{key}").items()}
    return {path: float(value)} if isinstance(value, int | float) else {}


def main() -> None:
    """Measure; write the table or compare it with the committed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of writing it")
    parser.add_argument("--stack", action="store_true", help="renew the stacks alone")
    options = parser.parse_args()
    measured = renewed_stacks() if options.stack else table()
    if not options.check:
        TARGET.write_text(json.dumps(measured, indent=1) + "\n")
        return
    committed = numbers(json.loads(TARGET.read_text()))
    sized = {k: v for k, v in numbers(measured).items() if "/instructions/" not in k}
    changed = {k: (committed.get(k), v) for k, v in sized.items() if abs(committed.get(k, 0) - v) > 0.01 * v}
    print("changed by more than 1 %:", changed or "nothing")
    sys.exit(1 if changed else 0)


if __name__ == "__main__":
    main()
