"""What fedtiny-export does: a source becomes int8, both model files, a firmware project and the memory report.

The folder appears whole. A second export into it renews what is generated and leaves the user's files alone.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .atomic import atomic_folder, write_atomically
from .board.advice import forced
from .board.budget import Report, make_report, plan_figures
from .board.clients import client_on
from .board.devices import OWN_BOARD, Device, all_devices
from .board.page import html_text
from .board.project import PLATFORMIO, USER_FILES, Artifacts, Port, kind_of, label_bytes, write_project
from .board.render import plain_text
from .board.selftest import golden_steps, selftest_bytes, selftest_vectors
from .errors import FedtinyError, UsageError
from .ftm.abi import Kernel
from .ftm.code_sizes import load_code_sizes
from .ftm.file import Ftm, encodings, lay_out, write_ftm
from .ftm.optimize import Aim, faster
from .graph import reference
from .graph.evaluate import Accuracy, accuracy, to_int8
from .graph.ir import Graph
from .graph.reduce import reduce_graph
from .quant.bias import correct_biases
from .quant.calibration import AUTO
from .quant.explain import LayerNoise, explain
from .quant.quantize import quantize
from .quant.still import settle
from .source import Source, Wishes
from .tflite.by_tensorflow import convert
from .tflite.read import parse_tflite
from .tflite.write import write_tflite
from .tflm.decode import decoded_bytes
from .tflm.files import measured_arena, tflm_files
from .tflm.report import make_tflm_report
from .untrusted import read_json_object

ENCODINGS = {
    "dense": Kernel.CONV_DENSE,
    "bitmap": Kernel.CONV_BITMAP,
    "gap": Kernel.CONV_GAP,
    "rice": Kernel.CONV_RICE,
}
OURS, TENSORFLOW = "fedtiny", "tensorflow"
FT, TFLM, DECODE = "ft", "tflm", "tflm-decode"
GOLDEN_SAMPLES = 12
GOLDEN_RANDOM = 4
PROBES = 16


@dataclass(frozen=True, slots=True)
class Exported:
    """An export before it is written."""

    graph: Graph
    ftm: Ftm | None  # None where TensorFlow Lite Micro runs the model
    tflite: bytes
    golden_inputs: NDArray[np.int8]
    golden_outputs: NDArray[np.int8]
    report: Report
    arena_bytes: int | None = None  # what TensorFlow Lite Micro takes on this machine


def make_export(
    source: Source,
    device: Device,
    min_accuracy: float | None,
    runtime: str = FT,
    *,
    explained: bool = False,
    converter: str = OURS,
    aim: Aim = Aim.SIZE,
    encoding: str | None = None,
) -> Exported:
    """Compute everything that ends up in the folder."""
    whole, foreign = quantized(source), None
    if converter == TENSORFLOW:
        foreign = _by_tensorflow(source, whole, runtime)
        whole = parse_tflite(foreign, Path("TensorFlow's model.tflite"))
    noise = _noise(source, whole) if explained else ()
    graph = reduce_graph(whole)
    tables = table_bytes(source, graph)
    ftm = _laid_out(device, graph, tables, aim, encoding) if runtime == FT else None
    tflite = foreign or _tflite(graph, runtime)
    inputs = golden_inputs(source, graph)
    outputs = reference.run(graph, inputs)
    _refuse_constant(graph)
    labelled = source.samples is not None and source.samples.y is not None
    exact = None if source.is_int8 else source.graph
    measured = accuracy(exact, graph, source.samples) if labelled and source.samples else None
    arena = measured_arena(tflite) if ftm is None else None
    if ftm is None:
        facts = (device, whole, graph, len(tflite), source.name, measured)
        report = make_tflm_report(*facts, decode=runtime == DECODE, measured=arena)
    else:
        report = make_report(device, whole, graph, ftm, source.name, measured, tables)
    report = replace(report, notes=(*report.notes, *_quantisation_notes(source.wishes, converter)), noise=noise)
    report = replace(report, client=client_on(device, all_devices(), source.training))
    report = _gated(report, measured, min_accuracy)
    return Exported(graph, ftm, tflite, inputs, outputs, report, arena)


def _laid_out(device: Device, graph: Graph, tables: Mapping[str, int], aim: Aim, encoding: str | None) -> Ftm:
    """The model in its smallest form, in a faster one for which the board has room, or in one encoding throughout."""
    sizes = load_code_sizes(device.cpu)
    code_bytes = sizes.kernel_bytes() if sizes else {}
    if encoding is not None:
        encodings(graph, code_bytes)  # refuses what the runtime cannot run
        return lay_out(graph, forced(graph, ENCODINGS[encoding]))
    smallest = write_ftm(graph, code_bytes)
    if aim is Aim.SIZE:
        return smallest
    flash = [f for f in plan_figures(device, smallest, tables, None) if f.name in ("flash.model", "flash.total")]
    room = min(f.limit - f.value for f in flash if f.limit is not None and f.value is not None)
    return faster(graph, smallest, code_bytes, aim, room)


def _gated(report: Report, measured: Accuracy | None, min_accuracy: float | None) -> Report:
    if min_accuracy is None:
        return report
    if measured is None:
        raise UsageError("--min-accuracy needs labelled samples: give --eval FILE.npz with x and y")
    if measured.int8 >= min_accuracy:
        return report
    missed = f"int8 accuracy {measured.int8:.4f} on {measured.samples} samples is below {min_accuracy:g}"
    return replace(report, gates=(missed,))


def _by_tensorflow(source: Source, whole: Graph, runtime: str) -> bytes:
    if source.is_int8:
        raise UsageError(f"{source.name} is int8 already: leave out --converter")
    if runtime == DECODE:
        raise UsageError("--runtime tflm-decode is for our own converter: leave out --converter")
    return convert(settled(source), whole)


def _noise(source: Source, whole: Graph) -> tuple[LayerNoise, ...]:
    shown = source.samples or source.calibration
    if source.is_int8:
        raise UsageError(f"{source.name} is int8 already: --explain has no float network to compare it with")
    if shown is None:
        raise UsageError("--explain needs samples: give --eval or --calibration FILE.npz")
    return explain(source.graph, whole, shown)


def _tflite(graph: Graph, runtime: str) -> bytes:
    if runtime != DECODE:
        return write_tflite(graph)
    if not decoded_bytes(graph):
        raise FedtinyError("no layer gets smaller by DECODE, which needs many zeros: export with --runtime tflm")
    return write_tflite(graph, decode=True)


def quantized(source: Source) -> Graph:
    """The int8 network, before any reduction."""
    if source.is_int8:
        return source.graph
    graph = quantize(settled(source), source.ranges)
    if source.wishes.correct_bias and source.calibration is not None:
        return correct_biases(source.graph, graph, source.calibration)
    return graph


def settled(source: Source) -> Graph:
    """The float network with weights that take still channels as int8 holds them."""
    return settle(source.graph, quantize(source.graph, source.ranges))


def _quantisation_notes(wishes: Wishes, converter: str) -> tuple[str, ...]:
    said = ["model.tflite is TensorFlow's own conversion of the same network"] if converter == TENSORFLOW else []
    said += [f"activation ranges: {wishes.ranges}"] if wishes.ranges != AUTO else []
    said += ["channels were equalised between layers"] if wishes.equalize else []
    return tuple(said + (["biases were corrected"] if wishes.correct_bias else []))


def golden_inputs(source: Source, graph: Graph) -> NDArray[np.int8]:
    """A few real samples and a few random ones, always the same."""
    shape = graph.tensors[graph.input].shape
    noise = np.random.default_rng(0).integers(-128, 128, (GOLDEN_RANDOM, *shape), np.int8)
    if source.samples is None:
        return noise
    return np.concatenate([to_int8(graph, source.samples.x[:GOLDEN_SAMPLES]), noise])


def table_bytes(source: Source, graph: Graph) -> dict[str, int]:
    """Flash that a project takes beside model and code: the self-test's vectors and the labels."""
    data, result = graph.tensors[graph.input].elements, graph.tensors[graph.output].elements
    shown = 0 if source.samples is None else min(GOLDEN_SAMPLES, source.samples.x.shape[0])
    return {"selftest": selftest_bytes(data, result, GOLDEN_RANDOM + shown), "labels": label_bytes(source.labels)}


