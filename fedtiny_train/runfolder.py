"""The run folder: what a run leaves behind, written so that a stop at any moment leaves no half-written file.

`config.toml` comes first and `summary.json` last: a folder without a summary is unfinished and can be resumed.
Nothing is pickled. Clock times go to `timing.json` and nowhere else. A resume point holds the checksums of its
own files: a value that a failing disk has changed cannot be seen otherwise.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import io
import json
import logging
import math
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.atomic import atomic_folder, write_atomically
from fedtiny_export.errors import FedtinyError
from fedtiny_export.untrusted import guarded, read_json_object, read_text
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedtiny_train.config import Scalar, to_toml
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.options import Config
from fedtiny_train.server import State

LOG = logging.getLogger(__name__)
SCHEMA = 1
MODEL, PROGRESS, METRICS, CHECKSUMS = "model.safetensors", "progress.json", "metrics.jsonl", "SHA256SUMS"
MASK, KEPT, OWN = "mask/", "kept/", "own/"
SAMPLES = 100
Line = dict[str, Any]
LINE_NUMBERS = ("accuracy", "loss", "density", "bytes_up", "bytes_down", "flops_max", "memory_max", "memory_paper")
MEMORY = ("parameters", "gradients", "momentum", "buffer", "activations")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run was begun with and must be resumed with: a fingerprint of the data, and the recorded options."""

    data: str
    options: Mapping[str, Scalar]


def to_json(value: object) -> str:
    """Return JSON as the run folder has it: floats in full, no NaN, one line break at the end."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def default_out(config: Config, today: datetime.date) -> Path:
    """Return the first free `runs/<date>-<method>-<data>`, with -2, -3 ... behind it where there is one."""
    base = Path("runs") / f"{today.isoformat()}-{config.train.method}-{Path(config.data.data).stem}"
    out, count = base, 1
    while out.exists():
        count += 1
        out = base.with_name(f"{base.name}-{count}")
    return out


def create(out: Path, config: Config) -> None:
    """Begin a run folder; refuse one that exists."""
    if out.exists():
        raise FedtinyError(f"{out} exists already; choose another --out, or go on with it: --resume {out}")
    with atomic_folder(out) as draft:
        write_atomically(draft / "config.toml", to_toml(config))
        (draft / "state").mkdir()


def check_unfinished(folder: Path) -> None:
    """Refuse to resume what is no run, or a run that is done."""
    if not (folder / "config.toml").is_file():
        raise FedtinyError(f"{folder} is not a run folder: it has no config.toml")
    if (folder / "summary.json").exists():
        raise FedtinyError(f"{folder} is finished already; start another run with: fedtiny-train {folder}/config.toml")


def save_state(folder: Path, number: int, state: State, origin: Origin, lines: Sequence[Line]) -> None:
    """Write the resume point of a round, whole or not at all; keep the one before and drop the older ones."""
    tensors: dict[str, npt.NDArray[Any]] = {name: np.asarray(a, order="C") for name, a in state.tensors.items()}
    tensors |= {MASK + name: np.asarray(mask, order="C") for name, mask in state.masks.items()}
    tensors |= {KEPT + name: np.asarray(a, order="C") for name, a in state.kept.items()}
    tensors |= {f"{OWN}{client}": np.frombuffer(notes, np.uint8) for client, notes in state.own.items()}
    progress = {
        "schema": SCHEMA,
        "round": number,
        "data": origin.data,
        "options": origin.options,
        # safetensors sorts by name; the order of the network is kept apart, since files are written in it.
        "order": {"tensors": list(state.tensors), "masks": list(state.masks), "kept": list(state.kept)},
        "memory": state.memory,
    }
    with atomic_folder(folder / "state" / _state_name(number)) as draft:
        save_file(dict(sorted(tensors.items())), draft / MODEL)
        write_atomically(draft / PROGRESS, to_json(progress))
        write_atomically(draft / METRICS, _to_lines(lines))
        write_atomically(draft / CHECKSUMS, checksums(draft))
    _drop_old(folder)


def _drop_old(folder: Path) -> None:
    for old in _states(folder)[2:]:
        shutil.rmtree(old)


def checksums(point: Path) -> str:
    """Return the content of a resume point's SHA256SUMS, as `sha256sum` writes it."""
    digests = {name: hashlib.sha256((point / name).read_bytes()).hexdigest() for name in (MODEL, PROGRESS, METRICS)}
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _state_name(number: int) -> str:
    return f"round-{number:05}"


