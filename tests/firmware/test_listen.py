"""fedtiny-check --serial: a pseudo-terminal plays the device."""

from __future__ import annotations

import json
import os
import pty
import sys
import termios
import threading
import time
import tty
import zlib
from pathlib import Path

import pytest
from commands import call
from fedtiny_export.board import listen as listening
from fedtiny_export.cli import check_main, export_main
from runs import make_run


@pytest.fixture
def real(tmp_path) -> Path:
    assert call(export_main, make_run(tmp_path / "run"), "--target", "esp32", "--out", tmp_path / "esp32") == 0
    return tmp_path / "esp32"


@pytest.fixture
def device(need_extra):
    """A function that has a device say pieces of text, one after another, and returns its port."""
    need_extra("serial", "serial")
    ends: list[int] = []
    threads: list[threading.Thread] = []

    def play(*pieces: bytes) -> str:
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        speeds = termios.tcgetattr(theirs)
        speeds[4] = speeds[5] = termios.B9600
        termios.tcsetattr(theirs, termios.TCSANOW, speeds)
        ends.extend((ours, theirs))

        def talk() -> None:
            until = time.monotonic() + 20
            while termios.tcgetattr(theirs)[4] != termios.B115200 and time.monotonic() < until:
                time.sleep(0.02)  # nobody has opened the port yet
            time.sleep(0.3)
            for piece in pieces:
                os.write(ours, piece)
                time.sleep(0.05)

        threads.append(threading.Thread(target=talk))
        threads[-1].start()
        return os.ttyname(theirs)

    yield play
    for thread in threads:
        thread.join()
    for end in ends:
        os.close(end)


def line(folder: Path, **fields: object) -> bytes:
    model = (folder / "model.ftm").read_bytes()
    figures = json.loads((folder / "report.json").read_text())["figures"]
    arena = next(f["value"] for f in figures if f["name"] == "ram.arena")
    values = {"schema": 1, "format": 1, "model_bytes": len(model), "model_crc32": zlib.crc32(model)}
    values |= {"arena_bytes": arena, "stack_used": 700, "stack_bytes": 8192, "microseconds": 4321, "vectors": 4}
    text = json.dumps({**values, "passed": 1, **fields}, separators=(",", ":"))
    return f"FEDTINY {text} {zlib.crc32(text.encode()):08x}\r\n".encode()


def measured(folder: Path) -> dict[str, int]:
    figures = json.loads((folder / "report.json").read_text())["figures"]
    return {f["name"]: f["value"] for f in figures if f["source"] == "measured-run"}


def test_a_device_s_report_is_read_from_its_port(real, device, capsys):
    said = line(real)
    port = device(b"\xff\xferst:0x1 (POWERON)\r\n", said[:40], said[40:], b"answer: output 3\r\n")
    started = time.monotonic()
    assert call(check_main, real, "--serial", port, "--seconds", 30) == 0
    assert time.monotonic() - started < 15, "it waits no longer than the device needs"
    assert measured(real)["latency"] == 4321
    assert measured(real)["ram.stack"] == 700
    printed = capsys.readouterr()
    assert "a device, over its serial port" in printed.out
    assert "rst:0x1 (POWERON)" in printed.err
    assert port not in (real / "report.json").read_text(), "a report names no path of this machine"


def test_a_damaged_line_is_waited_out(real, device):
    good = line(real)
    port = device(good.replace(b"4321", b"4322"), b"noise\r\n", good)
    assert call(check_main, real, "--serial", port, "--seconds", 30) == 0
    assert measured(real)["latency"] == 4321


def test_a_failed_self_test_on_the_port_exits_5(real, device, capsys):
    port = device(line(real, passed=0, vector=1, byte=2, got=3, expected=4))
    assert call(check_main, real, "--serial", port, "--seconds", 30) == 5
    assert "vector 1 byte 2 is 3, not 4" in capsys.readouterr().err


def test_a_device_that_refuses_its_model_ends_the_wait(real, device, capsys):
    port = device(b"boot\r\nthe model was refused: damaged (status -5)\r\n")
    started = time.monotonic()
    assert call(check_main, real, "--serial", port, "--seconds", 30) == 1
    assert time.monotonic() - started < 15
    assert "the device does not run: the model was refused: damaged" in capsys.readouterr().err
    assert measured(real) == {}


@pytest.mark.parametrize(("said", "reason"), [(b"", "said nothing within"), (b"\x80\x00 gibberish", "115200 baud?")])
def test_a_device_that_says_nothing_useful_exits_1(real, device, capsys, said, reason):
    assert call(check_main, real, "--serial", device(said), "--seconds", 2) == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_not_there_exits_1_in_one_line(real, need_extra, capsys, tmp_path):
    need_extra("serial", "serial")
    assert call(check_main, real, "--serial", tmp_path / "ttyUSB7") == 1
    said = capsys.readouterr().err
    assert "ttyUSB7 cannot be opened" in said
    assert said.count("\n") == 1


def test_without_pyserial_the_package_is_named(real, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "serial", None)
    assert call(check_main, real, "--serial", "/dev/ttyACM0") == 6
    assert "pyserial is not installed: pip install 'fedtiny[serial]'" in capsys.readouterr().err


@pytest.mark.parametrize("other", [("--log", "x"), ("--pio",), ("--require-run",)])
def test_listening_goes_with_nothing_else(other, capsys):
    assert call(check_main, "o", "--serial", "/dev/x", *other) == 2
    assert "--serial" in capsys.readouterr().err.splitlines()[-1]


def test_a_chatty_device_fills_no_memory(device, monkeypatch, capsys):
    monkeypatch.setattr(listening, "KEPT_CHARACTERS", 100)
    text = listening.listen(device(*[b"x" * 60] * 20), 115200, 2.0, sys.stderr)
    assert len(text) == 100
