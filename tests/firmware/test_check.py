"""Measuring: figures, golden verdicts, and no trust in what a firmware, a file or a log says."""

from __future__ import annotations

import io
import json
import re
import zlib

import numpy as np
import pytest
from fedtiny_export.board.check import measure, read_golden, read_log
from fedtiny_export.board.devices import load_device
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph import reference
from hypothesis import given
from hypothesis import strategies as st
from networks import residual, samples
from small_project import GRAPH, artifacts, write_export

DEVICE = load_device("qemu-m4")
FIELDS = {
    "schema": 1,
    "board": "esp32",
    "exporter": "0.1.0",
    "format": 1,
    "model_bytes": 1912,
    "model_crc32": zlib.crc32(b"model"),
    "arena_bytes": 1420,
    "stack_used": 0,
    "stack_bytes": 0,
    "microseconds": 1234,
    "vectors": 4,
    "passed": 1,
}


@pytest.fixture
def tools(need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    need_tool("gcc", "gcc")


def line(**fields) -> str:
    return _line(json.dumps({**FIELDS, **fields}, separators=(",", ":")))


def _line(text: str) -> str:
    return f"FEDTINY {text} {zlib.crc32(text.encode()):08x}\r\n"


def values(measured) -> dict[tuple[str, str], int | None]:
    return {(name, source): value for name, value, _, _, source in measured.figures}


def test_what_is_measured(tools, tmp_path):
    made = write_export(tmp_path, "qemu-m4")
    measured = measure(tmp_path, DEVICE, None)
    found = values(measured)
    assert measured.golden_equal
    assert measured.first_difference is None
    assert measured.outputs is None
    assert found["flash.model", "measured-elf"] == len(made.ftm)
    assert found["ram.arena", "measured-elf"] == made.arena_bytes
    flash = [v for (n, s), v in found.items() if n.startswith("flash.") and n != "flash.total"]
    assert found["flash.total", "measured-elf"] == sum(flash)
    ram = sum(found[name, "measured-elf"] for name in ("ram.arena", "ram.static", "ram.stack_reserved"))
    assert found["ram.total", "measured-elf"] == ram
    assert 200 < found["ram.stack", "measured-run"] < 4096
    assert found["instructions", "measured-run"] > 10_000
    keys = [(name, region, source) for name, _, _, region, source in measured.figures]
    assert len(keys) == len(set(keys))


def test_any_inputs_can_be_run(tools, tmp_path):
    write_export(tmp_path, "qemu-m4")
    inputs = samples(GRAPH, 25, seed=9)
    measured = measure(tmp_path, DEVICE, inputs)
    assert np.array_equal(measured.outputs, reference.run(GRAPH, inputs).reshape(25, -1))
    assert values(measured) == values(measure(tmp_path, DEVICE, None))


def test_a_wrong_golden_output_is_found_by_vector_and_byte(tools, tmp_path):
    made = write_export(tmp_path, "qemu-m4")
    outputs = made.golden_outputs.copy()
    outputs[5, 3] = outputs[5, 3] // 2 + 1
    np.savez(tmp_path / "golden.npz", inputs=made.golden_inputs, outputs=outputs)
    measured = measure(tmp_path, DEVICE, None)
    assert not measured.golden_equal
    assert measured.first_difference == f"vector 5 byte 3 is {made.golden_outputs[5, 3]}, not {outputs[5, 3]}"


def test_the_device_finds_a_wrong_vector_itself(tools, tmp_path):
    made = artifacts()
    outputs = made.golden_outputs.copy()
    outputs[1, 2] = 99
    path = tmp_path / "lib" / "fedtiny" / "src" / "golden.c"
    write_export(tmp_path, "qemu-m4", made)
    right = np.frombuffer(made.golden_outputs[1].tobytes() + bytes(3), "<u4")
    wrong = np.frombuffer(outputs[1].tobytes() + bytes(3), "<u4")
    path.write_text(path.read_text().replace(f"0x{right[0]:08X}u", f"0x{wrong[0]:08X}u"))
    from fedtiny_export.board.elf import read_image
    from fedtiny_export.board.emulator import build, run

    firmware = build(tmp_path, DEVICE)
    result = run(firmware, read_image(firmware.elf, DEVICE), DEVICE, made.golden_inputs, 5)
    assert result.exit_code == 2
    assert f"self-test: vector 1 byte 2 is {made.golden_outputs[1, 2]}, not 99" in result.text
    said = read_log(result.text)
    assert said.first_difference == f"vector 1 byte 2 is {made.golden_outputs[1, 2]}, not 99"
    assert measure(tmp_path, DEVICE, None).golden_equal, "the runtime itself is right"


def test_a_damaged_model_is_refused_on_the_device(tools, tmp_path):
    write_export(tmp_path, "qemu-m4")
    path = tmp_path / "lib" / "fedtiny" / "src" / "model.c"
    path.write_text(path.read_text().replace("0x314D5446u", "0x314D5447u", 1))
    with pytest.raises(
        FedtinyError, match=r"the firmware ended with code 1: the model was refused: not a model \(status -3"
    ):
        measure(tmp_path, DEVICE, None)


def test_a_main_that_serves_no_samples_is_told_so(tools, tmp_path):
    write_export(tmp_path, "qemu-m4")
    path = tmp_path / "src" / "main.c"
    path.write_text(path.read_text().replace("ft_port_serve(&model)", "0"))
    with pytest.raises(FedtinyError, match="its main has to call ft_port_serve"):
        measure(tmp_path, DEVICE, None)


def test_a_crash_is_told_with_its_report(tools, tmp_path):
    write_export(tmp_path, "qemu-m4")
    path = tmp_path / "src" / "main.c"
    path.write_text(path.read_text().replace("int main(void) {", "int main(void) { *(volatile int *)0x30000000 = 1;"))
    with pytest.raises(FedtinyError, match=r"crashed with code 104: FAULT exception=00000004 .* address=30000000"):
        measure(tmp_path, DEVICE, None)


def test_a_board_without_an_emulator_is_not_measured(tmp_path):
    write_export(tmp_path, "esp32")
    assert measure(tmp_path, load_device("esp32"), None) is None


def test_without_a_compiler_nothing_is_measured(tmp_path, monkeypatch):
    write_export(tmp_path, "qemu-m4")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure(tmp_path, DEVICE, None) is None


@pytest.mark.parametrize(
    "shape", [(3, 8, 8, 2), (0, 8, 8, 1), (64,), (), (2, 63), (2, 1, 8, 8), (2, 16, 4), (1, 64, 1)]
)
def test_inputs_of_another_shape_are_refused(tmp_path, shape):
    write_export(tmp_path, "qemu-m4")
    expected = re.escape("the model takes int8 of shape (n, 8, 8, 1) or (n, 8, 8) or (n, 64)")
    with pytest.raises(FedtinyError, match=expected):
        measure(tmp_path, DEVICE, np.zeros(shape, np.int8))


def test_channels_first_and_floats_are_refused(tmp_path):
    write_export(tmp_path, "qemu-m4", artifacts(residual(seed=1, density=0.3, shape=(8, 6, 3))))
    for inputs in (np.zeros((2, 3, 8, 6), np.int8), np.zeros((2, 6, 8, 3), np.int8), np.zeros((2, 8, 6, 3))):
        with pytest.raises(FedtinyError, match=re.escape("of shape (n, 8, 6, 3) or (n, 144)")):
            measure(tmp_path, DEVICE, inputs)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 8, 8), (2, 64)])
