"""Board tables: every one loads and says where its numbers come from; a wrong one is refused with its key."""

import io
import json
import re
from pathlib import Path

import pytest
from fedtiny_export import assets as assets_module
from fedtiny_export.assets import asset_root
from fedtiny_export.board import devices as devices_module
from fedtiny_export.board.devices import (
    CONTENTS,
    Device,
    Memory,
    all_devices,
    load_device,
    load_device_file,
    next_board_up,
    smallest,
)
from fedtiny_export.board.lines import line_of
from fedtiny_export.board.listing import detail, devices_command, table
from fedtiny_export.errors import FedtinyError, UsageError
from rich.console import Console

INVALID = sorted((Path(__file__).parent / "invalid").glob("*.toml"))
BOARDS = {device.id: device for device in all_devices()}
EMULATED = [f"qemu-{name}" for name in ("m0", "m3", "m33", "m4", "m55", "m7", "rv32", "xtensa")]
REAL = [board for board in BOARDS if board not in EMULATED]
# What PlatformIO's own board files say, and where that was read.
PUBLISHED = json.loads((Path(__file__).parent / "platformio_totals.json").read_text())
TOTALS = {"flash": "maximum_size", "ram": "maximum_ram_size"}


def test_the_boards_are_there():
    assert set(EMULATED) < set(BOARDS)
    assert len(REAL) >= 34
    assert set(REAL) == set(PUBLISHED)
    assert {path.stem for path in (asset_root() / "devices").iterdir()} == {*BOARDS}


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_is_complete(board):
    device = BOARDS[board]
    assert device == load_device_file(asset_root() / "devices" / f"{board}.toml")
    assert {device.region_for(what).kind for what in CONTENTS} == {"flash", "ram"}
    assert device.platformio or device.emulator
    assert all(len(source) > 20 for source in device.sources)
    stack = device.reserve.stack_bytes
    if stack is None:  # nothing stops it: it has what the variables in its region leave
        assert device.region_for("stack") == device.region_for("static")
    else:
        assert 0 < stack <= device.region_for("stack").size


@pytest.mark.parametrize("board", REAL)
def test_a_real_board_is_pinned_and_claims_nothing_untried(board):
    device = BOARDS[board]
    assert device.status == "stub", "compiled by a stand-in (tests/firmware), never built with its SDK or run"
    assert device.platformio is not None
    assert device.platformio.platform.partition("@")[0] in " ".join(device.sources)
    assert load_device(device.platformio.board) == device


@pytest.mark.parametrize("kind", TOTALS)
@pytest.mark.parametrize("board", REAL)
def test_regions_agree_with_platformio(board, kind):
    """No region that is used is beyond PlatformIO's total; where all together are not, the board file names it."""
    published = PUBLISHED[board][TOTALS[kind]]
    regions = [region for region in BOARDS[board].memory if region.kind == kind]
    assert max(region.size for region in regions if region.holds) <= published
    if sum(region.size for region in regions) != published:
        assert f"{published:,}" in (asset_root() / "devices" / f"{board}.toml").read_text()


@pytest.mark.parametrize("board", REAL)
def test_a_total_was_read_somewhere(board):
    published = PUBLISHED[board]
    assert {*published} == {*TOTALS.values(), "read_in"}
    assert BOARDS[board].platformio.board in published["read_in"]
    assert BOARDS[board].family in published["read_in"]


@pytest.mark.parametrize("board", ["nucleo_l476rg", "disco_l475vg_iot01a"])
def test_platformio_is_told_where_its_total_is_no_region(board):
    """Its 131,072 bytes are 98,304 and 32,768 apart; linked as one region the stack starts where nothing is."""
    device = BOARDS[board]
    assert device.region_for("arena").size == 98_304
    assert device.platformio.options == ("board_upload.maximum_ram_size = 98304",)


def test_an_esp32_has_no_520_kilobytes_for_an_arena():
    device = BOARDS["esp32"]
    assert device.region_for("arena").size == 0x2C200 - 0xDB5C
    kept = {region.name: region for region in device.memory}["dram0_bt"]
    assert kept.size + device.region_for("arena").size == 180_736
    assert kept.end == device.region_for("arena").start


def test_the_emulated_board_has_the_memory_of_an_stm32f4():
    device = BOARDS["qemu-m4"]
    flash, ram = device.region_for("code"), device.region_for("arena")
    assert (flash.start, flash.size) == (0, 1 << 20)
    assert (ram.start, ram.size) == (0x2000_0000, 192 << 10)
    assert device.emulator is not None
    command = device.emulator.command("x.elf")
    assert command[:3] == ["qemu-system-arm", "-M", "mps2-an386"]
    assert command[-2:] == ["-kernel", "x.elf"]


@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("esp32", "esp32"),
        ("esp32dev", "esp32"),
        ("ESP32-S3-DevKitC-1", "esp32s3"),
        ("esp32_c3_devkitm_1", "esp32c3"),
        ("NodeMCUv2", "esp8266"),
        ("nrf52840-dk", "nrf52840dk"),
        ("qemu_m4", "qemu-m4"),
        ("QEMUM4", "qemu-m4"),
        ("uno_r4", "uno_r4_minima"),
        ("B-L475E-IOT01A", "disco_l475vg_iot01a"),
        ("bluepill_f103c8", "bluepill"),
    ],
)
def test_a_board_is_found_by_any_of_its_names(name, board):
    assert load_device(name).id == board


@pytest.mark.parametrize(("name", "close"), [("esp32devv", "esp32dev"), ("Pico3", "pico"), ("qemu-m5", "qemu-m55")])
def test_an_unknown_board_names_the_nearest(name, close):
    expected = re.escape(f"unknown board '{name}' (did you mean {close}?)")
    with pytest.raises(UsageError, match=expected) as caught:
        load_device(name)
    assert caught.value.exit_code == 2


