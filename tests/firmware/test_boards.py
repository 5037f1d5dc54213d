"""Every emulated board: it builds, runs, gives the reference's bytes, keeps to its memory and to its plan."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import call
from fedtiny_export.board.devices import all_devices, load_device
from fedtiny_export.board.elf import read_image
from fedtiny_export.board.emulator import PACKAGES, Firmware, build, run
from fedtiny_export.board.project import build_settings
from fedtiny_export.cli import check_main, export_main
from fedtiny_export.export import make_artifacts
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.ftm.sparse import SPARSE
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import Graph
from networks import CONV_KERNELS, every_operator, every_shape, every_vector, samples, separable
from runs import make_run
from small_project import artifacts, write_export

BOARDS = [device.id for device in all_devices() if device.emulator]
DSP = ["qemu-m4", "qemu-m7", "qemu-m33", "qemu-m55"]

# What a forbidden access ends with: 100 and the exception's number.
HARD_FAULT, MEMORY_FAULT, STORE_FAULT, BUS_ERROR = 103, 104, 107, 115
# Stores that must not be possible. Two boards can write their flash, and one has RAM beyond its own.
FORBIDDEN = {
    "qemu-m0": (HARD_FAULT, {"beyond RAM": 0x2000_4000, "below RAM": 0x1FFF_FFFC, "unaligned": 0x2000_3001}),
    "qemu-m3": (MEMORY_FAULT, {"beyond RAM": 0x2001_0000, "below RAM": 0x1FFF_FFFC, "flash": 0x200}),
    "qemu-m4": (MEMORY_FAULT, {"beyond RAM": 0x2003_0000, "below RAM": 0x1FFF_FFFC, "flash": 0x200}),
    "qemu-m7": (MEMORY_FAULT, {"beyond RAM": 0x2008_0000, "below RAM": 0x1FFF_FFFC, "flash": 0x200}),
    "qemu-m33": (MEMORY_FAULT, {"beyond RAM": 0x3804_0000, "below RAM": 0x37FF_FFFC, "flash": 0x1000_0200}),
    "qemu-m55": (MEMORY_FAULT, {"beyond RAM": 0x3004_0000, "below RAM": 0x2FFF_FFFC, "flash": 0x200}),
    "qemu-rv32": (STORE_FAULT, {"beyond RAM": 0x8046_4000, "below flash": 0x7FFF_FFFC, "flash": 0x8000_0200}),
    "qemu-xtensa": (BUS_ERROR, {"below RAM": 0x3FF3_FFFC, "beyond flash": 0x4030_0000}),
}


@pytest.fixture(params=BOARDS)
def board(request, need_tool) -> str:
    device = load_device(request.param)
    for tool in (f"{device.emulator.toolchain}gcc", device.emulator.program):
        need_tool(tool, PACKAGES[tool])
    return request.param


def figures(folder: Path) -> dict[tuple[str, str], int]:
    report = json.loads((folder / "report.json").read_text())
    return {(f["name"], f["source"]): f["value"] for f in report["figures"]}


def test_every_processor_is_there():
    assert {load_device(name).cpu.removesuffix("f") for name in BOARDS} == {
        *("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "rv32imc", "xtensa-lx106")
    }
    assert set(FORBIDDEN) == set(BOARDS)


def test_an_export_is_built_run_and_compared_with_its_plan(board, tmp_path):
    run_folder = make_run(tmp_path / "run", seed=3, density=0.2)
    assert call(export_main, run_folder, "--target", board, "--out", tmp_path / "out") == 0
    assert call(check_main, tmp_path / "out") == 0
    found = figures(tmp_path / "out")
    planned = {name: value for (name, source), value in found.items() if source == "planned"}
    for name in ("flash.model", "flash.selftest", "flash.labels", "ram.arena", "ram.static", "ram.total"):
        assert found[name, "measured-elf"] == planned[name], name
    # code depends on the numbers of the model that main and the report name: a few words
    assert abs(found["flash.code", "measured-elf"] - planned["flash.code"]) <= 64
    assert abs(found["flash.total", "measured-elf"] - planned["flash.total"]) <= 64
    assert 0 <= planned["ram.stack"] - found["ram.stack", "measured-run"] <= 32
    assert found["instructions", "measured-run"] > 10_000
    assert (planned["instructions"] is None) == (board != "qemu-m4")


def forced_to(kernel: Kernel) -> dict[Kernel, int]:
    return {other: 0 if other is kernel else 1 << 30 for other in Kernel}


@pytest.fixture(scope="module")
def words_of_32_bits(need_tool, tmp_path_factory) -> None:
    """Skip where gcc has no libraries of 32 bits; with CI=true that is a failure."""
    need_tool("gcc", "gcc")
    if platform.machine() != "x86_64":
        pytest.skip("this processor has no other word size")
    target = tmp_path_factory.mktemp("m32") / "program"
    command = ["gcc", "-m32", "-fsanitize=address", "-x", "c", "-", "-o", str(target)]
    done = subprocess.run(command, input="int main(void) { return 0; }", text=True, capture_output=True)
    if done.returncode != 0:
        missing = "gcc compiles nothing for 32 bits (Debian package gcc-multilib)"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


@pytest.mark.usefixtures("words_of_32_bits")
@pytest.mark.parametrize("flags", [("-m32",), ("-m32", "-DFT_MODEL_WORDS_ONLY=1")], ids=lambda flags: " ".join(flags))
@pytest.mark.parametrize("forced", [*CONV_KERNELS, Kernel.VECTOR], ids=lambda kernel: kernel.name.lower())
def test_a_host_of_32_bits_gives_the_reference_s_bytes(flags, forced, host_runtime):
    """That of 64 bits is what tests/export compares with TFLite Micro."""
    graph = every_vector() if forced is Kernel.VECTOR else every_shape()
    inputs = samples(graph, 20)
    status, _, outputs = host_runtime.run(write_ftm(graph, forced_to(forced)).data, inputs, *flags)
    assert status == 0
    assert outputs == reference.run(graph, inputs).tobytes()


@pytest.mark.parametrize("forced", CONV_KERNELS, ids=lambda kernel: kernel.name.lower())
def test_every_encoding_gives_the_reference_s_bytes(board, forced, tmp_path):
    on_a_board(board, every_shape(), forced_to(forced), 40, tmp_path)


@pytest.mark.parametrize("forced", [Kernel.VECTOR, Kernel.CONV_RICE], ids=lambda kernel: kernel.name.lower())
def test_dense_layers_give_the_reference_s_bytes(board, forced, tmp_path):
    on_a_board(board, every_vector(), forced_to(forced), 8, tmp_path)


@pytest.mark.parametrize("name", ["separable", "every operator"])
def test_every_operator_gives_the_reference_s_bytes(board, name, tmp_path):
    graph = separable(0) if name == "separable" else every_operator(0)
    on_a_board(board, graph, {kernel: 10**9 * (kernel in SPARSE) for kernel in Kernel}, 15, tmp_path)


def on_a_board(board: str, graph: Graph, costs: dict[Kernel, int], distinct: int, tmp_path: Path) -> None:
    """Build and run a network; the outputs are the reference's, at least so many of them distinct."""
    ftm = write_ftm(graph, costs)
    inputs = samples(graph, 20)
    outputs = reference.run(graph, inputs)
    assert len(np.unique(outputs)) > distinct
    labels = tuple(str(index) for index in range(outputs[0].size))
    made = make_artifacts(graph, ftm, b"", inputs, outputs, labels)
    write_export(tmp_path, board, made)
    device = load_device(board)
    firmware = build(tmp_path, device)
    result = run(firmware, read_image(firmware.elf, device), device, made.golden_inputs, made.output.elements)
    assert result.exit_code == 0, result.text
    assert result.outputs == made.golden_outputs.tobytes()
    assert len(result.counts) == 20


