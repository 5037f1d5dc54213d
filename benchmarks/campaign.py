"""Runs of fedtiny-train by the dozen: what the benchmarks of training methods share.

A case is a name and the flags of one run. Each run is a process of its own; what it gave is appended to a file of
JSON lines, and a case that is there already is not run again, so a campaign can be stopped and gone on with at any
moment, on another day. A finished network is exported as well: its packed bytes, arena and instructions are
figures of the exporter, not estimates.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

BOARD = "qemu-m4"
FIGURES = ("flash.model", "ram.arena", "instructions")
Flags = Mapping[str, bool | int | float | str]
Result = dict[str, Any]


def arguments(flags: Flags) -> list[str]:
    """Return flags as a command line has them."""
    found = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", str(value)]
    return found


def key(flags: Flags) -> str:
    """Return what a case is known by: its flags, without the paths of this machine."""
    return " ".join(arguments({n: Path(v).name if n == "data" else v for n, v in flags.items()}))


def known(path: Path) -> dict[str, Result]:
    """Return the results of a file by key."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def one(flags: Flags, keep: Path | None = None) -> Result:
    """Carry out one run and its export; return what a table may want of it, or why there is none.

    With `keep` the run folder stays there, under the digest of its key.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-c", "from fedtiny_train.cli import main; main()", *arguments(flags)]
        done = subprocess.run([*command, "--out", str(run), "--json"], capture_output=True, text=True, check=False)
        if done.returncode:
            return {"key": key(flags), "error": done.stderr.strip().splitlines()[-1]}
        summary = json.loads(done.stdout)
        seconds = json.loads((run / "timing.json").read_text())["seconds"]
        clients = sorted(a for a in summary["accuracy_per_client"] if a is not None)
        worst = clients[: max(1, len(clients) // 10)]
        result = {name: summary[name] for name in ("accuracy", "width", "density", "nonzero", "weights", "cost")}
        result |= {"key": key(flags), "worst_tenth": sum(worst) / len(worst), "seconds": round(seconds)}
        result["packed"] = packed(run)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.move(run, keep / kept_name(flags))
        return result


def kept_name(flags: Flags) -> str:
    """Return the folder a kept run has."""
    return hashlib.sha256(key(flags).encode()).hexdigest()[:16]


def packed(run: Path) -> Result | None:
    """Export a run; return the figures of its report, or None where the exporter refuses the network."""
    out = run.parent / "export"
    code = "from fedtiny_export.cli import export_main; export_main()"
    command = [sys.executable, "-c", code, str(run), "--target", BOARD, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        print(done.stderr.strip(), file=sys.stderr)
        return None
    report = json.loads((out / "report.json").read_text())
    figures = {f["name"]: f["value"] for f in report["figures"] if f["source"] == "planned" and f["name"] in FIGURES}
    return figures | {"accuracy_int8": (report["accuracy"] or {}).get("int8")}


def carry_out(cases: Sequence[Flags], path: Path, jobs: int, keep: Path | None = None) -> dict[str, Result]:
    """Run the cases that the file does not have yet, `jobs` at a time; return the results of all that ran well."""
    lock, before = Lock(), known(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    open_cases = [flags for flags in cases if key(flags) not in before]
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def work(flags: Flags) -> None:
        result = one(flags, keep)
        with lock:
            note = result.get("error") or f"{result['accuracy']:.2%} in {result['seconds']} s"
            print(f"{result['key']}: {note}", file=sys.stderr, flush=True)
            if "error" not in result:
                with path.open("a") as out:
                    out.write(json.dumps(result) + "\n")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, open_cases))
    return known(path)
