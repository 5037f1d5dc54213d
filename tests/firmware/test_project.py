"""The generated project: which files, whose they are, and that every compiler accepts them."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fedtiny_export import __version__
from fedtiny_export.assets import asset_root
from fedtiny_export.board.devices import Platformio, all_devices, load_device
from fedtiny_export.board.project import (
    changed_user_files,
    label_bytes,
    project_files,
    write_project,
)
from fedtiny_export.board.selftest import selftest_bytes, selftest_vectors
from fedtiny_export.errors import FedtinyError
from fedtiny_export.ftm.abi import Kernel
from small_project import artifacts, write_export
from stand_ins import STAND_INS, STRICT, compile_project

BOARDS = [device.id for device in all_devices()]


def test_the_same_arguments_give_the_same_bytes():
    device = load_device("qemu-m4")
    assert project_files(device, artifacts()) == project_files(device, artifacts())


@pytest.mark.parametrize("board", BOARDS)
def test_a_project_has_no_path_and_no_placeholder(board):
    root = str(asset_root()).encode()
    for path, content in project_files(load_device(board), artifacts()).items():
        assert root not in content, path
        assert b"${" not in content or path.name == "CMakeLists.txt", path
        assert path.suffix != ".in"


@pytest.mark.parametrize("board", [board for board in BOARDS if load_device(board).platformio])
def test_platformio_ini_pins_the_platform(board):
    device = load_device(board)
    text = project_files(device, artifacts())[Path("platformio.ini")].decode()
    assert f"[env:{board}]" in text
    assert f"\nplatform = {device.platformio.platform}\n" in text
    assert f"\nboard = {device.platformio.board}\n" in text
    assert f"\nframework = {device.platformio.framework}\n" in text


def test_zephyr_has_the_files_that_platformio_wants(tmp_path):
    write_export(tmp_path, "nrf52840dk")
    assert "target_sources(app " in (tmp_path / "zephyr" / "CMakeLists.txt").read_text()
    assert (tmp_path / "zephyr" / "prj.conf").is_file()
    (tmp_path / "zephyr" / "prj.conf").write_text("# mine\n")
    write_export(tmp_path, "nrf52840dk")
    assert (tmp_path / "zephyr" / "prj.conf").read_text() == "# mine\n"


def test_a_second_export_renews_what_is_generated_only(tmp_path):
    write_export(tmp_path, "qemu-m4")
    (tmp_path / "src" / "main.c").write_text("int mine;\n")
    (tmp_path / "src" / "sensor.c").write_text("int sensor;\n")
    (tmp_path / "platformio.ini").write_text("; mine\n")
    (tmp_path / "include" / "mine.h").write_text("/* mine */\n")
    (tmp_path / "lib" / "other").mkdir()
    (tmp_path / "lib" / "other" / "other.c").write_text("int other;\n")
    (tmp_path / "lib" / "fedtiny" / "src" / "stale.c").write_text("int stale;\n")
    (tmp_path / "lib" / "fedtiny" / "src" / "model.c").write_text("damaged")
    made = artifacts(labels=("a", "b", "c", "d", "e"))
    write_project(tmp_path, load_device("qemu-m4"), made)
    assert (tmp_path / "src" / "main.c").read_text() == "int mine;\n"
    assert (tmp_path / "src" / "sensor.c").read_text() == "int sensor;\n"
    assert (tmp_path / "platformio.ini").read_text() == "; mine\n"
    assert (tmp_path / "include" / "mine.h").exists()
    assert (tmp_path / "lib" / "other" / "other.c").exists()
    assert not (tmp_path / "lib" / "fedtiny" / "src" / "stale.c").exists()
    assert "'a', 0," in (tmp_path / "lib" / "fedtiny" / "src" / "model.c").read_text()


@pytest.mark.parametrize("board", BOARDS)
def test_the_user_s_changes_are_known(tmp_path, board):
    device = load_device(board)
    write_export(tmp_path, board)
    assert changed_user_files(tmp_path, device) == []
    (tmp_path / "src" / "sub").mkdir()
    (tmp_path / "src" / "sub" / "own.c").write_text("int own;\n")
    (tmp_path / "include" / "own.h").write_text("/* what src/ does not use takes no room */\n")
    (tmp_path / "platformio.ini").unlink()
    assert changed_user_files(tmp_path, device) == ["platformio.ini", "src/sub/own.c"]


def test_only_the_kernels_used_are_in_the_table():
    made = dataclasses.replace(artifacts(), kernels=(Kernel.MEAN, Kernel.CONV_GAP))
    text = project_files(load_device("pico"), made)[Path("lib/fedtiny/src/ft_kernels.c")].decode()
    assert [line for line in text.splitlines() if "[FT_KERNEL_" in line and "=" in line and "&" in line] == [
        "    [FT_KERNEL_CONV_GAP] = &ft_kernel_conv_gap,",
        "    [FT_KERNEL_MEAN] = &ft_kernel_mean,",
    ]


def test_the_library_has_this_version():
    manifest = json.loads((asset_root() / "firmware" / "library.json").read_text())
    assert manifest["version"] == __version__


def test_word_only_flash_is_known_to_the_library():
    files = project_files(load_device("esp8266"), artifacts())
    flags = json.loads(files[Path("lib/fedtiny/library.json")])["build"]["flags"]
    assert flags == ["-DFT_MODEL_WORDS_ONLY=1"]
    assert b".irom.text.ft_model" in files[Path("lib/fedtiny/src/ft_place.h")]


def test_an_unknown_framework_is_refused_by_name():
    other = Platformio("atmelavr@5.0.0", "uno", "simba")
    with pytest.raises(FedtinyError, match="no template for framework simba; there are arduino, zephyr"):
        project_files(dataclasses.replace(load_device("esp32"), platformio=other), artifacts())


def test_a_toolchain_without_start_up_code_is_refused():
    device = load_device("qemu-m4")
    other = dataclasses.replace(device.emulator, toolchain="avr-")
    with pytest.raises(FedtinyError, match="qemu-m4: no start-up code for toolchain avr-; there is some for arm-none"):
        project_files(dataclasses.replace(device, emulator=other), artifacts())


@pytest.mark.parametrize(("size", "count"), [(64, 4), (3072, 1), (100_000, 1), (1000, 4), (1300, 3)])
def test_the_self_test_takes_little_flash(size, count):
    assert selftest_vectors(size, 10, available=16) == count
    assert selftest_bytes(size, 10, 16) == count * (size + 12)
    assert selftest_vectors(size, 10, available=1) == 1


def _host(tmp_path: Path, code: str) -> str:
    """Compile a main with the generated model for this machine, and run it."""
    library = tmp_path / "lib" / "fedtiny"
    (tmp_path / "host_main.c").write_text(code)
    sources = [str(tmp_path / "host_main.c"), *map(str, sorted((library / "src").rglob("*.c")))]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = str(tmp_path / "host_main")
    includes = [f"-I{library / 'include'}", f"-I{library / 'src'}"]
    subprocess.run(["gcc", *STRICT, *sanitize, *includes, *sources, "-o", built], check=True)
    return subprocess.run([built], check=True, capture_output=True, text=True, timeout=60).stdout


def test_float_inputs_become_int8_as_in_python(tmp_path, need_tool):
    need_tool("gcc", "gcc")
    made = write_export(tmp_path, "qemu-m4")
    scale, zero_point = np.float32(made.input.scale), made.input.zero_point
    values = np.concatenate([np.arange(-300, 300, 0.5) * scale, [1e30, -1e30]]).astype(np.float32)
    table = ", ".join(f"{value:.9e}f" for value in values.tolist())
    code = f"""
