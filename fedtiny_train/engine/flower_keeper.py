"""Keeps Flower's processes for one run: starts them, waits until its parent lets go, stops them, tidies up.

It is a process of its own that reads from a pipe, so that nothing is left running, or lying about, even if the run
is killed. It knows nothing of what Flower is used for, and imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ONLINE_SECONDS = 600  # a busy machine takes its time; what has died is seen at once
FAILED = "failed"
CONFIG = '[superlink.fedtiny]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


def free_port() -> int:
    """Return a port of the loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def begin(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start one of Flower's commands in a group of its own, its output in a log."""
    command = [str(Path(sys.executable).parent / name), *arguments]
    with (folder / f"{name}-{time.monotonic_ns()}.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens at a port."""
    end = time.monotonic() + ONLINE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise SystemExit(1)


def start(folder: Path, nodes: int, run: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Start SuperLink and SuperNodes by `run`, then submit our app."""
    port = free_port()
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(port=port))
    link = run("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    wait_for(port, link)
    for node in range(nodes):
        found = f'place="{folder / f"node-{node}"}" number={node}'
        flags = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()), "--node-config", found]
        run("flower-supernode", *flags)
    if run("flwr", "run", str(folder / "app"), "fedtiny").wait(ONLINE_SECONDS):
        raise SystemExit(1)


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    """Stop the processes and all that they started: asked first, then killed."""
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        end = time.monotonic() + seconds
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))


def strays(folder: Path) -> list[int]:
    """Return other processes that were started for a folder, also those that left their group; Linux alone tells."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in place.read_bytes():
                found.append(int(place.parent.name))
    return [number for number in found if number != os.getpid()]


def kill_strays(folder: Path) -> None:
    """End what a process of Flower's left behind in a session of its own."""
    end = time.monotonic() + 5.0
    while (left := strays(folder)) and time.monotonic() < end:
        for number in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def main() -> None:
    """Keep Flower for `FOLDER NODES` until standard input ends."""
    folder, nodes = Path(sys.argv[1]), int(sys.argv[2])
    running: list[subprocess.Popen[bytes]] = []
    gate = threading.Lock()

    def run(*command: str) -> subprocess.Popen[bytes]:
        with gate:  # once it is over nothing is started any more
            running.append(begin(folder, *command))
            return running[-1]

    def over() -> None:
        sys.stdin.buffer.read()
        gate.acquire()
        stop(running)
        kill_strays(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    # A thread hears the end at once, also while the processes are still being started.
    ending = threading.Thread(target=over)
    ending.start()
    try:
        start(folder, nodes, run)
    except (SystemExit, OSError, subprocess.TimeoutExpired):
        (folder / FAILED).touch()  # the parent reads the logs, then lets go
    ending.join()
