"""The run folder: what a run leaves behind, written so that a stop at any moment leaves no half-written file.

`config.toml` comes first and `summary.json` last: a folder without a summary is unfinished and can be resumed.
Nothing is pickled. Clock times go to `timing.json` and nowhere else.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import io
import json
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.atomic import atomic_folder, write_atomically
from fedtiny_export.errors import FedtinyError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedtiny_train.config import Config, to_toml
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.server import State

SCHEMA = 1
MASK = "mask/"
SAMPLES = 100
Line = dict[str, Any]


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


def save_state(folder: Path, number: int, state: State, data: str) -> None:
    """Write the resume point of a round, whole or not at all; keep the one before and drop the older ones."""
    tensors: dict[str, npt.NDArray[Any]] = {name: np.asarray(a, order="C") for name, a in state.tensors.items()}
    tensors |= {MASK + name: np.asarray(mask, order="C") for name, mask in state.masks.items()}
    # safetensors sorts by name; the order of the network is kept apart, since files are written in it.
    order = {"tensors": list(state.tensors), "masks": list(state.masks)}
    progress = {"schema": SCHEMA, "round": number, "data": data, "order": order, "memory": state.memory}
    with atomic_folder(folder / "state" / f"round-{number:05}") as draft:
        save_file(dict(sorted(tensors.items())), draft / "model.safetensors")
        write_atomically(draft / "progress.json", to_json(progress))
    for old in _states(folder)[2:]:
        shutil.rmtree(old)


def _states(folder: Path) -> list[Path]:
    return sorted((folder / "state").glob("round-*"), reverse=True)


def load_state(folder: Path, data: str) -> tuple[int, State] | None:
    """Return the newest resume point that can be read, or None before the first one.

    The data must be what it was when the run began: `data` is its fingerprint.
    """
    for draft in (folder / "state").glob(".round-*"):
        shutil.rmtree(draft)
    problem = ""
    for path in _states(folder):
        try:
            progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
            tensors = load_file(path / "model.safetensors")
            number, known, order = int(progress["round"]), progress["data"], progress["order"]
            masks = {name: tensors[MASK + name] for name in order["masks"]}
            state = State({name: tensors[name] for name in order["tensors"]}, masks, progress["memory"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            problem = f"{path.name}: {error}"
            shutil.rmtree(path)
            continue
        if known != data:
            raise FedtinyError(f"{folder} was begun with other data than there is now; start a new run")
        return number, state
    if problem:
        raise FedtinyError(f"no resume point in {folder}/state can be read ({problem}); start a new run")
    return None


def read_metrics(folder: Path, number: int) -> list[Line]:
    """Return the lines up to a round; those of rounds that a stopped run will do again are dropped."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        kept = [line for line in lines if line["round"] <= number]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedtinyError(f"{folder}/metrics.jsonl cannot be read: {error}") from None
    if [line["round"] for line in kept] != list(range(number + 1)):
        raise FedtinyError(f"{folder}/metrics.jsonl lacks rounds before round {number}; start a new run")
    return kept


def write_metrics(folder: Path, lines: list[Line]) -> None:
    """Write metrics.jsonl, one line a round."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_atomically(folder / "metrics.jsonl", text)


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