#include <stdio.h>
#include "model.h"
static const float values[] = {{ {table} }};
int main(void) {{
    for (unsigned i = 0; i < sizeof values / sizeof values[0]; i++) printf("%d\\n", ft_model_quantize(values[i]));
    return 0;
}}
"""
    got = [int(line) for line in _host(tmp_path, code).split()]
    steps = values / scale
    rounded = np.sign(steps) * np.floor(np.abs(steps).astype(np.float64) + 0.5)
    assert got == np.clip(rounded + zero_point, -128, 127).astype(int).tolist()


@pytest.mark.parametrize("labels", [("zero", "one's", "tw\\o", "trois\u00e9", "??four"), (), ("", "b", "")])
def test_labels_come_back_as_given(tmp_path, need_tool, labels):
    need_tool("gcc", "gcc")
    write_export(tmp_path, "qemu-m4", artifacts(labels=labels))
    code = """
#include <stdio.h>
#include "model.h"
int main(void) {
    for (uint32_t i = 0; i < FT_MODEL_LABELS + 9u; i++) printf("%s|", ft_model_label(i));
    return 0;
}
"""
    got = _host(tmp_path, code).split("|")
    assert tuple(got[: len(labels)]) == labels
    assert set(got[len(labels) :]) == {""}
    assert label_bytes(labels) % 4 == 0


MADE = artifacts()
COMPILED = (".c", ".cpp", ".h", ".json")


def _sources(board: str) -> dict[str, bytes]:
    """What is compiled of a project, without the board's name and the room for its arena: the same for many boards."""
    files = project_files(load_device(board), MADE)
    plain = {str(p): c.replace(f'"{board}"'.encode(), b'"-"') for p, c in files.items() if p.suffix in COMPILED}
    return {name: re.sub(rb"(ARENA_ROOM )(\d+)u", _enough, content) for name, content in plain.items()}


