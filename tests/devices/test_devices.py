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
    detail,
    devices_command,
    load_device,
    load_device_file,
    table,
)
from fedtiny_export.errors import FedtinyError, UsageError
from rich.console import Console

INVALID = sorted((Path(__file__).parent / "invalid").glob("*.toml"))
BOARDS = {device.id: device for device in all_devices()}
EMULATED = [f"qemu-{name}" for name in ("m0", "m3", "m33", "m4", "m55", "m7", "rv32", "xtensa")]
REAL = ["esp32", "esp32c3", "esp32s3", "esp8266", "nano33ble", "nrf52840dk", "pico", "pico2"]

# What PlatformIO's own files say of these boards, and where it was read: the regions named add up to that
# total, or stay below it where PlatformIO gives the whole chip (no `==`).
# (board, kind, regions, total, read in)
PUBLISHED = [
    ("esp32", "ram", "dram0_bt dram0 dram0_heap", "== 327680", "platform-espressif32 boards/esp32dev.json"),
    ("esp32", "flash", "app0", "4194304", "platform-espressif32 boards/esp32dev.json"),
    ("esp32c3", "ram", "dram0 dram0_heap", "== 327680", "boards/esp32-c3-devkitm-1.json, same platform"),
    ("esp32c3", "flash", "app0", "4194304", "boards/esp32-c3-devkitm-1.json, same platform"),
    ("esp32s3", "ram", "dram0 dram0_heap", "524288", "boards/esp32-s3-devkitc-1.json, same platform"),
    ("esp32s3", "flash", "app0", "== 3342336", "hpsaturn/esp32-ble-benchmark: what pio run printed"),
    ("esp8266", "ram", "dram0", "== 81920", "platform-espressif8266 boards/nodemcuv2.json"),
    ("esp8266", "flash", "irom0", "4194304", "platform-espressif8266 boards/nodemcuv2.json"),
    ("pico", "ram", "ram scratch_x scratch_y", "== 270336", "platform-raspberrypi boards/pico.json"),
    ("pico", "flash", "flash", "== 2097152", "platform-raspberrypi boards/pico.json"),
    ("pico2", "ram", "ram", "== 524288", "EllaFoxo/platform-raspberrypi boards/rpipico2.json"),
    ("pico2", "flash", "flash", "4194304", "EllaFoxo/platform-raspberrypi boards/rpipico2.json"),
    ("nano33ble", "ram", "ram_nvic ram_crash_data ram", "== 262144", "nordicnrf52 boards/nano33ble.json"),
    ("nano33ble", "flash", "flash", "== 983040", "platform-nordicnrf52 boards/nano33ble.json"),
    ("nrf52840dk", "ram", "sram0", "== 262144", "platform-nordicnrf52 boards/nrf52840_dk.json"),
    ("nrf52840dk", "flash", "flash0 storage", "== 1048576", "nordicnrf52 boards/nrf52840_dk.json"),
]


def test_the_boards_are_there():
    assert [*BOARDS] == sorted([*REAL, *EMULATED])
    assert {path.stem for path in (asset_root() / "devices").iterdir()} == {*BOARDS}


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_is_complete(board):
    device = BOARDS[board]
    assert device == load_device_file(asset_root() / "devices" / f"{board}.toml")
    assert {device.region_for(what).kind for what in CONTENTS} == {"flash", "ram"}
    assert device.platformio or device.emulator
    assert all(len(source) > 20 for source in device.sources)
    stack = device.reserve.stack_bytes
    assert stack is not None
    assert 0 < stack <= device.region_for("stack").size


@pytest.mark.parametrize("board", REAL)
def test_a_real_board_is_pinned_and_claims_nothing_untried(board):
    device = BOARDS[board]
    assert device.status == "stub", "compiled by a stand-in (tests/firmware), never built with its SDK or run"
    assert device.platformio is not None
    assert device.platformio.platform.partition("@")[0] in " ".join(device.sources)
    assert load_device(device.platformio.board) == device


@pytest.mark.parametrize(("board", "kind", "regions", "total", "read_in"), PUBLISHED)
def test_regions_agree_with_platformio(board, kind, regions, total, read_in):
    memory = {region.name: region for region in BOARDS[board].memory}
    chosen = [memory[name] for name in regions.split()]
    size = sum(region.size for region in chosen)
    assert {region.kind for region in chosen} == {kind}, read_in
    published = int(total.removeprefix("== "))
    assert size == published if total.startswith("==") else size < published, read_in


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
    with pytest.raises(FedtinyError, match=re.escape(expected)) as caught:
        load_device_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 1


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(FedtinyError, match=r"bytes.toml: not TOML"):
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
