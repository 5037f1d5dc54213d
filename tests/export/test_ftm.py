"""The `.ftm` file: its ledger, its header, and what the runtime does with damaged and hostile ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fedtiny_export import abi
from fedtiny_export.abi import Kernel, Status
from fedtiny_export.ftm import write_ftm
from networks import residual, samples

ROOT = Path(__file__).parents[2]


def test_the_committed_header_is_the_generated_one():
    assert (ROOT / "firmware/include/fedtiny/ft_abi.h").read_text() == abi.header_text()


def test_the_ledger_adds_up_to_the_file():
    written = write_ftm(residual(0, 0.2), {})
    assert sum(size for _, size in written.ledger) == len(written.data)
    assert abi.HEADER.unpack(written.data, 0)["total_bytes"] == len(written.data)


def test_the_same_graph_gives_the_same_bytes():
    assert write_ftm(residual(4, 0.3), {}).data == write_ftm(residual(4, 0.3), {}).data


def seal(data: bytes) -> bytes:
    """Make an edited file's checksum right again; otherwise only the checksum would be tested."""
    return data[: abi.CRC_FROM - 4] + struct.pack("<I", zlib.crc32(data[abi.CRC_FROM :])) + data[abi.CRC_FROM :]


def _model() -> tuple[bytes, np.ndarray]:
    graph = residual(0, 0.2)
    return write_ftm(graph, {}).data, samples(graph, 1)


def _patched(data: bytes, offset: int, code: str, value: int) -> bytes:
    edited = bytearray(data)
    struct.pack_into("<" + code, edited, offset, value)
    return bytes(edited)


def _field(record: abi.Record, name: str) -> tuple[int, str]:
    names = [field.name for field in record.fields]
    index = names.index(name)
    return struct.calcsize("<" + "".join(f.code for f in record.fields[:index])), record.fields[index].code


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda d: d[:30], Status.ERROR_TRUNCATED),
        (lambda d: d[:-4], Status.ERROR_TRUNCATED),
        (lambda d: b"XXXX" + d[4:], Status.ERROR_MAGIC),
        (lambda d: _patched(d, *_field(abi.HEADER, "version"), 9), Status.ERROR_VERSION),
        (lambda d: d[:200] + bytes([d[200] ^ 1]) + d[201:], Status.ERROR_CHECKSUM),
        (lambda d: seal(_patched(d, *_field(abi.HEADER, "kernels"), 0xFFFF)), Status.ERROR_KERNEL),
        (lambda d: seal(_patched(d, *_field(abi.HEADER, "arena_bytes"), 100)), Status.ERROR_FORMAT),
        (lambda d: seal(_patched(d, *_field(abi.HEADER, "tensors"), 0xFFFFFFF0)), Status.ERROR_FORMAT),
        (lambda d: seal(_patched(d, *_field(abi.HEADER, "input"), 500)), Status.ERROR_FORMAT),
        (lambda d: seal(_patched(d, *_field(abi.HEADER, "op_count"), 0)), Status.ERROR_FORMAT),
    ],
)
def test_a_bad_file_is_refused_for_the_right_reason(change, status, host_runtime):
    model, inputs = _model()
    assert host_runtime.run(change(model), inputs)[0] == status


def test_every_flipped_bit_is_caught(host_runtime):
    model, inputs = _model()
    for position in np.random.default_rng(0).integers(0, 8 * len(model), 40):
        flipped = bytearray(model)
        flipped[position // 8] ^= 1 << (position % 8)
        assert host_runtime.run(bytes(flipped), inputs)[0] < 0


def _hostile(model: bytes, random: np.random.Generator) -> bytes:
    """Change one to three words or bytes to extreme or neighbouring values and make the checksum right again."""
    edited = bytearray(model)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(abi.CRC_FROM, len(edited)))
        if random.random() < 0.5:
            at -= at % 4
            value = int(
                random.choice([0, 1, 4, 255, 256, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(edited), len(edited) - 4])
            )
            struct.pack_into("<I", edited, at, value)
        else:
            edited[at] = int(random.integers(0, 256))
    return seal(bytes(edited))


@pytest.mark.parametrize("forced", [Kernel.CONV_DENSE, Kernel.CONV_BITMAP, Kernel.CONV_GAP, Kernel.CONV_RICE])
def test_hostile_files_are_refused_or_run_inside_their_arena(forced, host_runtime):
    """The runtime runs under the address and undefined-behaviour sanitizers: anything else ends the process."""
    graph = residual(0, 0.2)
    model = write_ftm(graph, {k: 0 if k is forced else 10**9 for k in Kernel}).data
    random = np.random.default_rng(int(forced))
    statuses = [host_runtime.run(_hostile(model, random), samples(graph, 1))[0] for _ in range(60)]
    assert min(statuses) < 0, "no mutation was refused: the mutations are too tame"


def test_tensor_names_may_be_anything(host_runtime):
    """Names that look like ours for scratch and flat views must not be taken for them."""
    from dataclasses import replace

    from fedtiny_export import reference

    graph = residual(2, 0.2)
    names = dict(zip(graph.tensors, ["scratch:0", "scratch of t0", "t1:flat", "t9:flat", ""], strict=False))

    def renamed(name: str) -> str:
        return names.get(name, name)

    nodes = [replace(n, inputs=tuple(map(renamed, n.inputs)), output=renamed(n.output)) for n in graph.nodes]
    tensors = {renamed(name): replace(tensor, name=renamed(name)) for name, tensor in graph.tensors.items()}
    odd = replace(graph, nodes=tuple(nodes), tensors=tensors, input=renamed(graph.input), output=renamed(graph.output))
    inputs = samples(odd, 10)
    assert host_runtime.run(write_ftm(odd, {}).data, inputs)[2] == reference.run(odd, inputs).tobytes()
