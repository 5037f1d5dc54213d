"""The two halves of our Flower app, which only Flower's processes import: both carry bytes and decide nothing.

The server half takes parcels from the run's process, sends each to its node, and returns what comes back, empty where
nothing does. The client half answers a parcel of orders with the data that its node was given.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from fedtiny_export.errors import FedtinyError
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedtiny_train.client import LocalSpec, answer, prepare_torch
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order, Reply
from fedtiny_train.engine.parcels import pack, pack_replies, unpack, unpack_orders
from fedtiny_train.models import ModelSpec

WAIT_SECONDS = 1800.0
client = ClientApp()
server = ServerApp()


def record(name: str, value: bytes | int) -> RecordDict:
    """Return a record that holds one value."""
    return RecordDict({"fedtiny": ConfigRecord({name: value})})


def value_of(message: Message, name: str) -> object:
    """Return the one value of a message."""
    return message.content.config_records["fedtiny"][name]


@client.query()
def who(message: Message, context: Context) -> Message:
    """Say which node this is."""
    return Message(record("number", int(context.node_config["number"])), reply_to=message)


@client.train()
def work(message: Message, context: Context) -> Message:
    """Answer a parcel of orders."""
    prepare_torch()
    place, parcel = Path(str(context.node_config["place"])), value_of(message, "parcel")
    assert isinstance(parcel, bytes)
    try:
        replies = pack_replies(replies_of(unpack_orders(parcel), place))
    except FedtinyError as error:
        replies = pack_replies([], str(error))
    return Message(record("parcel", replies), reply_to=message)


def replies_of(orders: Sequence[Order], place: Path) -> list[Reply]:
    """Return the answers of clients whose data lie in a node's folder."""
    local = local_of(json.loads((place / "local.json").read_text()))
    return [answer(order, shard_of(place, order.client), local) for order in orders]


def local_of(found: dict[str, object]) -> LocalSpec:
    """Return the settings that were written as JSON."""
    model = found.pop("model")
    assert isinstance(model, dict)
    model["shape"] = tuple(model["shape"])
    return LocalSpec(ModelSpec(**model), **found)  # type: ignore[arg-type]


def shard_of(place: Path, number: int) -> Shard:
    """Return what a client of this node holds."""
    path = place / f"client-{number}.npz"
    if not path.exists():
        raise FedtinyError(f"client {number} does not live on this node")
    with np.load(path, allow_pickle=False) as found:
        return Shard(client=number, x=found["x"], y=found["y"])


@server.main()
def carry(grid: Grid, context: Context) -> None:
    """Carry parcels between the run's process and the nodes until it hangs up."""
    folder, count = Path(str(context.run_config["folder"])), int(context.run_config["nodes"])
    nodes = nodes_by_number(grid, count)
    facts = json.loads((folder / "line.json").read_text())
    line = Connection(socket.create_connection(("127.0.0.1", facts["port"])).detach())
    line.send_bytes(facts["key"].encode())
    while True:
        try:
            parts = unpack(line.recv_bytes())
        except (EOFError, OSError):
            return
        sent = zip(parts[::2], parts[1::2], strict=True)
        messages = [
            Message(record("parcel", parcel), dst_node_id=nodes[int.from_bytes(number, "little")], message_type="train")
            for number, parcel in sent
        ]
        values = [value_of(reply, "parcel") if reply else b"" for reply in exchanged(grid, messages)]
        line.send_bytes(pack([value if isinstance(value, bytes) else b"" for value in values]))


def nodes_by_number(grid: Grid, count: int) -> dict[int, int]:
    """Return Flower's identity of each of our nodes, once all of them are there."""
    while len(found := list(grid.get_node_ids())) < count:
        time.sleep(0.3)
    asked = [Message(record("number", 0), dst_node_id=node, message_type="query") for node in found]
    replies = exchanged(grid, asked)
    return {int(str(value_of(r, "number"))): node for node, r in zip(found, replies, strict=True) if r}


def exchanged(grid: Grid, messages: Sequence[Message]) -> list[Message | None]:
    """Send messages and return the reply to each, or None where it failed or did not come in time."""
    sent = list(grid.push_messages(messages))
    found: dict[str, Message] = {}
    waiting, end = {one for one in sent if one}, time.monotonic() + WAIT_SECONDS
    while waiting and time.monotonic() < end:
        for reply in grid.pull_messages(waiting):
            found[reply.metadata.reply_to_message_id] = reply
        waiting -= found.keys()
        time.sleep(0.2 if waiting else 0)
    replies = [found.get(one) for one in sent] if sent else [None] * len(messages)
    return [reply if reply is not None and reply.has_content() else None for reply in replies]
