"""A run that is killed and resumed leaves the same bytes as one that was left alone: tried, with kill -9.

Each trial starts fedtiny-train in a process of its own, kills it, resumes it and compares every file of the run
folder but timing.json with that of an undisturbed run. Most kills come at a random moment of the run; some
come from inside the writing of a resume point, at a stated step of a stated round. Run it with
python benchmarks/kill_resume.py --out kill_resume.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = ["--clients", "4", "--rounds", "8", "--width", "4", "--local-epochs", "1", "--public", "holdout:40"]
FLAGS += ["--tune-epochs", "2", "--pool", "2", "--adjust-every", "2", "--adjust-until", "8", "--participation", "0.75"]
FLAGS += ["--simulate-faults", "dropout=0.2,nan=0.1", "--quorum", "0.6"]
COMMAND = "import sys; from fedtiny_train.cli import main; main(sys.argv[1:])"
# The child kills itself at a step of writing the resume point of a round: nothing but the process knows the moment.
INSIDE = """
import os, signal, sys
from fedtiny_train import runfolder
step, point = sys.argv[1], int(sys.argv[2])
def here(): os.kill(os.getpid(), signal.SIGKILL)
def is_it(path): return f"round-{point:05}" in str(path)
save, write, rmtree = runfolder.save_file, runfolder.write_atomically, runfolder.shutil.rmtree
def save_file(tensors, path):
    if step == "before the model" and is_it(path): here()
    save(tensors, path)
    if step == "half a model" and is_it(path):
        path.write_bytes(path.read_bytes()[:500])
        here()
def write_atomically(path, content):
    write(path, content)
    if step == f"after {path.name}" and is_it(path): here()
def remove(path, *rest, **more):
    if step == "half an old point removed" and is_it(path):
        (path / "model.safetensors").unlink()
        here()
    rmtree(path, *rest, **more)
def part(path, content):
    lines = content.count("\\n") if path.name == "metrics.jsonl" and "round-" not in str(path) else 0
    if step == "half of metrics.jsonl" and lines > point:
        (path.parent / ".metrics.jsonl.1.part").write_text(content[:50])
        here()
    write_atomically(path, content)
runfolder.save_file, runfolder.write_atomically, runfolder.shutil.rmtree = save_file, part, remove
from fedtiny_train.cli import main
main(sys.argv[3:])
"""
STEPS = [
    ("before the model", 0),
    ("half a model", 2),
    ("after progress.json", 3),
    ("after SHA256SUMS", 5),
    ("half an old point removed", 6),
    ("half of metrics.jsonl", 4),
]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a run but the one with clock times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a process of the trainer."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def resume_until_done(out: Path, flags: list[str]) -> str:
    """Go on with a killed run, or begin again where it had not begun; return what the last attempt said."""
    arguments = ["--resume", str(out)] if out.exists() else [*flags, "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def compared(whole: dict[str, bytes], out: Path, error: str) -> str:
    """Return how a resumed folder differs from the whole one, or an empty string."""
    if error:
        return error
    found = contents(out)
    return ", ".join(sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)))


def moment_of(out: Path) -> str:
    """Return how far a killed run had come."""
    points = sorted(path.name for path in (out / "state").glob("round-*"))
    return points[-1] if points else "no resume point"


def at_random(whole: dict[str, bytes], folder: Path, draw: random.Random, index: int) -> dict[str, Any]:
    """Kill a run at a random moment after a random one of its resume points, resume it, compare.

    The delay is up to the mean time of a round of this very run: a moment by the clock alone would say little, since
    the next run may be twice as fast.
    """
    out, last = folder / f"random-{index}", max(0, len(whole["metrics.jsonl"].splitlines()) - 2)
    point, share = draw.randint(0, last), draw.random()
    begin = time.monotonic()
    process = start(COMMAND, *FLAGS, "--out", str(out))
    while process.poll() is None and not (out / "state" / f"round-{point:05}").exists():
        time.sleep(0.005)
    delay = share * (time.monotonic() - begin) / (point + 2)
    time.sleep(delay)
    killed = process.poll() is None
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    moment = moment_of(out)
    error = resume_until_done(out, FLAGS) if killed and not (out / "summary.json").exists() else ""
    what = f"{delay:.2f} s after the point of round {point}" + ("" if killed else ", which was too late")
    return {"killed": what, "moment": moment, "differs": compared(whole, out, error)}


def inside(whole: dict[str, bytes], folder: Path, step: str, point: int) -> dict[str, Any]:
    """Let a run kill itself inside the writing of a resume point, resume it, compare."""
    out = folder / f"inside-{STEPS.index((step, point))}"
    code = start(INSIDE, step, str(point), *FLAGS, "--out", str(out)).wait()
    moment = moment_of(out)
    error = resume_until_done(out, FLAGS) if code == -signal.SIGKILL else f"it was not killed, but left with {code}"
    return {"killed": f"{step}, round {point}", "moment": moment, "differs": compared(whole, out, error)}


def main() -> int:
    """Carry out the trials, print a line each, write the JSON; 1 if any differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("kill_resume.json"))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="trial to begin with; the first ones are inside a writing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, trials = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        start(COMMAND, *FLAGS, "--out", str(folder / "whole")).wait()
        seconds, whole = time.monotonic() - begin, contents(folder / "whole")
        print(f"undisturbed: {len(whole)} files in {seconds:.1f} s", flush=True)
        for index in range(options.first, options.trials):
            if index < len(STEPS):
                trial = inside(whole, folder, *STEPS[index])
            else:
                trial = at_random(whole, folder, draw, index)
            trials.append(trial)
            print(f"{trial['killed']:44} {trial['moment']:18} {trial['differs'] or 'the same bytes'}", flush=True)
    options.out.write_text(json.dumps({"files": len(whole), "trials": trials}, indent=1) + "\n")
    return int(any(trial["differs"] for trial in trials))


if __name__ == "__main__":
    raise SystemExit(main())