def _states(folder: Path) -> list[Path]:
    """Return the resume points, the newest first."""
    found = (folder / "state").glob("round-*")
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def has_trained(folder: Path) -> bool:
    """Return whether a round of training was completed; round 0 is the set-up."""
    return any(path.name != _state_name(0) for path in _states(folder))


def load_state(folder: Path, origin: Origin) -> tuple[int, State, list[Line]] | None:
    """Return the newest resume point that is whole and the lines up to it, or None before the first one.

    The data and the options must be what they were when the run began. What a killed process left half-written
    is removed.
    """
    torn: dict[Path, FedtinyError] = {}
    for path in _states(folder):
        try:
            number, state, began = _read_state(path)
            lines = read_metrics(path, number)
        except FedtinyError as error:
            torn[path] = error
            continue
        _check_origin(folder, began, origin)
        for other, reason in torn.items():
            LOG.warning("warning: %s; going on from round %d", reason, number)
            shutil.rmtree(other)
        _clear(folder)
        return number, state, lines
    if torn:
        raise FedtinyError(f"no resume point can be read; start a new run ({next(iter(torn.values()))})")
    _clear(folder)
    return None


def _clear(folder: Path) -> None:
    for draft in (folder / "state").glob(".round-*"):
        shutil.rmtree(draft)
    for part in folder.glob(".*.part"):
        part.unlink()
    _drop_old(folder)


def _check_origin(folder: Path, began: Origin, now: Origin) -> None:
    if began.data != now.data:
        raise FedtinyError(f"{folder} was begun with other data than there is now; start a new run")
    for name, value in now.options.items():
        if name == "device" and began.options.get(name) != value:
            raise FedtinyError(
                f"{folder} was begun on device {began.options.get(name)!r:.80}; {value!r:.80} computes other bytes; "
                "name the device in its config.toml, or start a new run"
            )
        if began.options.get(name) != value:
            raise FedtinyError(
                f"{folder} was begun with {name} {began.options.get(name)!r:.80}, and its config.toml now says "
                f"{value!r:.80}; put it back, or start a new run"
            )


def _read_state(path: Path) -> tuple[int, State, Origin]:
    """Return what a resume point holds; raise FedtinyError if it is not what `save_state` writes."""

    def read_sums() -> None:
        if read_text(path / CHECKSUMS) != checksums(path):
            raise ValueError("its files are not those that were written")

    guarded(path, "an undamaged resume point", read_sums)
    progress = read_json_object(path / PROGRESS)

    def read() -> tuple[int, State, Origin]:
        try:
            tensors = load_file(path / MODEL)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        number, order, options, memory = (progress[key] for key in ("round", "order", "options", "memory"))
        if type(number) is not int or path.name != _state_name(number):
            raise ValueError(f"its round is {number!r:.80}")
        if not isinstance(options, dict) or not all(isinstance(v, Scalar) for v in options.values()):
            raise ValueError("its options are no table of values")
        _check_memory(memory)
        state = State(
            {name: tensors[name] for name in order["tensors"]},
            {name: tensors[MASK + name] for name in order["masks"]},
            memory,
            {name: tensors[KEPT + name] for name in order["kept"]},
            {int(name.removeprefix(OWN)): tensors[name].tobytes() for name in tensors if name.startswith(OWN)},
        )
        wrong = [a for a in (*state.tensors.values(), *state.kept.values()) if a.dtype != np.float32]
        if wrong or any(mask.dtype != np.bool_ for mask in state.masks.values()):
            raise ValueError("its tensors must be float32 and its masks boolean")
        return number, state, Origin(str(progress["data"]), options)

    return guarded(path, "a resume point", read)


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)


