"""A wheel in a fresh environment without extras: it installs, exports, and finds its boards and runtime sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import make_run

ROOT = Path(__file__).parents[1]


def call(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of programs of an environment that holds the built wheel and what it requires, no extra."""
    folder = tmp_path_factory.mktemp("install")
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    call(sys.executable, "-m", "venv", folder / "venv")
    wheel = next(folder.glob("fedtiny-*.whl"))
    call(folder / "venv/bin/pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    return folder / "venv/bin"


@pytest.mark.slow
def test_the_wheel_exports_without_torch(installed, tmp_path):
    run = make_run(tmp_path / "run")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    arguments = (run, "--target", "esp32", "--out", tmp_path / "out", "--json")
    report = json.loads(call(installed / "fedtiny-export", *arguments, cwd=tmp_path, env=environment).stdout)
    assert report["fits"] is True
    listed = call(installed / "pip", "list", "--format=freeze").stdout
    assert "torch" not in listed
    assert "tensorflow" not in listed
    assert (tmp_path / "out/lib/fedtiny/src/ft_model.c").is_file()


@pytest.mark.slow
def test_training_without_its_extra_names_the_extra(installed, tmp_path):
    done = subprocess.run(
        [str(installed / "fedtiny-train"), "--out", str(tmp_path / "r")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 6
    assert "fedtiny[train]" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_help_answers_in_half_a_second(installed):
    """Best of five: the machine may be busy, the program is not."""
    script = (
        "import subprocess, sys, time\nbest = 9.0\nfor _ in range(5):\n    start = time.perf_counter()\n"
        "    subprocess.run([sys.argv[1], '--help'], check=True, stdout=subprocess.DEVNULL)\n"
        "    best = min(best, time.perf_counter() - start)\nprint(best)"
    )
    for program in ("fedtiny-export", "fedtiny-check", "fedtiny-devices", "fedtiny-train"):
        assert float(call(sys.executable, "-c", script, installed / program).stdout) < 0.5