def _refuse_constant(graph: Graph) -> None:
    """Sixteen random inputs, one at a time: a large image would take gigabytes all at once."""
    shape, random = graph.tensors[graph.input].shape, np.random.default_rng(1)
    if graph.tensors[graph.output].elements == 1:
        return
    first = reference.run(graph, random.integers(-128, 128, (1, *shape), np.int8))
    for _ in range(PROBES - 1):
        if np.any(reference.run(graph, random.integers(-128, 128, (1, *shape), np.int8)) != first):
            return
    raise FedtinyError("the network gives one and the same output for every input: nothing is left to run")


def _port(graph: Graph, name: str) -> Port:
    tensor = graph.tensors[name]
    assert tensor.quant is not None
    return Port(shape=tensor.image, scale=tensor.quant.scale, zero_point=tensor.quant.zero_point)


def write_export(
    target: Path,
    exported: Exported,
    device: Device,
    labels: tuple[str, ...],
    kind: str = PLATFORMIO,
    own_board: Path | None = None,
) -> None:
    """Write the export folder, or renew one that fedtiny-export wrote before; `kind` of firmware project.

    `own_board` is the file of a board that is the user's own; the export carries it, so that it can be checked.
    """
    new = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not new:
        _check_target(target, device, exported.report.runtime, own_board)
        if exported.ftm is not None and kind_of(target) != kind:
            raise FedtinyError(f"{target} holds a {kind_of(target)} project with files of yours: choose another --out")
    else:
        with atomic_folder(target) as draft:
            _fill(draft, exported, device, labels, kind, own_board)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        draft = Path(name) / "new"
        draft.mkdir()
        _fill(draft, exported, device, labels, kind, own_board)
        _renew(target, draft, Path(name) / "old")


