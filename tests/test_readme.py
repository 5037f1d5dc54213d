"""The README's fedtiny commands run in their order, in an empty folder, as a reader would type them."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block of code, in order."""
    return re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def commands_of(block: str) -> list[str]:
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line.startswith("fedtiny-")]


def commands() -> list[str]:
    return [line for kind, block in blocks() if kind == "sh" for line in commands_of(block)]


def test_the_readme_shows_every_command():
    shown = {line.split()[0] for line in commands()}
    assert shown == {"fedtiny-train", "fedtiny-export", "fedtiny-check", "fedtiny-devices"}


@pytest.mark.slow
def test_the_readmes_commands_work_as_typed(tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    programs, missing = Path(sys.executable).parent, False
    for kind, block in blocks():
        if kind == "python":
            missing = "tensorflow" in block and not _tensorflow_is_here()
            lines = [] if missing else [[sys.executable, "-c", block]]
        else:  # what TensorFlow did not write cannot be exported
            lines = [] if missing else [shlex.split(line) for line in commands_of(block)]
            lines = [[str(programs / program), *arguments] for program, *arguments in lines]
        for line in lines:
            done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


def _tensorflow_is_here() -> bool:
    here = importlib.util.find_spec("tensorflow") is not None
    assert here or os.environ.get("CI") != "true", "tensorflow is not installed (extra tensorflow)"
    return here


def test_the_readme_starts_from_networks_of_pytorch_and_keras():
    code = [block for kind, block in blocks() if kind == "python"]
    assert [("torch" in block, "keras" in block) for block in code] == [(True, False), (False, True)]