POKE = "static const volatile uint32_t where[2] = {0x5EEDF00Du, 0x5EEDF11Du};"
DEEP = "static int deep(int n) { volatile char pad[64]; pad[0] = (char)n; return n == 0 ? 0 : deep(n - 1) + pad[0]; }"
POKED = "    if (where[0] == 1u) return deep(1000);\n    if (where[0] != 2u) *(volatile uint32_t *)where[0] = 1u;\n"


def poked(folder: Path, board: str, address: int) -> tuple[int, str]:
    """Run a firmware that stores to an address; 1 overflows the stack instead, 2 does neither."""
    device, made = load_device(board), artifacts()
    elf = folder / ".fedtiny" / "firmware.elf"
    if not elf.is_file():
        main = folder / "src" / "main.c"
        start = "int main(void) {\n"
        main.write_text(main.read_text().replace(start, f"{POKE}\n{DEEP}\n{start}{POKED}"))
        build(folder, device)
    original = elf.read_bytes()
    assert original.count((0x5EEDF00D).to_bytes(4, "little")) == 1
    changed = folder / "changed.elf"
    changed.write_bytes(original.replace((0x5EEDF00D).to_bytes(4, "little"), address.to_bytes(4, "little")))
    result = run(
        Firmware(changed, elf), read_image(changed, device), device, made.golden_inputs[:1], made.output.elements
    )
    return result.exit_code, result.text


