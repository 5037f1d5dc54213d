"""Messages: what is sent is what arrives, sparse ones are small, and nothing read is trusted."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedtiny_train import wire
from fedtiny_train.wire import Message, Sparse, WireError, decode, encode

# a message of one tensor named w, up to the tensor
HEAD = b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w"
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


def length_of(tensor):
    """The documented length of a tensor named by one letter in a message that has nothing else."""
    values = tensor.values if isinstance(tensor, Sparse) else tensor
    found = len(HEAD) + 4 + 3 + 4 * len(tensor.shape) + values.dtype.itemsize * values.size
    if isinstance(tensor, Sparse):
        size, count = int(np.prod(tensor.shape, dtype=np.int64)), values.size
        found += 4 + min(-(-size // 8), count * (2 if size <= 65536 else 4))
    return found


@given(tensors())
def test_the_length_is_the_formula(tensor):
    assert len(encode(Message("m", {}, {"w": tensor}))) == length_of(tensor)


@given(st.sampled_from([65_535, 65_536, 65_537, 100_000]), st.integers(0, 5_000), st.integers(0, 2**32))
def test_the_length_of_large_tensors_is_the_formula(size, count, seed):
    places = np.sort(np.random.default_rng(seed).choice(size, count, replace=False))
    tensor = Sparse((size,), places, np.ones(count, np.float32))
    data = encode(Message("m", {}, {"w": tensor}))
    assert len(data) == length_of(tensor)
    assert equal(decode(data).tensors["w"], tensor)


@given(messages, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_what_is_accepted_is_what_encode_writes(message, changes):
    raw = bytearray(encode(message)[:-4])
    for at, value in changes:
        raw[at % len(raw)] = value
    try:
        back = decode(sealed(bytes(raw)))
    except WireError:
        return
    # 8 bits lose: what arrived is not, to the last bit, what was sent
    assert back.bits == 8 or encode(back) == sealed(bytes(raw))


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_head_are_refused_or_a_message(data):
    for head in (b"", b"FTW1", HEAD):
        try:
            back = decode(sealed(head + data))
        except WireError:
            continue
        assert back.bits == 8 or encode(back) == sealed(head + data)


HOSTILE = {
    "more tensors than bytes": b"FTW1\x01m\0\0" + b"\xff" * 4,
    "more numbers than bytes": b"FTW1\x01m\xff\xff",
    "255 dimensions of 1": HEAD + b"\x00\x00\xff" + b"\x01\0\0\0" * 255 + b"\0" * 4,
    "65 dimensions of 1": HEAD + b"\x00\x00\x41" + b"\x01\0\0\0" * 65 + b"\0" * 4,
    "an empty side and long ones": HEAD + b"\x00\x00\x04" + b"\0" * 4 + b"\xff" * 12,
    "a gigabyte that does not follow": HEAD + b"\x00\x00\x01" + b"\0\0\0\x40",
    "as many doubles": HEAD + b"\x01\x00\x01" + b"\0\0\0\x40" + b"\0" * 64,
    "one element more than the limit": HEAD + b"\x00\x03\x01" + b"\x01\0\0\x40" + b"\0" * 4,
    "a bitmap that does not follow": HEAD + b"\x00\x01\x01" + b"\0\0\0\x40" + b"\0\0\0\x10" + b"\xff" * 64,
    "positions that do not follow": HEAD + b"\x00\x03\x01" + b"\0\0\0\x40" + b"\0\0\x10\0" + b"\0" * 64,
    "more positions than elements": HEAD + b"\x00\x01\x01" + b"\x04\0\0\0" + b"\xff" * 4,
    "codes that do not follow": HEAD + b"\x03\x00\x01" + b"\0\0\0\x40" + b"\0" * 64,
    "a name that is cut": b"FTW1\xff" + b"a" * 20,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lengths_are_refused_before_anything_is_allocated(name):
    tracemalloc.start()
    try:
        with pytest.raises(WireError) as error:
            decode(sealed(HOSTILE[name]))
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_a_tensor_at_the_limits_is_read():
    tensor = Sparse((1 << 30,), np.array([5, (1 << 30) - 1]), np.ones(2, np.float32))
    assert equal(decode(encode(Message("m", {}, {"w": tensor}))).tensors["w"], tensor)
    deep = np.ones((1,) * 8, np.float32)
    assert decode(encode(Message("m", {}, {"w": deep}))).tensors["w"].shape == (1,) * 8


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
        (sealed(HEAD + b"\x00\x02\x01\x64\0\0\0\x01\0\0\0\x64\0" + b"\0" * 4), "leave its 100"),
        (sealed(HEAD + b"\x00\x02\x01\x64\0\0\0\x02\0\0\0\x05\0\x05\0" + b"\0" * 8), "do not increase"),
        (sealed(HEAD + b"\x00\x02\x01\x04\0\0\0\x01\0\0\0\x03\0" + b"\0" * 4), "1 positions of 4 are not written"),
        (sealed(HEAD + b"\x00\x03\x01\x64\0\0\0\x01\0\0\0\x03\0\0\0" + b"\0" * 4), "not written in form 3"),
        (sealed(HEAD + b"\x00\x01\x01\x04\0\0\0\x05\0\0\0\x0f" + b"\0" * 20), "marks 4 positions of 4, not 5"),
        (sealed(HEAD + b"\x00\x01\x01\x04\0\0\0\x01\0\0\0\x10" + b"\0" * 4), "marks 1 positions of 4, not 1"),
        (sealed(HEAD + b"\x03\x00\x01\x02\0\0\0" + b"\0" * 10), "2 values are shorter as they are"),
        (sealed(b"FTW1\x01m\x02\x00\x01a" + b"\0" * 8 + b"\x01a" + b"\0" * 8 + b"\0" * 4), "a comes twice"),
        (sealed(b"FTW1\x01\xff\x00\x00\x00\x00\x00\x00"), "not UTF-8"),
        (sealed(b"FTW1\x01m\x00\x00\x01\x00\x00\x00\x01w\x00\x01\x01\x04\0\0\0\x02\0\0\0\x01" + b"\0" * 8), "not 2"),
    ],
)
def test_refusals_say_why(data, reason):
    with pytest.raises(WireError, match=reason):
        decode(data)
