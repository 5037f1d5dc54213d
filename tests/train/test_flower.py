"""Flower as the engine: parcels, who lives where, what is refused, and the same bytes as the local engine."""

from __future__ import annotations

import importlib
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError, ToolMissingError
from hypothesis import given
from hypothesis import strategies as st

from fedtiny_train import models, wire
from fedtiny_train.client import LocalSpec
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order, Reply, flower, parcels
from fedtiny_train.engine.local import Inline
from fedtiny_train.wire import Message

SPEC = models.ModelSpec("mlp", (4,), 3, 1)
LOCAL = LocalSpec(SPEC, 0, 2, 1, 0.9, 1e-4)


def shards(count):
    draw = np.random.default_rng(0)
    return [Shard(k, draw.normal(size=(6, 4)).astype(np.float32), np.arange(6) % 3) for k in range(count)]


def test_a_parcel_by_hand():
    assert parcels.pack([b"ab", b""]) == struct.pack("<IQ2sQ", 2, 2, b"ab", 0)
    assert parcels.pack([]) == b"\0\0\0\0"


@given(st.lists(st.binary(max_size=40), max_size=6), st.binary(max_size=3), st.integers(0, 60))
def test_parcels_come_back_and_others_are_refused(parts, more, cut):
    packed = parcels.pack(parts)
    assert parcels.unpack(packed) == parts
    for spoilt in (packed + b"x" + more, packed[: max(0, len(packed) - 1 - cut)]):
        with pytest.raises(FedtinyError, match="a parcel of"):
            parcels.unpack(spoilt)
    longer = struct.pack("<I", len(parts) + 1) + packed[4:]
    with pytest.raises(FedtinyError, match="ends within a length"):
        parcels.unpack(longer)
    with pytest.raises(FedtinyError, match="ends before"):
        parcels.unpack(struct.pack("<IQ", 1, 1 << 60) + b"abc")


@given(st.binary(), st.binary(), st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary()), min_size=1, max_size=5))
def test_orders_and_replies_come_back(request, kept, clients):
    orders = [Order(number, request, kept, own) for number, own in clients]
    assert parcels.unpack_orders(parcels.pack_orders(orders)) == orders
    replies = [Reply(own + b"!", own) for _, own in clients]
    packed = parcels.pack_replies(replies)
    assert parcels.unpack_replies(packed, len(replies)) == replies
    with pytest.raises(FedtinyError, match="does not hold"):
        parcels.unpack_replies(packed, len(replies) + 1)
    with pytest.raises(FedtinyError, match="holds no orders"):
        parcels.unpack_orders(parcels.pack([request, kept, b"12345", b""]))
    with pytest.raises(FedtinyError, match="it broke"):
        parcels.unpack_replies(parcels.pack_replies([], "it broke"), 1)


def test_clients_of_a_node_share_a_parcel():
    orders = [Order(k, b"a") for k in (0, 1, 2, 5)] + [Order(4, b"b")]
    assert list(flower._groups(orders, 3)) == [(0, [0]), (1, [1]), (2, [2, 3]), (1, [4])]
    assert list(flower._groups(orders, 1)) == [(0, [0, 1, 2, 3]), (0, [4])]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolMissingError, match=r"needs the package flwr; pip install 'fedtiny\[flower\]'") as found:
        flower.start(shards(2), LOCAL, 1)
    assert found.value.exit_code == 6


def test_a_node_is_given_its_own_clients_and_nothing_pickled(tmp_path):
    flower._fill(tmp_path, shards(5), LOCAL, 2, 1234, "key")
    held = {node: sorted(path.name for path in (tmp_path / f"node-{node}").glob("*.npz")) for node in (0, 1)}
    assert held == {0: ["client-0.npz", "client-2.npz", "client-4.npz"], 1: ["client-1.npz", "client-3.npz"]}
    assert json.loads((tmp_path / "node-1" / "local.json").read_text()) == json.loads(json.dumps(asdict(LOCAL)))
    with np.load(tmp_path / "node-1" / "client-3.npz", allow_pickle=False) as found:
        assert np.array_equal(found["x"], shards(4)[3].x)


def test_the_client_half_answers_as_the_local_engine_does(need_extra, tmp_path, monkeypatch):
    for name, value in flower.QUIET.items():
        monkeypatch.setenv(name, value)
    need_extra("flwr", "flower")
    apps = importlib.import_module("fedtiny_train.engine.flower_apps")
    flower._fill(tmp_path, shards(3), LOCAL, 2, 1234, "key")
    state = models.initial_state(SPEC, 0)
    request = wire.encode(Message("train", {"round": 1.0, "lr": 0.1}, state))
    orders = [Order(0, request), Order(2, request)]
    assert apps.replies_of(orders, tmp_path / "node-0") == Inline(shards(3), LOCAL).run(orders)
    with pytest.raises(FedtinyError, match="client 1 does not live on this node"):
        apps.replies_of([Order(1, request)], tmp_path / "node-0")


def running(folder: Path) -> list[str]:
    """Return the processes that were started for a folder, by their command lines."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [place.parent.name] if str(folder).encode() in place.read_bytes() else []
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_flower_gives_the_bytes_of_the_local_engine_and_leaves_nothing_behind(need_extra, tools, tmp_path, monkeypatch):
    need_extra("flwr", "flower")
    _, small, contents, _ = tools
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(flower.tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    flags = ["--method", "random", "--rounds", "1", "--recalibrate", "0", "--public", "none"]
    local = small(tmp_path / "local", *flags)
    found = small(tmp_path / "flower", *flags, "--engine", "flower", "--workers", "2")
    assert contents(found) == contents(local)
    assert list((tmp_path / "temporary").glob("fedtiny-flower-*")) == []
    assert running(tmp_path / "temporary" / "fedtiny-flower-") == []


def test_the_keeper_stops_what_it_started_when_its_parent_is_gone(tmp_path):
    code = """
from fedtiny_train.engine import flower_keeper as keeper
import sys
LEAVES = "import subprocess, sys, time, os; sleep = [sys.executable, '-c', 'import time; time.sleep(600)'];"
LEAVES += "child = subprocess.Popen(sleep, start_new_session=True);"
LEAVES += "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}.'); time.sleep(600)"
def start(folder, nodes, run):
    run(sys.executable, "-c", LEAVES, str(folder / "born"))
keeper.start = start
keeper.main()
"""
    folder = tmp_path / "kept"
    folder.mkdir()
    env = {**os.environ, "FLWR_HOME": str(folder / "home")}
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), "1"], stdin=subprocess.PIPE, env=env)
    end = time.monotonic() + 120
    while not (folder / "born").exists() or not (folder / "born").read_text().endswith("."):
        assert time.monotonic() < end
        time.sleep(0.05)
    born = [int(number) for number in (folder / "born").read_text().strip(".").split()]
    for number in born:  # the second one has left its parent's group
        os.kill(number, 0)
    process.stdin.close()
    assert process.wait(60) == 0
    assert not set(map(str, born)) & set(running(folder))
    assert not folder.exists()