def test_a_sample_may_be_given_in_these_shapes(tmp_path, monkeypatch, shape):
    write_export(tmp_path, "qemu-m4")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure(tmp_path, DEVICE, np.zeros(shape, np.int8)) is None


def _npz(**arrays) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def _npy(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


BAD_GOLDEN = {
    "nothing": b"",
    "no zip": b"PK\x03\x04 and then nothing",
    "a key missing": _npz(inputs=np.zeros((1, 4), np.int8)),
    "floats": _npz(inputs=np.zeros((1, 4)), outputs=np.zeros((1, 2), np.int8)),
    "one axis": _npz(inputs=np.zeros(4, np.int8), outputs=np.zeros(4, np.int8)),
    "counts differ": _npz(inputs=np.zeros((2, 4), np.int8), outputs=np.zeros((3, 4), np.int8)),
    "a single array": _npy(np.zeros((2, 4), np.int8)),
    "10^12 rows": _npy(np.zeros((2, 4), np.int8)).replace(b"(2, 4), }" + b" " * 15, b"(1000000000000, 4), }   "),
    "cut off": _npz(inputs=np.zeros((9, 4), np.int8), outputs=np.zeros((9, 4), np.int8))[:150],
    "pickle": _npz(inputs=np.array([object()]), outputs=np.zeros((1, 2), np.int8)),
}


@pytest.mark.parametrize("case", BAD_GOLDEN)
def test_bad_golden_files_are_refused(tmp_path, case):
    (tmp_path / "golden.npz").write_bytes(BAD_GOLDEN[case])
    with pytest.raises(FedtinyError, match=r"golden\.npz"):
        read_golden(tmp_path / "golden.npz")


def test_a_log_gives_figures():
    measured = read_log("boot\r\nanswer\r\n" + line(arena_bytes=1) + "noise " + line() + "more")
    found = {name: value for name, value, _, _, _ in measured.figures}
    assert found == {"flash.model": 1912, "ram.arena": 1420, "latency": 1234}
    assert measured.golden_equal
    assert {source for *_, source in measured.figures} == {"measured-run"}


def test_a_log_of_a_failed_self_test_says_where():
    measured = read_log(line(passed=0, vector=2, byte=7, got=-5, expected=4))
    assert not measured.golden_equal
    assert measured.first_difference == "vector 2 byte 7 is -5, not 4"


def test_a_log_of_a_failed_self_test_may_not_say_where():
    for details in ({}, {"vector": 2, "byte": 7}, {"vector": None, "byte": 1, "got": 2, "expected": 3}):
        measured = read_log(line(passed=0, **details))
        assert not measured.golden_equal
        assert measured.first_difference == "the device does not say where"


def test_a_log_of_another_model_is_refused():
    assert read_log(line(), model=b"model").golden_equal
    with pytest.raises(FedtinyError, match="another model"):
        read_log(line(), model=b"another")


BAD_LOGS = {
    "": "is not there",
    "hello\n": "is not there",
    line()[:-20]: "is damaged or cut off",
    line().replace("1420", "1421"): "wrong checksum",
    line(schema=2): "schema 2",
    line(arena_bytes=-1): "arena_bytes = -1",
    line(arena_bytes=1 << 32): "arena_bytes",
    line(arena_bytes="5"): "arena_bytes",
    line(arena_bytes=True): "arena_bytes",
    line(passed=None): "passed",
    _line('{"schema":' + "[" * 1900 + "}"): "not readable JSON",
}


@pytest.mark.parametrize("text", BAD_LOGS)
def test_bad_logs_are_refused(text):
    with pytest.raises(FedtinyError, match=BAD_LOGS[text]):
        read_log(text)


@given(st.integers(0, len(line()) - 3), st.integers(1, 255))
def test_no_damaged_byte_is_believed(at, flip):
    text = line().rstrip().encode()
    at = min(at, len(text) - 1)
    damaged = text[:at] + bytes([text[at] ^ flip]) + text[at + 1 :]
    try:
        found = read_log(damaged.decode("utf-8", "replace"))
    except FedtinyError:
        return
    assert found == read_log(line())


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    for log in (text, f"FEDTINY {{{text}}} {zlib.crc32(('{' + text + '}').encode()):08x}"):
        try:
            read_log(log)
        except FedtinyError:
            continue