def _check_memory(memory: Any) -> None:
    """Check what the summary and the report take from a state's memory."""
    if not isinstance(memory, dict) or not isinstance(norm := memory.get("normalisation"), dict):
        raise TypeError("its memory has no normalisation")
    if not _are_numbers([norm.get(key) for key in ("mean", "std", "min", "max")]):
        raise ValueError("its normalisation is not finite")
    if (ranges := memory.get("int8_ranges")) is not None:
        ends = np.array(ranges, dtype=np.float64)
        if ends.ndim != 2 or ends.shape[1] != 2 or not np.isfinite(ends).all() or (ends[:, 0] > ends[:, 1]).any():
            raise TypeError("its memory's int8 ranges are none")
    if type(memory.get("gate_client", 0)) is not int:
        raise ValueError("its gate_client is no number of a client")
    if (verdict := memory.get("selection")) is not None:
        lists = [verdict[key] for key in ("losses", "standard_errors", "accuracies")]
        if not all(map(_are_numbers, lists)) or len(set(map(len, lists))) != 1:
            raise ValueError("its selection is no table of candidates")
        if verdict["chosen"] not in range(len(lists[0])):
            raise ValueError("it chose a candidate that it does not have")


def read_metrics(point: Path, number: int) -> list[Line]:
    """Return the lines that a resume point holds: one for each round up to its own."""
    path = point / METRICS

    def read() -> list[Line]:
        lines: list[Line] = [json.loads(line) for line in read_text(path).splitlines()]
        for index, line in enumerate(lines):
            _check_line(line, index)
        if len(lines) != number + 1:
            raise ValueError(f"it has {len(lines)} lines, not {number + 1}")
        return lines

    return guarded(path, "the metrics of a run", read)


def _check_line(line: Line, number: int) -> None:
    if line["round"] != number:
        raise ValueError(f"line {number + 1} is of round {line['round']!r:.80}")
    spread = [line[f"accuracy_{which}"] for which in ("worst", "median", "best")]
    known = [value for value in spread if value is not None]
    if not _are_numbers([line[key] for key in LINE_NUMBERS] + known) or len(known) not in (0, len(spread)):
        raise ValueError(f"round {number} lacks a number")
    if set(line["memory"]) != set(MEMORY) or not _are_numbers([line["memory"][key] for key in MEMORY]):
        raise ValueError(f"round {number} does not say what its memory is for")
    if type(line["counted"]) is not bool or not _are_ids([line["invited"], [c["id"] for c in line["clients"]]]):
        raise ValueError(f"round {number} does not say who took part")
    if not all(_are_ids([[one["id"]]]) and isinstance(one["reason"], str) for one in line["refused"]):
        raise ValueError(f"round {number} does not say who was refused")


def _are_ids(lists: Sequence[Any]) -> bool:
    return all(isinstance(ids, list) and all(type(k) is int and k >= 0 for k in ids) for ids in lists)


def _to_lines(lines: Sequence[Line]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def write_metrics(folder: Path, lines: Sequence[Line]) -> None:
    """Write metrics.jsonl, one line a round."""
    write_atomically(folder / METRICS, _to_lines(lines))


def write_samples(folder: Path, dataset: Dataset) -> None:
    """Write samples.npz: up to 100 test samples, evenly spread over the set, as the user gave them."""
    count = min(SAMPLES, len(dataset.y_test))
    chosen = np.linspace(0, len(dataset.y_test) - 1, count).astype(np.int64)
    content = io.BytesIO()
    # numpy gives every member of the archive the same fixed date, so equal arrays are equal bytes.
    np.savez(content, x=dataset.x_test[chosen], y=dataset.y_test[chosen])
    write_atomically(folder / "samples.npz", content.getvalue())


class Clock:
    """The times of one process's part of a run, for timing.json alone."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.laps: list[dict[str, float]] = []

    def lap(self, number: int) -> None:
        """Note that a round is done."""
        now = time.perf_counter()
        self.laps.append({"round": number, "seconds": round(now - self.last, 4)})
        self.last = now

    def content(self, config: Config) -> dict[str, Any]:
        """Return the content of timing.json. After a resume it tells of the last process only."""
        return {
            "seconds": round(time.perf_counter() - self.begin, 3),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "workers": config.run.workers,
            "machine": platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "onnx")},
            "rounds": self.laps,
        }


def finish(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Write the last files in the order given."""
    for name, content in files.items():
        write_atomically(folder / name, content)
