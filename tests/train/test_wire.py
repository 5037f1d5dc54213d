"""Messages: what is sent is what arrives, sparse ones are small, and nothing read is trusted."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedtiny_train import wire
from fedtiny_train.wire import Message, Sparse, WireError, decode, encode

TYPES = st.sampled_from([np.dtype("<f4"), np.dtype("<f8"), np.dtype("<i8")])


@st.composite
def tensors(draw):
    kind = draw(TYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    array = draw(hnp.arrays(kind, shape))
    if draw(st.booleans()):
        return array
    mask = draw(hnp.arrays(np.bool_, shape))
    indices = np.flatnonzero(mask)
    return Sparse(shape, indices, array.reshape(-1)[indices])


def equal(a, b):
    if isinstance(a, Sparse) != isinstance(b, Sparse):
        return False
    if isinstance(a, Sparse):
        return a.shape == b.shape and np.array_equal(a.indices, b.indices) and a.values.tobytes() == b.values.tobytes()
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


messages = st.builds(
    Message,
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False), max_size=4),
    st.dictionaries(st.text(max_size=20), tensors(), max_size=4),
)


@given(messages)
def test_round_trip(message):
    data = encode(message)
    back = decode(data)
    assert (back.kind, back.numbers) == (message.kind, message.numbers)
    assert list(back.tensors) == list(message.tensors)
    assert all(equal(back.tensors[name], t) for name, t in message.tensors.items())
    assert encode(back) == data


def sealed(body):
    """Return what a sender with bad intentions would send: any content, and the checksum that goes with it."""
    return body + struct.pack("<I", zlib.crc32(body))


@given(messages, st.data())
def test_a_damaged_message_is_always_refused(message, data):
    raw = bytearray(encode(message))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        decode(bytes(raw))


@given(messages, st.data())
def test_a_forged_message_is_refused_or_a_message(message, data):
    raw = bytearray(encode(message)[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode(sealed(bytes(raw)))
    except WireError:
        return


def test_a_live_zero_keeps_its_place():
    mask = np.array([True, False, True, False])
    sent = wire.masked(np.array([0, 0, 2, 0], dtype=np.float32), mask)
    back = decode(encode(Message("m", {}, {"w": sent}))).tensors["w"]
    assert back.mask().tolist() == mask.tolist()


def test_the_shorter_form_is_taken():
    def length(size, live):
        values = np.ones(live, dtype=np.float32)
        return len(encode(Message("", {}, {"": Sparse((size,), np.arange(live), values)})))

    empty = length(80_000, 0)
    assert length(80_000, 100) - empty == 100 * (4 + 4)  # 32-bit positions
    assert length(8_000, 100) - length(8_000, 0) == 100 * (2 + 4)  # 16-bit positions
    assert length(8_000, 4_000) - length(8_000, 0) == 1_000 + 4_000 * 4  # a bitmap


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin with FTW1"),
        (b"ZZZZ", "does not begin with FTW1"),
        (b"FTW1", "checksum is wrong"),
        (encode(Message("m")) + b"x", "checksum is wrong"),
        (sealed(b"FTW1\x01"), "ends after 5 bytes, 1 more were to come at 5"),
        (sealed(encode(Message("m"))[:-4] + b"x"), "1 bytes follow"),
        (sealed(b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w\x09\x00\x00"), "unknown tensor type 9"),
        (sealed(b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w\x00\x00\x02" + b"\xff" * 8), "over the limit"),
        (sealed(b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w\x00\x00\x02" + b"\xff" * 4 + b"\0" * 4), "over the limit"),
        (sealed(b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w\x00\x00\x41" + b"\x01\0\0\0" * 65), "over the limit"),
        (
            sealed(b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w\x00\x02\x01\x04\0\0\0\x01\0\0\0\x09\0" + b"\0" * 4),
            "leave its 4",
        ),
        (sealed(b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w\x00\x01\x01\x04\0\0\0\x02\0\0\0\x01" + b"\0" * 8), "not 2"),
    ],
)
def test_refusals_say_why(data, reason):
    with pytest.raises(WireError, match=reason):
        decode(data)
