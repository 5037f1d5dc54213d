"""The `.ftm` file: its ledger, its header, and what the runtime does with damaged and hostile ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fedtiny_export.ftm import abi
from fedtiny_export.ftm.abi import Kernel, Status
from fedtiny_export.ftm.file import write_ftm
from networks import Builder, perceptron, residual, samples, streamed

ROOT = Path(__file__).parents[2]


def test_the_committed_header_is_the_generated_one():
    assert (ROOT / "firmware/include/fedtiny/ft_abi.h").read_text() == abi.header_text()


def test_the_ledger_adds_up_to_the_file():
    written = write_ftm(residual(0, 0.2), {})
    assert sum(size for *_, size in written.ledger) == len(written.data)
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


def _at(data: bytes, table: str, index: int, record: abi.Record, name: str) -> tuple[int, str]:
    """Where a field of the index-th tensor or operator is."""
    offset, code = _field(record, name)
    return abi.HEADER.unpack(data, 0)[table] + index * record.size + offset, code


def _conv(data: bytes, index: int, name: str) -> tuple[int, str]:
    op = abi.OP.unpack(data, abi.HEADER.unpack(data, 0)["ops"] + index * abi.OP.size)
    offset, code = _field(abi.CONV, name)
    return op["params"] + offset, code


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "rows"), 0), id="no row at a time"),
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "rows"), 600), id="more rows than the scratch holds"),
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "max_taps"), 9000), id="more taps than the scratch holds"),
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "kernel_height"), 17), id="a kernel that is too high"),
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "dilation_height"), 0), id="no dilation of rows"),
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "dilation_width"), 0), id="no dilation of columns"),
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "dilation_width"), 2), id="columns beyond the padding"),
        pytest.param(lambda d: _patched(d, *_conv(d, 0, "dilation_height"), 9), id="more rows than the window has"),
        pytest.param(lambda d: _patched(d, *_at(d, "tensors", 0, abi.TENSOR, "rows"), 1), id="part of the input"),
        pytest.param(lambda d: _patched(d, *_at(d, "tensors", 1, abi.TENSOR, "rows"), 1), id="part of a tensor"),
        pytest.param(
            lambda d: _patched(d, *_at(d, "tensors", 1, abi.TENSOR, "rows"), 9), id="more rows than there are"
        ),
        pytest.param(lambda d: _patched(d, *_at(d, "tensors", 1, abi.TENSOR, "rows"), 0), id="no rows"),
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 0, abi.OP, "streamed"), 2), id="an unknown flag"),
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 8, abi.OP, "streamed"), 1), id="the last one streams"),
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 7, abi.OP, "streamed"), 1), id="a mean streams"),
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 0, abi.OP, "scratch_bytes"), 64), id="too little scratch"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change, host_runtime):
    model, inputs = _model()
    assert host_runtime.run(model, inputs)[0] == 0
    assert host_runtime.run(seal(change(model)), inputs)[0] == Status.ERROR_FORMAT


def _kernel(data: bytes, kernel: Kernel) -> bytes:
    """The first operator under another kernel."""
    offset, code = _field(abi.HEADER, "kernels")
    kernels = abi.HEADER.unpack(data, 0)["kernels"] | 1 << kernel
    return _patched(_patched(data, offset, code, kernels), *_at(data, "ops", 0, abi.OP, "kernel"), kernel)


def _one_layer(kernel: Kernel, channels: int = 8) -> tuple[bytes, np.ndarray]:
    graph = perceptron(0, (channels, 6))
    return write_ftm(graph, {other: 0 if other is kernel else 10**9 for other in Kernel}).data, samples(graph, 1)


def test_the_kernel_of_dense_layers_refuses_what_is_none(host_runtime):
    builder = Builder((1, 1, 8), 0)
    builder.conv(6, 3)
    graph = builder.int8()
    model, inputs = write_ftm(graph, {}).data, samples(graph, 1)
    assert host_runtime.run(model, inputs)[0] == 0
    assert host_runtime.run(seal(_kernel(model, Kernel.VECTOR)), inputs)[0] == Status.ERROR_FORMAT
    model, inputs = _one_layer(Kernel.CONV_DENSE)
    assert host_runtime.run(seal(_kernel(model, Kernel.VECTOR)), inputs)[0] == 0


def test_a_dense_layer_with_a_weight_too_few_is_refused(host_runtime):
    for kernel in (Kernel.VECTOR, Kernel.CONV_DENSE):
        model, inputs = _one_layer(kernel)
        assert host_runtime.run(model, inputs)[0] == 0
        assert abi.CONV.unpack(model, _conv(model, 0, "kernel_height")[0])["weight_bytes"] == 48
        short = seal(_patched(model, *_conv(model, 0, "weight_bytes"), 44))
        assert host_runtime.run(short, inputs)[0] == Status.ERROR_FORMAT


def test_a_dense_layer_of_one_input_is_not_depthwise(host_runtime):
    """It has one group as well, but no window, which a depthwise kernel would read."""
    model, inputs = _one_layer(Kernel.CONV_DENSE, 1)
    assert host_runtime.run(model, inputs)[0] == 0
    assert host_runtime.run(seal(_kernel(model, Kernel.DEPTHWISE)), inputs)[0] == Status.ERROR_FORMAT


def _streamed_model() -> tuple[bytes, np.ndarray]:
    """Two convolutions and an addition that hand rows to one another."""
    graph = streamed(0)
    written = write_ftm(graph, {})
    names = [node.name for node in written.plan.graph.nodes]
    assert [names.index(name) for name in ("t1", "t2", "t3")] == [1, 2, 3]
    assert written.plan.streamed == {"t1", "t2"}
    return written.data, samples(graph, 1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 1, abi.OP, "streamed"), 0), id="not handed on"),
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 0, abi.OP, "streamed"), 1), id="a chain of four"),
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 3, abi.OP, "input"), 1), id="the next one reads another"),
        pytest.param(lambda d: _patched(d, *_at(d, "ops", 4, abi.OP, "input"), 2), id="a later one reads it"),
        pytest.param(
            lambda d: _patched(d, *_at(d, "tensors", 2, abi.TENSOR, "rows"), 3), id="other rows than it makes"
        ),
        pytest.param(
            lambda d: _patched(
                d,
                *_at(d, "ops", 2, abi.OP, "scratch"),
                struct.unpack_from("<I", d, _at(d, "ops", 1, abi.OP, "scratch")[0])[0],
            ),
            id="two use one scratch",
        ),
        pytest.param(
            lambda d: _patched(
                d,
                *_at(d, "tensors", 3, abi.TENSOR, "offset"),
                struct.unpack_from("<I", d, _at(d, "ops", 1, abi.OP, "scratch")[0])[0],
            ),
            id="one writes into another's scratch",
        ),
    ],
)
def test_chains_that_do_not_fit_are_refused(change, host_runtime):
    model, inputs = _streamed_model()
    assert host_runtime.run(model, inputs)[0] == 0
    assert host_runtime.run(seal(change(model)), inputs)[0] == Status.ERROR_FORMAT


def _one_sparse_layer(forced: Kernel) -> bytes:
    builder = Builder((4, 4, 4), 0, 0.3)
    builder.conv(8)
    return write_ftm(builder.int8(), {k: 0 if k is forced else 10**9 for k in Kernel}).data


@pytest.mark.parametrize("forced", [Kernel.CONV_BITMAP, Kernel.CONV_GAP, Kernel.CONV_RICE])
def test_a_stored_weight_of_zero_is_refused(forced, host_runtime):
    """Such a weight would end a list of taps early."""
    model = _one_sparse_layer(forced)
    start = struct.unpack_from("<I", model, _conv(model, 0, "weights")[0])[0]
    # the first value: behind one bit a weight, behind a gap of less than 255, behind eight bits and a gap
    at = {Kernel.CONV_BITMAP: 8 * (8 * 36 // 8), Kernel.CONV_GAP: 8}
    if forced is Kernel.CONV_RICE:
        bits = np.unpackbits(np.frombuffer(model, np.uint8, 64, start), bitorder="little")
        at[forced] = 8 + int(np.argmax(bits[8:])) + 1 + model[start]
    edited = bytearray(model)
    for bit in range(at[forced], at[forced] + 8):
        edited[start + bit // 8] &= ~(1 << bit % 8) & 0xFF
    assert bytes(edited) != model
    assert host_runtime.run(seal(bytes(edited)), np.zeros((1, 4, 4, 4), np.int8))[0] == Status.ERROR_FORMAT


@pytest.mark.parametrize("edit", ["low bits", "no end", "no word behind"])
def test_a_rice_stream_that_leads_outside_is_refused(edit, host_runtime):
    model = _one_sparse_layer(Kernel.CONV_RICE)
    start, size = (struct.unpack_from("<I", model, _conv(model, 0, name)[0])[0] for name in ("weights", "weight_bytes"))
    if edit == "low bits":
        edited = _patched(model, start, "B", 16)
    elif edit == "no end":
        edited = model[: start + size - 12] + bytes(12) + model[start + size :]
    else:
        edited = _patched(model, *_conv(model, 0, "weight_bytes"), size - 4)
    assert host_runtime.run(seal(edited), np.zeros((1, 4, 4, 4), np.int8))[0] == Status.ERROR_FORMAT


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

    from fedtiny_export.graph import reference

    graph = residual(2, 0.2)
    names = dict(zip(graph.tensors, ["scratch:0", "scratch of t0", "t1:flat", "t9:flat", ""], strict=False))

    def renamed(name: str) -> str:
        return names.get(name, name)

    nodes = [replace(n, inputs=tuple(map(renamed, n.inputs)), output=renamed(n.output)) for n in graph.nodes]
    tensors = {renamed(name): replace(tensor, name=renamed(name)) for name, tensor in graph.tensors.items()}
    odd = replace(graph, nodes=tuple(nodes), tensors=tensors, input=renamed(graph.input), output=renamed(graph.output))
    inputs = samples(odd, 10)
    assert host_runtime.run(write_ftm(odd, {}).data, inputs)[2] == reference.run(odd, inputs).tobytes()
