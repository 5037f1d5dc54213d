"""Clients on Flower's nodes: a SuperLink and as many SuperNodes as there are workers, started here and stopped here.

Client k lives on node k modulo their number, which is given the data of its own clients and no others. A Flower
app of ours carries parcels of orders to the nodes and brings replies back (`flower_apps.py`); what travels are
the bytes of `wire.py`. Everything runs on this machine's loopback, without TLS, in a private folder that
`flower_keeper.py` removes. The answers, and so all of a run's bytes, are those of the local engine. (As there, a
client's notes are held by the run and travel with each order, so that a run can be resumed.)
"""

from __future__ import annotations

import hmac
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from fedtiny_export.errors import FedtinyError, ToolMissingError

from fedtiny_train.client import LocalSpec
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order, Reply
from fedtiny_train.engine.flower_keeper import FAILED
from fedtiny_train.engine.parcels import pack, pack_orders, unpack, unpack_replies

START_SECONDS = 1200
KEEPER = "from fedtiny_train.engine.flower_keeper import main; main()"
# Flower reports home and looks for updates unless it is told not to before it is imported.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
APP = """\
[project]
name = "fedtiny-clients"
version = "1.0.0"
description = "Carries fedtiny's orders to its clients"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedtiny"

[tool.flwr.app.components]
serverapp = "fedtiny_clients:server"
clientapp = "fedtiny_clients:client"

[tool.flwr.app.config]
"""

# Flower looks for assignments, without running the module.
MODULE = """\
from fedtiny_train.engine import flower_apps

client = flower_apps.client
server = flower_apps.server
"""


@dataclass(slots=True)
class Flower:
    """The line to the app, the process that keeps Flower, and how many nodes there are."""

    line: Connection
    keeper: subprocess.Popen[bytes]
    nodes: int

    def run(self, orders: Sequence[Order]) -> list[Reply]:
        """Send each node its orders; a node that fails leaves its clients without an answer."""
        groups = list(_groups(orders, self.nodes))
        parcels = [
            part
            for node, places in groups
            for part in (node.to_bytes(4, "little"), pack_orders([orders[place] for place in places]))
        ]
        try:
            self.line.send_bytes(pack(parcels))
            answers = unpack(self.line.recv_bytes())
        except (EOFError, OSError):
            raise FedtinyError("Flower stopped; go on with the run: --resume, where its folder is there") from None
        found = [Reply(b"", order.own) for order in orders]
        for (_, places), answer in zip(groups, answers, strict=True):
            for place, reply in zip(places, unpack_replies(answer, len(places)) if answer else (), strict=False):
                found[place] = reply
        return found

    def close(self) -> None:
        """Stop everything that was started, and wait until it is gone."""
        self.line.close()
        _stop(self.keeper)


def _groups(orders: Sequence[Order], nodes: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (node, places of its orders): those of a group share a request."""
    groups: dict[tuple[int, bytes, bytes], list[int]] = {}
    for place, order in enumerate(orders):
        groups.setdefault((order.client % nodes, order.request, order.kept), []).append(place)
    for (node, _, _), places in groups.items():
        yield node, places


def start(shards: Sequence[Shard], local: LocalSpec, workers: int) -> Flower:
    """Start Flower with a node for each worker and wait until our app is on the line."""
    if importlib.util.find_spec("flwr") is None:
        raise ToolMissingError("--engine flower needs the package flwr; pip install 'fedtiny[flower]'")
    nodes, folder = min(workers, len(shards)), Path(tempfile.mkdtemp(prefix="fedtiny-flower-"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        key = secrets.token_hex(32)
        _fill(folder, shards, local, nodes, server.getsockname()[1], key)
        keeper = _kept(folder, nodes)
        try:
            line = _accepted(server, key.encode(), keeper, folder)
        except BaseException:
            _stop(keeper)
            raise
    return Flower(line, keeper, nodes)


def _fill(folder: Path, shards: Sequence[Shard], local: LocalSpec, nodes: int, port: int, key: str) -> None:
    """Write what the nodes and the app are to find; the folder is this user's alone."""
    for node in range(nodes):
        place = folder / f"node-{node}"
        place.mkdir()
        (place / "local.json").write_text(json.dumps(asdict(local)))
        for shard in shards[node::nodes]:
            np.savez(place / f"client-{shard.client}.npz", x=shard.x, y=shard.y)
    app = folder / "app"
    app.mkdir()
    text = f"folder = {json.dumps(str(folder))}\nnodes = {nodes}\n"
    (app / "pyproject.toml").write_text(APP + text)
    (app / "fedtiny_clients.py").write_text(MODULE)
    (folder / "line.json").write_text(json.dumps({"port": port, "key": key}))


def _kept(folder: Path, nodes: int) -> subprocess.Popen[bytes]:
    # Where this process finds its modules (a network of the user's own is one), its nodes find them too.
    modules = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(folder), str(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **QUIET, "FLWR_HOME": str(folder / "home"), "PYTHONPATH": modules, "PATH": commands},
        start_new_session=True,  # Ctrl-C is ours to handle
    )


def _accepted(server: socket.socket, key: bytes, keeper: subprocess.Popen[bytes], folder: Path) -> Connection:
    """Return the line to the app once it has called and shown the key."""
    server.settimeout(1)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and keeper.poll() is None and not (folder / FAILED).exists():
        try:
            caller, _ = server.accept()
        except TimeoutError:
            continue
        caller.settimeout(None)
        line = Connection(caller.detach())
        try:
            if hmac.compare_digest(line.recv_bytes(len(key)), key):
                return line
        except (EOFError, OSError):
            pass
        line.close()
    raise FedtinyError(f"Flower did not start{_last_words(folder)}; use --engine local")


def _last_words(folder: Path) -> str:
    """Return the last line that any of Flower's processes logged."""
    logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines = [line.strip(" \u2502") for log in logs for line in log.read_text(errors="replace").splitlines()]
    words = " ".join([line for line in lines if any(map(str.isalnum, line))][-3:])
    return f": {words[-300:]}" if words else ""


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()  # which is how the keeper hears that it is over, also if we are killed
    keeper.wait()