def _enough(found: re.Match[bytes]) -> bytes:
    """A number that is compared once, while compiling; no board has too little for this model."""
    assert int(found[2]) > MADE.arena_bytes
    return found[1]


KINDS: dict[tuple[object, ...], list[str]] = {}
for _board in BOARDS:
    _kind = (str(STAND_INS[load_device(_board).cpu]), *sorted(_sources(_board).items()))
    KINDS.setdefault(_kind, []).append(_board)


def test_every_board_is_of_a_kind_that_is_compiled():
    """Boards of one kind differ in nothing that a compiler sees but the board's name and its room for the arena."""
    assert sorted(board for boards in KINDS.values() for board in boards) == BOARDS
    firsts = {boards[0] for boards in KINDS.values()}
    assert len(firsts) < len(BOARDS) / 1.5
    assert {"esp8266", "teensy40", "nrf52840dk"} <= firsts, "each of these places or starts things its own way"


@pytest.mark.parametrize("board", [boards[0] for boards in KINDS.values()])
def test_every_board_compiles_without_a_warning(tmp_path, need_tool, board):
    """One of each kind; test_every_board_is_of_a_kind_that_is_compiled speaks for the others."""
    device = load_device(board)
    prefix, package, _ = STAND_INS[device.cpu]
    need_tool(f"{prefix}gcc", package)
    write_export(tmp_path, board)
    library = tmp_path / "lib" / "fedtiny"
    espressif = device.platformio is not None and device.platformio.platform.startswith("espressif32")
    asleep = library / "examples" / "deep_sleep" / "main.cpp"
    assert asleep.exists() == (espressif and device.platformio.framework == "arduino")
    compiled, complaints = compile_project(tmp_path, device)
    assert complaints == []
    assert compiled >= {"model.c", "golden.c", "ft_kernels.c", "ft_report.c"}


@pytest.mark.parametrize("board", ["teensy40", "teensy41"])
def test_a_teensy_keeps_the_model_in_flash(tmp_path, need_tool, board):
    """Its linker script copies .rodata to RAM; the model has to be in .progmem, and read-only."""
    prefix, package, cpu = STAND_INS["cortex-m7"]
    need_tool(f"{prefix}gcc", package)
    write_export(tmp_path, board)
    library = tmp_path / "lib" / "fedtiny"
    made = tmp_path / "model.o"
    includes = [f"-I{library / 'include'}", f"-I{library / 'src'}"]
    command = [f"{prefix}gcc", *cpu, *STRICT, *includes, "-c", str(library / "src" / "model.c"), "-o", str(made)]
    subprocess.run(command, check=True)
    listed = subprocess.run([f"{prefix}objdump", "-h", str(made)], check=True, capture_output=True, text=True).stdout
    lines = listed.splitlines()
    at = next(index for index, line in enumerate(lines) if ".progmem.ft_model" in line)
    assert int(lines[at].split()[2], 16) == len(artifacts().ftm)
    assert "READONLY" in lines[at + 1]
    assert not any(".rodata" in line and int(line.split()[2], 16) >= len(artifacts().ftm) for line in lines[at:])


def test_platformio_ini_sets_what_the_board_file_says():
    text = project_files(load_device("nucleo_l476rg"), artifacts())[Path("platformio.ini")].decode()
    assert text.endswith("monitor_speed = 115200\nboard_upload.maximum_ram_size = 98304\n")
    plain = project_files(load_device("nucleo_f446re"), artifacts())[Path("platformio.ini")].decode()
    assert plain.endswith("monitor_speed = 115200\n")


def test_zephyr_s_main_has_the_stack_that_is_planned():
    stack = load_device("nrf52840dk").reserve.stack_bytes
    text = project_files(load_device("nrf52840dk"), artifacts())[Path("zephyr/prj.conf")].decode()
    assert f"\nCONFIG_MAIN_STACK_SIZE={stack}\n" in text
