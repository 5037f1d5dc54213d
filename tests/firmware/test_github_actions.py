"""The workflow of docs/github-actions.md, step by step, on a repository whose model grows, stays, or no longer fits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import make_run

ROOT = Path(__file__).parents[2]
COMMANDS = {"fedtiny-export": "export_main", "fedtiny-check": "check_main"}


def steps() -> dict[str, str]:
    """The shell text of every step that has a name, as GitHub would run it."""
    page = (ROOT / "docs" / "github-actions.md").read_text()
    workflow = page.partition("```yaml\n")[2].partition("\n```\n")[0] + "\n"
    found = re.findall(r"      - name: (.+)\n        run: \|\n((?:          .+\n)+)", workflow)
    return {name: "".join(line[10:] + "\n" for line in text.splitlines()) for name, text in found}


def test_the_page_has_the_steps():
    assert list(steps()) == [
        "Compiler, emulator, fedtiny",
        "The model of this pull request",
        "The model before it",
        "Compare",
    ]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def pull_request(tmp_path, need_tool):
    """A function that makes a repository with two models and runs the workflow: the step that ended it, and how."""
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, function in COMMANDS.items():
        program = programs / name
        program.write_text(f"#!{sys.executable}\nfrom fedtiny_export.cli import {function}\n{function}()\n")
        program.chmod(0o755)

    def run(before: float, after: float) -> tuple[str, int, str]:
        origin, clone = tmp_path / "origin", tmp_path / "clone"
        make_run(origin / "model", density=before)
        git(tmp_path, "init", "-q", "-b", "main", str(origin))
        git(origin, "add", "-A")
        git(origin, "commit", "-qm", "before")
        git(tmp_path, "clone", "-q", str(origin), str(clone))
        if after != before:
            subprocess.run(["rm", "-r", str(clone / "model")], check=True)
            make_run(clone / "model", density=after)
        summary = tmp_path / "summary.md"
        environment = {**os.environ, "MODEL": "model", "BOARD": "qemu-m4", "GITHUB_BASE_REF": "main"}
        environment |= {"GITHUB_STEP_SUMMARY": str(summary), "PATH": f"{programs}:{os.environ['PATH']}"}
        for name, text in list(steps().items())[1:]:
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text]
            done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=300)
            if done.returncode != 0:
                return name, done.returncode, done.stderr
        return "", 0, summary.read_text()

    return run


def test_a_model_that_stays_passes_with_its_table(pull_request):
    step, code, said = pull_request(0.2, 0.2)
    assert (step, code) == ("", 0), said
    assert "nothing differs" in said
    assert "flash.model" in said


def test_a_model_that_grows_stops_the_pull_request(pull_request):
    step, code, said = pull_request(0.2, 0.25)
    assert (step, code) == ("Compare", 5), said
    assert "flash.model (measured-elf) grew by" in said
