"""The C runtime on the host, compiled once with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c99", "-O1", "-g", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
# the harness itself frees nothing on its way out of a refusal
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@cache
def program(*flags: str, main: str = "host.c") -> Path:
    """Compile the runtime with every kernel into one program; `-m32` makes it one of 32 bits."""
    folder = Path(tempfile.mkdtemp(prefix="fedtiny-host-"))
    sources = [*sorted((ROOT / "firmware/src").rglob("*.c")), ROOT / "tests/firmware" / main]
    include = f"-I{ROOT / 'firmware/include'}"
    subprocess.run(
        ["gcc", *FLAGS, *SANITIZERS, *flags, include, *map(str, sources), "-o", str(folder / "host")],
        check=True,
    )
    return folder / "host"


def run(model: bytes, inputs: np.ndarray, *flags: str) -> tuple[int, int, bytes]:
    """Return the status of opening `model`, its arena size, and the outputs for all inputs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.ftm").write_bytes(model)
        (folder / "x").write_bytes(np.ascontiguousarray(inputs, np.int8).tobytes())
        arguments = [str(program(*flags)), str(folder / "m.ftm"), str(folder / "x"), str(folder / "y")]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
        if done.returncode != 0:
            raise AssertionError(f"the runtime ended with {done.returncode}: {done.stderr[-2000:]}")
        lines = [int(line) for line in done.stdout.split()]
        outputs = (folder / "y").read_bytes() if lines[0] == 0 else b""
        return lines[0], lines[1] if len(lines) > 1 else 0, outputs
