"""fedtiny-check as a user meets it: exit codes, what it refuses, and that nothing it was given goes unused."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from commands import call
from fedtiny_export.cli import check_main, export_main
from runs import make_run


def check(*arguments: object) -> int:
    return call(check_main, *arguments)


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """An export for an emulated board and one for a real one."""
    folder = tmp_path_factory.mktemp("exports")
    run = make_run(folder / "digits")
    for board in ("qemu-m4", "esp32"):
        assert call(export_main, run, "--target", board, "--out", folder / board) == 0
    return folder


@pytest.fixture
def real(exports, tmp_path) -> Path:
    return Path(shutil.copytree(exports / "esp32", tmp_path / "esp32"))


@pytest.fixture
def emulated(exports, tmp_path, need_tool) -> Path:
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    return Path(shutil.copytree(exports / "qemu-m4", tmp_path / "qemu-m4"))


def figures(folder: Path, source: str) -> dict[str, int]:
    report = json.loads((folder / "report.json").read_text())
    return {f["name"]: f["value"] for f in report["figures"] if f["source"] == source}


def log_line(folder: Path, **fields: object) -> str:
    model = (folder / "model.ftm").read_bytes()
    values = {"schema": 1, "format": 1, "model_bytes": len(model), "model_crc32": zlib.crc32(model)}
    values |= {"arena_bytes": figures(folder, "planned")["ram.arena"], "stack_used": 0, "stack_bytes": 0}
    values |= {"microseconds": 5, "vectors": 4, "passed": 1, **fields}
    text = json.dumps(values, separators=(",", ":"))
    return f"FEDTINY {text} {zlib.crc32(text.encode()):08x}\n"


def test_an_export_is_measured_as_planned(emulated, tmp_path, capsys):
    inputs = np.load(emulated / "golden.npz")["inputs"]
    np.save(tmp_path / "x.npy", inputs)
    assert check(emulated, "--inputs", tmp_path / "x.npy", "--outputs", tmp_path / "y.npy") == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), np.load(emulated / "golden.npz")["outputs"].reshape(16, -1))
    planned, measured = figures(emulated, "planned"), figures(emulated, "measured-elf")
    for name in ("flash.model", "flash.labels", "flash.selftest", "ram.arena"):
        assert planned[name] == measured[name], name
    printed = capsys.readouterr()
    assert "equal, byte for byte" in printed.out
    assert printed.err == ""


def test_another_model_beside_the_firmware_exits_5(emulated, capsys):
    model = (emulated / "model.ftm").read_bytes()
    (emulated / "model.ftm").write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    assert check(emulated) == 5
    assert "the firmware holds another model than model.ftm" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("--require-run",), ("--log", "device.log")])
def test_a_missing_model_exits_1(exports, tmp_path, capsys, arguments):
    folder = shutil.copytree(exports / "qemu-m4", tmp_path / "o")
    (folder / "model.ftm").unlink()
    assert check(folder, *arguments) == 1
    assert "model.ftm: No such file" in capsys.readouterr().err


UNUSED = {
    "log and inputs": ("o", "--log", "l", "--inputs", "x.npy", "--outputs", "y.npy"),
    "log and pio": ("o", "--log", "l", "--pio"),
    "log and require-run": ("o", "--log", "l", "--require-run"),
    "diff and pio": ("--diff", "a", "b", "--pio"),
    "diff and log": ("--diff", "a", "b", "--log", "l"),
}


@pytest.mark.parametrize("case", UNUSED)
def test_arguments_that_would_go_unused_exit_2(case, capsys):
    assert check(*UNUSED[case]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert ("--log" if "log" in case else "--diff") in last


def test_the_end_of_a_log_is_read(real, tmp_path, capsys):
    log = tmp_path / "device.log"
    log.write_text(log_line(real, passed=0) + "noise\n" * 400_000 + log_line(real))
    assert check(real, "--log", log) == 0
    assert figures(real, "measured-run")["latency"] == 5
    log.write_text(log_line(real, passed=0))
    assert check(real, "--log", log) == 5
    said = capsys.readouterr().err
    assert "golden outputs differ: the device does not say where" in said
    assert "None" not in said


def test_an_unknown_board_in_a_report_exits_1(real, capsys):
    path = real / "report.json"
    for board in ("nowhere", "/etc/board.toml"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "board": board}))
        assert check(real) == 1
        assert f"report.json: unknown board '{board}'" in capsys.readouterr().err


def test_a_firmware_that_does_not_fit_exits_3_with_one_line(emulated, capsys):
    main = emulated / "src" / "main.c"
    text = main.read_text().replace("int main(void) {", "volatile char own[200000];\nint main(void) {\n own[0] = 1;")
    main.write_text(text)
    assert check(emulated) == 3
    said = capsys.readouterr().err
    assert "bytes too many in RAM" in said
    assert said.count("\n") == 1


OWN = """
static volatile char own_data[30000];
static const char own_text[30000] = {1};
int main(void) {
    own_data[1] = own_text[own_data[0]];
"""


def test_more_code_of_the_user_s_own_is_no_fault(emulated, capsys):
    main = emulated / "src" / "main.c"
    main.write_text(main.read_text().replace("int main(void) {", OWN))
    assert check(emulated) == 0
    printed = capsys.readouterr()
    for name in ("flash.total", "ram.total"):
        assert f"{name} was planned as" in printed.out
    assert "since you changed src/main.c" in printed.out
    assert printed.err == ""


def test_more_code_of_anyone_else_is_a_fault(emulated, capsys):
    path = emulated / "lib" / "fedtiny" / "src" / "ft_report.c"
    more = "static const uint8_t more[30000] = {1};\n"
    path.write_text(
        path.read_text()
        .replace("void ft_put_int(", f"{more}void ft_put_int(")
        .replace("writer_t writer = {put, 0u};", "writer_t writer = {put, more[value & 7]};")
    )
    assert check(emulated) == 5
    assert "flash.total was planned as" in capsys.readouterr().err


def test_inputs_that_cannot_be_read_exit_1(emulated, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 64), np.int8))
    bad = {
        "cut.npy": (tmp_path / "x.npz").read_bytes()[:100],
        "zip.npy": (tmp_path / "x.npz").read_bytes(),
        "e.npy": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        assert check(emulated, "--inputs", tmp_path / name, "--outputs", tmp_path / "y.npy") == 1
        said = capsys.readouterr().err
        assert name in said
        assert said.count("\n") == 1
    assert not (tmp_path / "y.npy").exists()
