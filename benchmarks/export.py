"""What an export costs: wall time and peak memory of whole processes, beside TensorFlow's converter.

Networks of fedtiny_train with random weights, 10 % of them kept: neither time nor memory depends on their values. Each
figure is that of one process from its start to its end, the imports included; the best of a few is shown. Where other
work runs on the machine, wall time says little: processor time is shown beside it.

    python benchmarks/export.py [--repeats 3] [--out result.json] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GOALS = {"resnet8": (2.0, 400.0), "resnet18": (10.0, None)}  # seconds, megabytes
EXPORT = "from fedtiny_export.cli import export_main; export_main()"
# TensorFlow's converter alone: our reader, and nothing of a report or a project.
CONVERT = """
import sys
from pathlib import Path
from fedtiny_export.tflite.by_tensorflow import convert
from fedtiny_export.export import quantized, settled
from fedtiny_export.source import read_source
source = read_source(Path(sys.argv[1]), calibration=None, evaluation=None)
Path(sys.argv[2]).write_bytes(convert(settled(source), quantized(source)))
"""


def make_run(folder: Path, name: str) -> None:
    """A folder as fedtiny-train leaves it, for a network that was never trained."""
    from fedtiny_train.calibrate import report, tensor_histograms, tensor_names, tensor_ranges
    from fedtiny_train.models import ModelSpec, build, initial_state, load
    from fedtiny_train.onnx_out import to_onnx
    from fedtiny_train.options import WIDTHS

    random = np.random.default_rng(0)
    spec = ModelSpec(name, (3, 32, 32), 10, WIDTHS[name])
    state = initial_state(spec, 0)
    masks = {key: random.random(value.shape) < 0.1 for key, value in state.items() if value.ndim == 4}
    state = {key: value * masks[key] if key in masks else value for key, value in state.items()}
    model = build(spec)
    load(model, state)
    x = random.integers(0, 256, (100, 32, 32, 3)).astype(np.float32)
    given = x.transpose(0, 3, 1, 2).copy()
    ranges = tensor_ranges(model, given)
    content = report(tensor_names(model), ranges, tensor_histograms(model, given, ranges))
    folder.mkdir()
    (folder / "model.onnx").write_bytes(to_onnx(spec, state))
    (folder / "ranges.json").write_text(json.dumps(content))
    np.savez(folder / "samples.npz", x=x, y=np.zeros(100, np.int64))


def cost(*arguments: object) -> tuple[float, float, float]:
    """Wall and processor seconds and megabytes of one process; one that does not fit its board counts too."""
    start = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    command = [sys.executable, "-c", *map(str, arguments)]
    process = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet)
    _, status, used = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise SystemExit(f"{' '.join(command[3:])}: exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def measured(name: str, repeats: int, folder: Path) -> dict[str, tuple[float, ...]]:
    """The best seconds and megabytes of every route."""
    # elsewhere: the system counts the memory of whoever starts a process as that process's peak
    maker = multiprocessing.get_context("spawn").Process(target=make_run, args=(folder / name, name))
    maker.start()
    maker.join()
    if maker.exitcode:
        raise SystemExit(f"{name} could not be made")
    found: dict[str, list[tuple[float, ...]]] = {}
    for count in range(repeats):
        out = folder / f"{name}-{count}"
        given = (folder / name, "--target", "esp32s3", "--out")
        found.setdefault("fedtiny-export", []).append(cost(EXPORT, *given, out))
        tflm = (*given, f"{out}-tflm", "--runtime", "tflm")
        found.setdefault("fedtiny-export --runtime tflm", []).append(cost(EXPORT, *tflm))
        route = cost(CONVERT, folder / name, folder / "theirs.tflite")
        found.setdefault("TensorFlow's converter alone", []).append(route)
    return {route: tuple(map(min, zip(*all_, strict=True))) for route, all_ in found.items()}


def main() -> None:
    """Print the table; write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(GOALS), metavar="NETWORK")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            results[name] = measured(name, options.repeats, Path(folder))
            seconds, megabytes = GOALS.get(name, (None, None))
            print(f"{name} (goal: {seconds} s, {megabytes} MB)")
            for route, (took, busy, peak) in results[name].items():
                print(f"  {route:32} {took:6.2f} s, {busy:6.2f} s of processor time, {peak:5.0f} MB")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
