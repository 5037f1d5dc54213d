"""What int8 costs in accuracy: float beside int8 on the whole test split, for finished runs.

The int8 networks take their ranges from the clients (ranges.json, what an export does by itself) and, beside it, from
training samples that the server would have to hold. Runs are those that benchmarks/methods.py left with --keep:

    python benchmarks/quantised.py --data-dir DIR --runs FOLDER [--out result.json]

With --tensorflow, instead: the same int8 networks through TensorFlow's own converter, its accuracy beside ours, and
byte by byte what its file holds that ours does not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from fedtiny_export.errors import FedtinyError
from fedtiny_export.export import quantized, settled
from fedtiny_export.graph.evaluate import accuracy
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.quant.calibration import read_choice
from fedtiny_export.source import Wishes, read_source
from fedtiny_export.tflite.by_tensorflow import convert
from fedtiny_export.tflite.read import parse_tflite
from fedtiny_export.tflite.write import write_tflite

WAYS = ("auto", "minmax")
CALIBRATION = 500  # training samples
COLUMNS = ("float", *WAYS, "central")


def splits(data: Path, folder: Path, everything: bool) -> tuple[Path, Path]:
    """Write the test split, or all samples, and some training samples as files that an export takes."""
    with np.load(data) as arrays:
        parts = ("test", "train") if everything else ("test",)
        x, y = (np.concatenate([arrays[f"{name}_{part}"] for part in parts]) for name in "xy")
        np.savez(folder / "test.npz", x=x, y=y)
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
        coarse = reduce_graph(quantized(source))  # the same outputs, sooner
        both = accuracy(source.graph if "float" not in found else None, coarse, source.samples)
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


def _without_bias_steps(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        if tensor.type == INT32:
            tensor.quantization = None


def _without_names(model: Any) -> None:
    graph = model.subgraphs[0]
    for index, tensor in enumerate(graph.tensors):
        tensor.name = {graph.inputs[0]: "input", graph.outputs[0]: "output"}.get(index)
    graph.name, model.description = None, "fedtiny"


def _without_signature(model: Any) -> None:
    model.signatureDefs = None


def _without_metadata(model: Any) -> None:
    for item in model.metadata or ():
        model.buffers[item.buffer].data = None
    model.metadata = None


def _with_own_buffers(model: Any) -> None:
    """Equal constants, such as biases of nothing but zeros, lie in one buffer; ours share nothing."""
    seen: set[int] = set()
    for tensor in model.subgraphs[0].tensors:
        if tensor.buffer in seen:
            model.buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = len(model.buffers) - 1
        seen.add(tensor.buffer)


def _without_empty_buffers(model: Any) -> None:
    """Buffer 0 is the empty one; every activation may name it."""
    kept = [model.buffers[0]]
    for tensor in model.subgraphs[0].tensors:
        held = model.buffers[tensor.buffer]
        tensor.buffer = 0 if held.data is None else len(kept)
        kept += [] if held.data is None else [held]
    model.buffers = kept


def _without_unused_codes(model: Any) -> None:
    operators = model.subgraphs[0].operators
    used = sorted({operator.opcodeIndex for operator in operators})
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for operator in operators:
        operator.opcodeIndex = used.index(operator.opcodeIndex)


INT32 = 2  # in the schema
EXTRAS: dict[str, Callable[[Any], None]] = {
    "steps of biases": _without_bias_steps,
    "names": _without_names,
    "signature": _without_signature,
    "metadata": _without_metadata,
    "constants held once": _with_own_buffers,
    "empty buffers": _without_empty_buffers,
    "unused codes": _without_unused_codes,
}


def ledger(theirs: bytes) -> dict[str, int]:
    """How many bytes a file loses with each thing that ours has not, one after the other, and what is left."""
    from tensorflow.lite.python import schema_py_generated as full

    model = full.ModelT.InitFromObj(full.Model.GetRootAs(theirs, 0))
    spent, size = {}, len(theirs)
    for name, strip in EXTRAS.items():
        strip(model)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        spent[name], size = size - len(builder.Output()), len(builder.Output())
    return {**spent, "left": size}


def beside_tensorflow(run: Path, test: Path) -> dict[str, float]:
    """Accuracy and bytes of one run's network from our writer and from TensorFlow's converter."""
    source = read_source(run, calibration=None, evaluation=test)
    assert source.samples is not None
    whole = quantized(source)
    ours, theirs = write_tflite(whole), convert(settled(source), whole)
    read = parse_tflite(theirs, Path("TensorFlow's model.tflite"))
    found: dict[str, float] = {"ours": len(ours), "theirs": len(theirs), **ledger(theirs)}
    for name, graph in (("accuracy", whole), ("their accuracy", read)):
        found[name] = accuracy(None, reduce_graph(graph), source.samples).int8
    return found


def main() -> None:
    """Look at every run; print a line for each and the largest losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="training samples too: less chance where a split is small")
    parser.add_argument("--tensorflow", action="store_true", help="TensorFlow's converter beside ours (its extra)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = _tensorflow(options) if options.tensorflow else _ranges(options)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def _tensorflow(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows = {}
    for run in sorted(path.parent for path in options.runs.glob("*/summary.json")):
        data, name = described(run)
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = beside_tensorflow(run, splits(options.data_dir / data, Path(folder), options.all)[0])
        shown = [f"{what} {value:,.4g}" if value < 1 else f"{what} {value:,.0f}" for what, value in rows[name].items()]
        print(name, *shown, sep="\n  ", flush=True)
    return rows


def _ranges(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    print(f"{'':46}" + "".join(f"{column:>18}" for column in COLUMNS))
    for run in sorted(path.parent for path in options.runs.glob("*/summary.json")):
        data, name = described(run)
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows[name] = accuracies(run, *splits(options.data_dir / data, Path(folder), options.all))
            except FedtinyError as error:  # a network that answers the same whatever it sees
                print(f"{name:46} {error}")
                continue
        print(f"{name:46}" + "".join(f"{100 * rows[name][column]:18.2f}" for column in COLUMNS), flush=True)
    for column in COLUMNS[1:]:
        print(
            f"{column}: float loses {100 * max(row['float'] - row[column] for row in rows.values()):.2f} points at most"
        )
    return rows


if __name__ == "__main__":
    main()
