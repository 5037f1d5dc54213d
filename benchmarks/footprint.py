"""What reference models take on every emulated processor, guarded: benchmarks/footprint.json is committed, and a test
fails where code, model, arena, stack or instructions have grown by more than 1 % since.

Models are trained ones, int8 files in benchmarks/models/ (docs/benchmarks.md says how they were made), and MLPerf
Tiny's autoencoder with random weights, whose cost depends on their number and not on their values. Beside them stand
TensorFlow Lite Micro's figures where they are known (benchmarks/incumbent.json, which says where they come from).

    python benchmarks/footprint.py [MODEL ...]    # measures, prints, and renews the committed rows
    python benchmarks/footprint.py --check        # exits 1 if something has grown by more than 1 %
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from fedtiny_export.board.devices import Device, all_devices, load_device
from fedtiny_export.ftm.code_sizes import load_board_sizes, load_code_sizes
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.graph.ir import Graph
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.tflite.read import read_tflite

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from networks import ad01  # noqa: E402
from projects import built_and_run  # noqa: E402

TABLE = HERE / "footprint.json"
INCUMBENT = HERE / "incumbent.json"
MAIN_BOARD = "qemu-m4"
BOARDS = tuple(device.id for device in all_devices() if device.emulator)
FIGURES = ("code", "model", "arena", "stack", "instructions")
GROWTH = 0.01
# Networks with random weights, by density.
RANDOM = {
    "ad01-random-100": 1.0,
    "ad01-random-10": 0.1,
}

Row = dict[str, int]


def models() -> dict[str, tuple[str, ...]]:
    """Every reference model and the boards it is measured on: one where it is of an incumbent's architecture."""
    names = [path.stem for path in sorted((HERE / "models").glob("*.tflite"))] + list(RANDOM)
    return {name: (MAIN_BOARD,) if architecture(name) in read_incumbent() else BOARDS for name in names}


def architecture(name: str) -> str:
    """What a model's name begins with, which is the name of the incumbent's row of the same architecture."""
    return name.split("-")[0]


def load_model(name: str) -> Graph:
    """The int8 network as the exporter hands it to the runtime."""
    if name in RANDOM:
        return ad01(RANDOM[name])
    return reduce_graph(read_tflite(HERE / "models" / f"{name}.tflite"))


def measure_row(graph: Graph, device: Device, vectors: int = 4) -> Row:
    """Build and run a network on an emulated board, compare its outputs, and read its figures.

    `code` is the runtime's: what start-up, port and main take on the board is not in it. `cycles` are no measurement:
    they come from a model of the Cortex-M4, and are there for it alone.
    """
    sizes, board = load_code_sizes(device.cpu), load_board_sizes(device.id)
    assert sizes is not None, f"{device.cpu} has no row in firmware/sizes.json"
    assert board is not None, f"{device.id} has no row in firmware/sizes.json"
    ftm = write_ftm(graph, sizes.kernel_bytes())
    with tempfile.TemporaryDirectory() as name:
        found = built_and_run(Path(name), device, graph, ftm, vectors)
    if found is None or not found.golden_equal or found.notes:
        raise SystemExit(f"{device.id}: not run and counted, or not the reference's bytes: {found}")
    figures = {name: value or 0 for name, value, *_ in found.figures}
    modelled = {} if found.cycles is None else {"cycles": found.cycles}
    return modelled | {
        "code": figures["flash.code"] - board.code,
        "model": figures["flash.model"],
        "arena": figures["ram.arena"],
        "stack": figures["ram.stack"],
        "instructions": figures["instructions"],
    }


def grown(committed: Row, measured: Row) -> dict[str, str]:
    """The figures that are larger than they were by more than the limit."""
    more = {name: (committed[name], measured[name]) for name in FIGURES}
    return {name: f"{old:,} to {new:,}" for name, (old, new) in more.items() if new > old * (1 + GROWTH)}


def read_table() -> dict[str, dict[str, Row]]:
    """The committed rows, by model and board."""
    rows: dict[str, dict[str, Row]] = json.loads(TABLE.read_text())
    return rows


def read_incumbent() -> dict[str, dict[str, int]]:
    """TensorFlow Lite Micro's figures by architecture."""
    rows: dict[str, dict[str, int]] = json.loads(INCUMBENT.read_text())["models"]
    return rows


def show(name: str, board: str, row: dict[str, int]) -> None:
    """Print one line."""
    print(f"{name:<20}{board:<14}" + "".join(f"{row[figure]:>14,}" for figure in FIGURES), flush=True)


def main() -> None:
    """Measure, print, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="some of the models; all of them where none is named")
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of renewing it")
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(models()))
    if unknown:
        parser.error(f"unknown model {unknown[0]}; there are {', '.join(models())}")
    table = read_table() if TABLE.exists() else {}
    faults = []
    print(f"{'':<34}" + "".join(f"{figure:>14}" for figure in FIGURES))
    for name, boards in models().items():
        if options.models and name not in options.models:
            continue
        incumbent = read_incumbent().get(architecture(name))
        if incumbent:
            show("TFLite Micro", MAIN_BOARD, incumbent)
        for board in boards:
            row = measure_row(load_model(name), load_device(board))
            row.pop("cycles", None)
            show(name, board, row)
            if options.check:
                faults += [f"{name} on {board}: {what} {by}" for what, by in grown(table[name][board], row).items()]
            else:
                table.setdefault(name, {})[board] = row
    if not options.check:
        TABLE.write_text(json.dumps({name: table[name] for name in models() if name in table}, indent=1) + "\n")
    if faults:
        raise SystemExit("grown by more than 1 %: " + "; ".join(faults))


if __name__ == "__main__":
    main()
