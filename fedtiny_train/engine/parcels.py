"""Orders and replies as bytes, where they leave this process: a list of byte strings, each with its length before it.

    parcel   = u32 count  (u64 length  bytes)*   little-endian
    orders   = parcel of request, kept, and for each client: its number as u32, its own notes
    replies  = parcel of an error text (empty if there is none), and for each client: body, own notes

What the strings hold is the wire's own matter. Nothing here is pickled, and a length is never trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fedtiny_export.errors import FedtinyError

from fedtiny_train.engine import Order, Reply


def pack(parts: Sequence[bytes]) -> bytes:
    """Return a parcel of byte strings."""
    return b"".join([struct.pack("<I", len(parts)), *(struct.pack("<Q", len(part)) + part for part in parts)])


def unpack(data: bytes) -> list[bytes]:
    """Return the byte strings of a parcel; raise FedtinyError on anything that `pack` would not have written."""
    found, at = [], 4
    for _ in range(struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0):
        if len(data) < at + 8:
            raise FedtinyError(f"a parcel of {len(data)} bytes ends within a length")
        size = struct.unpack_from("<Q", data, at)[0]
        if size > len(data) - at - 8:
            raise FedtinyError(f"a parcel of {len(data)} bytes ends before {size} bytes that it holds at {at}")
        found.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    if at != len(data):
        raise FedtinyError(f"a parcel of {len(data)} bytes is not what its lengths say")
    return found


def pack_orders(orders: Sequence[Order]) -> bytes:
    """Return orders that share a request and what is kept as one parcel."""
    parts = [orders[0].request, orders[0].kept]
    for order in orders:
        assert (order.request, order.kept) == (parts[0], parts[1])
        parts += [struct.pack("<I", order.client), order.own]
    return pack(parts)


def unpack_orders(data: bytes) -> list[Order]:
    """Return the orders of a parcel."""
    parts = unpack(data)
    if len(parts) < 2 or len(parts) % 2 or any(len(part) != 4 for part in parts[2::2]):
        raise FedtinyError(f"a parcel of {len(parts)} parts holds no orders")
    numbers = [struct.unpack("<I", part)[0] for part in parts[2::2]]
    return [Order(n, parts[0], parts[1], own) for n, own in zip(numbers, parts[3::2], strict=True)]


def pack_replies(replies: Sequence[Reply], error: str = "") -> bytes:
    """Return replies as one parcel, or what went wrong instead."""
    return pack([error.encode(), *(part for reply in replies for part in (reply.body, reply.own))])


def unpack_replies(data: bytes, count: int) -> list[Reply]:
    """Return the `count` replies of a parcel; raise FedtinyError if it says what went wrong."""
    parts = unpack(data)
    if parts and parts[0]:
        raise FedtinyError(parts[0].decode(errors="replace"))
    if len(parts) != 1 + 2 * count:
        raise FedtinyError(f"a parcel of {len(parts)} parts does not hold {count} replies")
    return [Reply(body, own) for body, own in zip(parts[1::2], parts[2::2], strict=True)]
