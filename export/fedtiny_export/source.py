"""What the user hands to fedtiny-export, checked: a run folder, an ONNX or an int8 .tflite file, ranges, samples.

A run folder is read as design says fedtiny-train leaves it; nothing of fedtiny_train is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .board.clients import training_memory
from .errors import FedtinyError, UsageError
from .graph.evaluate import Samples, read_samples
from .graph.ir import Graph
from .graph.passes import simplify
from .onnx_in.read import read_onnx
from .quant.calibration import AUTO, Choice, choose_ranges, observe, read_ranges
from .quant.equalize import equalize
from .tflite.read import read_tflite
from .untrusted import read_json_object

MAX_LABELS = 1000


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a float network is to be quantised."""

    ranges: Choice = AUTO
    equalize: bool = False
    correct_bias: bool = False


PLAIN = Wishes()


@dataclass(frozen=True, slots=True)
class Source:
    """A float network ready to quantise, or one that came as int8 and has no ranges."""

    name: str
    graph: Graph
    ranges: Mapping[str, tuple[float, float]]
    samples: Samples | None
    labels: tuple[str, ...]
    calibration: Samples | None = None
    wishes: Wishes = PLAIN
    training: Mapping[str, int] | None = None  # bytes that a device of the run needed

    @property
    def is_int8(self) -> bool:
        """Whether the network is quantised already."""
        return self.graph.tensors[self.graph.input].quant is not None


def newest_run(folder: Path = Path("runs")) -> Path:
    """The run finished last under `runs/`."""
    finished = [path.parent for path in folder.glob("*/summary.json")]
    if not finished:
        raise UsageError(f"no finished run under {folder}/: give a run folder or a model.onnx, or call fedtiny-train")
    return max(finished, key=lambda path: ((path / "summary.json").stat().st_mtime, path.name))


def read_source(
    given: Path,
    *,
    calibration: Path | None,
    evaluation: Path | None,
    wishes: Wishes = PLAIN,
    ranges: tuple[float, float] | None = None,
) -> Source:
    """Read a run folder or a model file. `ranges`, if given, stand for every tensor's: to plan sizes, not to export."""
    if not given.exists():
        raise FedtinyError(f"{given}: no such file or folder")
    model = given / "model.onnx" if given.is_dir() else given
    if not model.is_file():
        raise FedtinyError(f"{given}: has no model.onnx: not a finished run of fedtiny-train")
    if model.suffix not in (".onnx", ".tflite"):
        raise UsageError(f"{given}: a run folder, a .onnx or an int8 .tflite file is needed")
    int8 = model.suffix == ".tflite"
    if int8 and (calibration is not None or wishes != PLAIN):
        raise UsageError(f"{given} is int8 already: leave out --calibration, --ranges, --equalize and --correct-bias")
    if calibration is None and (wishes.equalize or wishes.correct_bias):
        raise UsageError("--equalize and --correct-bias look at single channels: give --calibration FILE.npz")
    graph = read_tflite(model) if int8 else simplify(read_onnx(model))
    shown = read_samples(calibration, graph) if calibration is not None else None
    if shown is not None and wishes.equalize:
        graph = equalize(graph, shown)
    samples_file = model.parent / "samples.npz"
    samples = None
    if evaluation is not None:
        samples = read_samples(evaluation, graph, need_labels=True)
    elif given.is_dir() and samples_file.is_file():
        samples = read_samples(samples_file, graph)
    _check_label_range(graph, samples)
    if ranges is not None:
        made: Mapping[str, tuple[float, float]] = dict.fromkeys(graph.tensors, ranges)
    else:
        made = {} if int8 else _ranges(model, graph, shown, wishes.ranges)
    training = training_memory(given) if given.is_dir() else None
    return Source(given.name or "model", graph, made, samples, _labels(given, graph), shown, wishes, training)


def _check_label_range(graph: Graph, samples: Samples | None) -> None:
    classes = graph.tensors[graph.output].elements
    if samples is not None and samples.y is not None and not (samples.y.min() >= 0 and samples.y.max() < classes):
        raise FedtinyError(
            f"labels reach from {samples.y.min()} to {samples.y.max()}; the network has {classes} classes"
        )


def _ranges(model: Path, graph: Graph, shown: Samples | None, choice: Choice) -> Mapping[str, tuple[float, float]]:
    if shown is not None:
        return choose_ranges(graph, observe(graph, shown, histograms=choice.way != "minmax"), choice)
    beside = model.parent / "ranges.json"
    if not beside.is_file():
        raise FedtinyError(f"{model}: no ranges.json beside it: give --calibration FILE.npz with some inputs `x`")
    return choose_ranges(graph, read_ranges(beside), choice)


def _labels(given: Path, graph: Graph) -> tuple[str, ...]:
    count = graph.tensors[graph.output].elements
    numbered = tuple(str(index) for index in range(min(count, MAX_LABELS)))
    if not given.is_dir() or not (given / "summary.json").is_file():
        return numbered
    path = given / "summary.json"
    names = read_json_object(path).get("class_names")
    if names is None:
        return numbered
    if not isinstance(names, list) or len(names) != count or not all(_is_text(name) for name in names):
        raise FedtinyError(f"{path}: class_names must be {count} texts, one an output")
    return tuple(names)


def _is_text(name: object) -> bool:
    """A text that can be written as UTF-8; half a surrogate pair cannot."""
    return isinstance(name, str) and name.isprintable()