def test_an_unknown_board_with_nothing_near():
    with pytest.raises(UsageError, match="unknown board 'zzzz'; fedtiny-devices lists them"):
        load_device("zzzz")


def test_a_board_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes((asset_root() / "devices" / "pico.toml").read_bytes())
    assert load_device(str(path)).id == "mine"
    with pytest.raises(UsageError, match="there is no such board file"):
        load_device(str(tmp_path / "other.toml"))


@pytest.mark.parametrize("path", INVALID, ids=[path.stem for path in INVALID])
def test_a_wrong_file_is_refused(path):
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# expect: ")
    with pytest.raises(FedtinyError, match=f"^{re.escape(expected)}$") as caught:
        load_device_file(path)
    assert caught.value.exit_code == 1


LINES = """name = "x"  # line 1
list = [
  "[memory]",
  "size = 1",
]

[[memory]]
size = 8
[[memory]]
inner = { size = 10, start = [1, 2] }

[reserve]
dotted.key = 13
"""


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("name", 1),
        ("list", 2),
        ("list[1]", 2),
        ("memory", 7),
        ("memory[0].size", 8),
        ("memory[0].start", 7),
        ("memory[1]", 9),
        ("memory[1].inner.start", 10),
        ("reserve", 12),
        ("reserve.dotted.key", 13),
        ("reserve.dotted.other", 13),
        ("absent", 1),
    ],
)
def test_a_key_s_line_is_found_however_it_is_written(where, line):
    assert line_of(LINES, where) == line


def test_a_fault_in_the_text_has_its_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("name = 'x'\n\ncpu = what\n")
    with pytest.raises(FedtinyError, match=r"^bad.toml:3: not TOML: "):
        load_device_file(path)
    path.write_text("x = 1\n" * 20_000)
    with pytest.raises(FedtinyError, match=r"bad.toml: 120,000 bytes; a board file has at most 65,536"):
        load_device_file(path)


def test_the_next_board_up_is_the_smallest_of_its_family():
    fitting = [BOARDS[name] for name in ("teensy41", "nucleo_h743zi", "nucleo_f446re", "due", "qemu-m4", "zero")]
    assert next_board_up(BOARDS["bluepill"], fitting).id == "nucleo_f446re"
    assert next_board_up(BOARDS["uno_r4_wifi"], fitting).id == "zero"
    assert next_board_up(BOARDS["qemu-m0"], fitting).id == "zero"
    assert next_board_up(BOARDS["bluepill"], [BOARDS["qemu-m4"]]) is None
    assert smallest([]) is None


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(FedtinyError, match=r"bytes.toml:1: not TOML: no UTF-8 text"):
        load_device_file(path)


def test_two_boards_cannot_share_a_name(tmp_path, monkeypatch):
    (tmp_path / "devices").mkdir()
    for board in ("one", "two"):
        text = (asset_root() / "devices" / "esp32.toml").read_text(encoding="utf-8")
        (tmp_path / "devices" / f"{board}.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(devices_module, "asset_root", lambda: tmp_path)
    with pytest.raises(FedtinyError, match=r"two.toml: aliases: 'esp32dev' also names one; remove one"):
        load_device("one")


def test_a_wheel_reads_the_boards_it_carries(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "fedtiny_export"
    package.mkdir(parents=True)
    monkeypatch.setattr(assets_module, "__file__", str(package / "assets.py"))
    with pytest.raises(FedtinyError, match="reinstall fedtiny"):
        asset_root()
    (package / "_assets" / "devices").mkdir(parents=True)
    assert asset_root() == package.resolve() / "_assets"


def test_region_for_knows_its_words():
    with pytest.raises(ValueError, match="no region of pico holds 'heap'; known are code, model"):
        BOARDS["pico"].region_for("heap")


def test_values_are_checked_wherever_they_are_made():
    with pytest.raises(FedtinyError, match="size: 0 is not above 0"):
        Memory(name="ram", kind="ram", start=0, size=0)
    with pytest.raises(FedtinyError, match="memory: 0 regions hold 'code'"):
        Device("x", "X", "cpu", 1, "listed", ("read",), ())


def test_json_of_all_boards_and_of_one(capsys):
    assert devices_command(None, as_json=True) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["id"] for item in listed] == [*BOARDS]
    assert devices_command("esp32dev", as_json=True) == 0
    one = json.loads(capsys.readouterr().out)
    assert one in listed
    assert next(iter(one)) == "id"
    assert one["emulator"] is None
    assert one["reserve"]["stack_bytes"] == 8192
    assert one["memory"][0]["holds"] == ["code", "model"]
    keys = {"id", "name", "cpu", "clock_hz", "status", "sources", "memory", "aliases"}
    assert {*one} == keys | {"platformio", "emulator", "reserve"}


def test_text_of_all_boards_and_of_one(capsys):
    assert devices_command(None, as_json=False) == 0
    output = capsys.readouterr().out
    assert all(board in output for board in BOARDS)
    assert devices_command("esp32", as_json=False) == 0
    output = capsys.readouterr().out
    for shown in ("124,580", "121.7", "0x3FFBDB5C", "espressif32@6.10.0", "memory.ld.in", "unknown"):
        assert shown in output
    assert max(map(len, output.splitlines())) <= 120


def test_renderings_take_any_console():
    console = Console(file=io.StringIO(), width=60)
    console.print(table(all_devices()), detail(BOARDS["qemu-m4"]))
    assert "qemu-system-arm" in console.file.getvalue()