def test_memory_ends_where_the_part_s_does(board, tmp_path):
    write_export(tmp_path, board)
    assert poked(tmp_path, board, 2)[0] == 0
    region = load_device(board).region_for("arena")
    assert poked(tmp_path, board, region.end - 4)[0] == 0, "the last word of RAM can be used"
    code, places = FORBIDDEN[board]
    for place, address in places.items():
        ended, text = poked(tmp_path, board, address)
        assert ended == code, f"{place}: {ended} {text}"
        assert f"FAULT exception={code - 100:08x}" in text
        if board != "qemu-m0":  # which does not know where it failed
            assert f"address={address:08x}" in text, place
    ended, text = poked(tmp_path, board, 1)
    assert 100 < ended < 120, f"a stack overflow must fault before it reaches variables: {ended} {text}"
    assert "FAULT exception=" in text


def test_no_access_is_unaligned_where_none_may_be_and_an_esp8266_reads_its_flash_by_words(board, tmp_path, need_tool):
    """QEMU lets most boards do both; the parts they stand for do not.

    Those with the twin for signal processing load words from any address of flash, and do so for Rice codes alone.
    """
    need_tool("gcc", "gcc")
    device, made = load_device(board), artifacts()
    write_export(tmp_path, board, made)
    firmware = build(tmp_path, device)
    image = read_image(firmware.elf, device)
    plugin, source = tmp_path / "accesses.so", Path(__file__).parent / "accesses.c"
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", str(source), "-o", str(plugin)], check=True
    )
    model = next(section for section in image.sections if section.name == ".ft_model")
    places = f"from={model.address:x},to={model.address + model.size:x}"
    command = [*device.emulator.command(str(firmware.elf)), "-plugin", f"{plugin},out={tmp_path / 'out'},{places}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    accesses, unaligned, narrow, elsewhere = map(int, (tmp_path / "out").read_text().split())
    assert accesses > 100_000
    assert elsewhere == 0
    assert unaligned == 0 or board in DSP
    assert (narrow == 0) == (board == "qemu-xtensa")
    command = [f"{device.emulator.toolchain}objdump", "-d", str(firmware.elf)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for instruction in ("smlad", "smmlar"):  # the twin for signal processing is linked where there is one
        assert (instruction in shown) == (board in DSP)


def test_only_an_esp8266_is_compiled_to_read_words():
    for name in BOARDS:
        flags = build_settings(load_device(name)).compile_flags
        assert ("-DFT_MODEL_WORDS_ONLY=1" in flags) == (name == "qemu-xtensa")
