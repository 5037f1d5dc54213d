"""Many runs over combinations of options, in one folder, and one table of what came of them.

Each combination is a run folder of its own, so a sweep that was stopped goes on where it was: finished runs are
skipped, a half-done one is resumed. What a run does is the business of `rounds`.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtiny_export.atomic import write_atomically
from fedtiny_export.errors import FedtinyError, UsageError, nearest
from fedtiny_export.untrusted import guarded, read_json_object

from fedtiny_train.config import Scalar, apply_flags, read_toml, recorded, settle
from fedtiny_train.options import Config, options

Result = dict[str, Any]
Progress = Callable[[Mapping[str, Any]], None]
COSTS = ("flops_max", "memory_max", "bytes_up", "bytes_down")
FIGURES = ("accuracy", "density", "nonzero", "weights", "cost", "refused", "rounds_missed")
MOST_RUNS = 10_000


@dataclass(frozen=True, slots=True)
class Sweep:
    """The options that are swept, each with its values, and the runs that they make by folder name."""

    values: Mapping[str, tuple[Scalar, ...]]
    runs: Mapping[str, Config]
    chosen: Mapping[str, Mapping[str, Scalar]]


def read_sweep(text: str, start: Config) -> Sweep:
    """Read `seed=0,1,2 density=0.1,0.05` and make every combination; raise UsageError on what makes none."""
    values = read_values(text)
    runs: dict[str, Config] = {}
    chosen: dict[str, dict[str, Scalar]] = {}
    count = 1
    for several in values.values():
        count *= len(several)
    if count > MOST_RUNS:
        raise UsageError(f"--sweep asks for {count:,} runs; the limit is {MOST_RUNS:,}: sweep fewer values")
    for combination in itertools.product(*values.values()):
        flags = dict(zip(values, combination, strict=True))
        name = folder_name(flags)
        if name in runs:
            raise UsageError(f"--sweep has two runs named {name}; leave out values that differ in signs only")
        runs[name] = settle(apply_flags(start, flags))
        chosen[name] = flags
    return Sweep(values, runs, chosen)


def read_values(text: str) -> dict[str, tuple[Scalar, ...]]:
    """Return the values of each swept option. They lie between commas, or bars where a value has commas."""
    items = {item.name: item for _, item in options() if item.metadata["recorded"]}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--sweep {text!r} cannot be read: {error}") from None
    found: dict[str, tuple[Scalar, ...]] = {}
    for word in words:
        name, mark, listed = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if name not in items:
            raise UsageError(f"--sweep: no option {name!r} that a result depends on{nearest(name, items)}")
        if not mark or name in found:
            raise UsageError(f"--sweep: {name} {'comes twice' if mark else 'needs values, as in seed=0,1,2'}")
        values = tuple(_value(name, type(items[name].default), v) for v in listed.split("|" if "|" in listed else ","))
        if len(set(values)) != len(values):
            raise UsageError(f"--sweep: {name} has a value twice: {listed}")
        found[name] = values
    if not found:
        raise UsageError("--sweep needs an option and its values, as in --sweep 'seed=0,1,2 density=0.1,0.05'")
    return found


def _value(name: str, kind: type, text: str) -> Scalar:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        made: Scalar = kind(text)
    except (ValueError, KeyError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise UsageError(f"--sweep: {name} must be {wanted}, not {text!r}") from None
    return made


def folder_name(flags: Mapping[str, Scalar]) -> str:
    """Return the name of a run's folder: its options, in signs that every file system takes."""
    parts = (f"{name.replace('_', '-')}-{_text(value)}" for name, value in flags.items())
    return re.sub(r"[^A-Za-z0-9._+-]", "-", "_".join(parts))[:200]


def _text(value: Scalar) -> str:
    return Path(value).stem if isinstance(value, str) and value.endswith(".npz") else str(value)


def carry_out(
    sweep: Sweep, out: Path, bar: Callable[[int], AbstractContextManager[Progress]], say: Callable[[str], None]
) -> list[Result]:
    """Carry out the runs that are not done; return a result a run, in order. One that fails does not stop the rest."""
    _check_folder(sweep, out)
    found = []
    for index, (name, config) in enumerate(sweep.runs.items()):
        folder = out / name
        done = (folder / "summary.json").exists()
        say(f"{index + 1}/{len(sweep.runs)} {name}{': done already' if done else ''}")
        try:
            summary = read_json_object(folder / "summary.json") if done else _run(config, folder, bar)
            result = _result(folder, summary)
        except FedtinyError as error:
            say(f"{name} failed: {error}")
            result = {"error": str(error)}
        found.append({"name": name, "options": dict(sweep.chosen[name]), **result})
    return found


def _run(config: Config, folder: Path, bar: Callable[[int], AbstractContextManager[Progress]]) -> Result:
    from fedtiny_train import rounds

    with bar(config.train.rounds) as progress:
        return rounds.carry_out(config, folder, progress, resume=(folder / "config.toml").exists())


def _check_folder(sweep: Sweep, out: Path) -> None:
    """Refuse a folder whose runs are others than those of this sweep: their results would be mixed."""
    if (out / "config.toml").exists():
        raise FedtinyError(f"{out} is a run folder; choose another --out for the sweep")
    for name, config in sweep.runs.items():
        path = out / name / "config.toml"
        if path.exists() and recorded(read_toml(path)) != recorded(config):
            raise FedtinyError(f"{out / name} was run with other options; choose another --out, or remove it")
        if not path.exists() and path.parent.exists():
            raise FedtinyError(f"{out / name} exists and is no run folder; choose another --out, or remove it")


def _result(folder: Path, summary: Result) -> Result:
    def read() -> Result:
        accuracies = [a for a in summary["accuracy_per_client"] if a is not None]
        found = {key: summary[key] for key in FIGURES} | {"worst_client": min(accuracies, default=None)}
        for value in (found["accuracy"], found["density"], *(found["cost"][name] for name in COSTS)):
            float(value)
        return found

    return guarded(folder / "summary.json", "the summary of a run", read)


def write(out: Path, sweep: Sweep, results: Sequence[Result]) -> str:
    """Write sweep.json and sweep.html; return the text of sweep.json."""
    from fedtiny_train import sweep_page

    content = {
        "schema": 1,
        "options": {name: list(values) for name, values in sweep.values.items()},
        "runs": list(results),
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "sweep.json", text)
    write_atomically(out / "sweep.html", sweep_page.page(results))
    return text