def _check_target(target: Path, device: Device, runtime: str, own_board: Path | None) -> None:
    """Only an export for the same board is renewed: the user's files in it are written for that board."""
    if not (target / "report.json").is_file():
        raise FedtinyError(f"{target} exists and is not an export of fedtiny: choose another --out")
    before = read_json_object(target / "report.json")
    board = before.get("board")
    if board != device.id:
        raise FedtinyError(f"{target} holds an export for {board}, with files of yours for it: choose another --out")
    if (target / OWN_BOARD).exists() != (own_board is not None):
        whose = "a board file" if own_board is None else "the board of that name that comes with fedtiny"
        raise FedtinyError(f"{target} holds an export for {whose}, not for this one: choose another --out")
    if before.get("runtime") != runtime:
        raise FedtinyError(f"{target} holds an export for the runtime {before.get('runtime')}: choose another --out")


def _fill(
    folder: Path,
    exported: Exported,
    device: Device,
    labels: tuple[str, ...],
    kind: str,
    own_board: Path | None,
) -> None:
    if own_board is not None:
        (folder / OWN_BOARD).write_bytes(own_board.read_bytes())
    golden = io.BytesIO()
    np.savez(golden, inputs=exported.golden_inputs, outputs=exported.golden_outputs)
    (folder / "golden.npz").write_bytes(golden.getvalue())
    (folder / "model.tflite").write_bytes(exported.tflite)
    if exported.ftm is not None:
        (folder / "model.ftm").write_bytes(exported.ftm.data)
        parts = (exported.graph, exported.ftm, exported.tflite, exported.golden_inputs, exported.golden_outputs)
        write_project(folder, device, make_artifacts(*parts, labels), kind)
    else:
        for name, content in tflm_files(exported.tflite, exported.arena_bytes).items():
            (folder / name).write_bytes(content)
    write_report(folder, exported.report)


def make_artifacts(
    graph: Graph,
    ftm: Ftm,
    tflite: bytes,
    golden_inputs: NDArray[np.int8],
    golden_outputs: NDArray[np.int8],
    labels: tuple[str, ...],
) -> Artifacts:
    """What a firmware project is made of."""
    count = golden_inputs.shape[0]
    given, made = golden_inputs[0].size, golden_outputs[0].size
    return Artifacts(
        ftm=ftm.data,
        tflite=tflite,
        kernels=ftm.kernels,
        arena_bytes=ftm.plan.arena_bytes,
        input=_port(graph, graph.input),
        output=_port(graph, graph.output),
        labels=labels,
        normalization="inside the network: give the sensor's own values",
        golden_inputs=golden_inputs.reshape(count, -1),
        golden_outputs=golden_outputs.reshape(count, -1),
        steps=golden_steps(ftm.plan, golden_inputs[: selftest_vectors(given, made, count)]),
    )


def write_report(folder: Path, report: Report) -> None:
    """Write the three renderings of a report, each under a temporary name first."""
    write_atomically(folder / "report.json", report.to_json())
    write_atomically(folder / "report.txt", plain_text(report))
    write_atomically(folder / "report.html", html_text(report))


def _renew(target: Path, draft: Path, old: Path) -> None:
    """Swap generated entries one rename at a time; folders such as lib/ may hold things of the user's beside ours."""
    old.mkdir()
    for entry in sorted(draft.iterdir()):
        place = target / entry.name
        if entry.name in USER_FILES and place.exists():
            continue
        children = sorted(entry.iterdir()) if entry.is_dir() and place.is_dir() else [entry]
        for child in children:
            destination = place if child is entry else place / child.name
            if destination.exists():
                destination.rename(old / f"{entry.name}.{child.name}")
            child.rename(destination)
