"""The README's fedtiny commands run in their order, in an empty folder, as a reader would type them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("fedtiny-")]


def test_the_readme_shows_every_command():
    shown = {line.split()[0] for line in commands()}
    assert shown == {"fedtiny-train", "fedtiny-export", "fedtiny-check", "fedtiny-devices"}


@pytest.mark.slow
def test_the_readmes_commands_work_as_typed(tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    programs = Path(sys.executable).parent
    for line in commands():
        program, *arguments = shlex.split(line)
        done = subprocess.run(
            [str(programs / program), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
