"""The ledger: every byte of the model, of flash and of RAM has an owner, and nothing is left over."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call
from fedtiny_export.board.devices import load_device
from fedtiny_export.board.elf import Section, read_image
from fedtiny_export.board.emulator import PACKAGES
from fedtiny_export.board.ledger import _tiled, read_map
from fedtiny_export.cli import check_main, export_main
from fedtiny_export.errors import FedtinyError
from fedtiny_export.export import make_artifacts
from fedtiny_export.ftm import abi
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import WEIGHTED, Graph
from networks import every_operator, residual, samples
from runs import make_run
from small_project import write_export

BOARDS = ["qemu-m0", "qemu-m4", "qemu-rv32", "qemu-xtensa"]
BITMAP = {kernel: 10**9 * (kernel is not Kernel.CONV_BITMAP) for kernel in Kernel}


@pytest.fixture(params=BOARDS)
def checked(request, need_tool, tmp_path) -> Path:
    """An export that was built and run."""
    device = load_device(request.param)
    for tool in (f"{device.emulator.toolchain}gcc", device.emulator.program):
        need_tool(tool, PACKAGES[tool])
    assert call(export_main, make_run(tmp_path / "run"), "--target", request.param, "--out", tmp_path / "out") == 0
    assert call(check_main, tmp_path / "out") == 0
    return tmp_path / "out"


def rows(folder: Path, source: str) -> list[dict]:
    report = json.loads((folder / "report.json").read_text())
    return [row for row in report["ledger"] if row["source"] == source]


def sums(found: list[dict], key: str) -> dict[str, int]:
    result: dict[str, int] = {}
    for row in found:
        result[row[key]] = result.get(row[key], 0) + row["bytes"]
    return result


def linked_sections(folder: Path) -> dict[str, int]:
    """What the toolchain's own `size` says about sections that take memory."""
    board = json.loads((folder / "report.json").read_text())["board"]
    size = load_device(board).emulator.toolchain + "size"
    shown = subprocess.run([size, "-A", str(folder / ".fedtiny/firmware.elf")], capture_output=True, text=True).stdout
    table = [line.split() for line in shown.splitlines() if line.startswith(".")]
    return {name: int(count) for name, count, _ in table if not name.startswith((".debug", ".xt", ".riscv", ".ARM"))}


def test_rows_add_up_to_every_figure_and_every_section(checked):
    figures = {
        (f["name"], f["source"]): f["value"] for f in json.loads((checked / "report.json").read_text())["figures"]
    }
    planned, measured = rows(checked, "planned"), rows(checked, "measured-elf")
    for area, total in sums(planned, "area").items():
        assert total == figures[area, "planned"], area
    for area, total in sums(measured, "area").items():
        assert total == figures[area, "measured-elf"], area
    assert sums(planned, "area")["flash.model"] == (checked / "model.ftm").stat().st_size
    flash = sum(total for area, total in sums(measured, "area").items() if area.startswith("flash."))
    assert flash == figures["flash.total", "measured-elf"]
    found = {name: size for name, size in linked_sections(checked).items() if size and name != ".comment"}
    assert sums(measured, "section") == found
    assert all(row["bytes"] > 0 for row in planned + measured)
    assert {row["owner"] for row in measured} >= {"runtime", "start-up", "your src/", "self-test and report", "b1.c1"}


@pytest.mark.parametrize("graph", [residual(0, 0.2), every_operator(0)], ids=["residual", "every operator"])
def test_a_model_s_rows_are_what_its_records_say(graph):
    """Read back from the bytes, without the writer's help."""
    ftm = write_ftm(graph, BITMAP)
    data, header = ftm.data, abi.HEADER.unpack(ftm.data, 0)
    found: dict[tuple[str, str], int] = {}
    for owner, part, size in ftm.ledger:
        found[owner, part] = found.get((owner, part), 0) + size
    assert sum(found.values()) == len(data)
    parts = {name: sum(size for (_, part), size in found.items() if part == name) for _, name in found}
    assert parts["tensor record"] == 20 * header["tensor_count"]
    assert parts["operator record"] == 20 * header["op_count"]
    layers = iter([node.name for node in ftm.plan.graph.nodes if node.op in WEIGHTED])
    for index in range(header["op_count"]):
        op = abi.OP.unpack(data, header["ops"] + index * abi.OP.size)
        if Kernel(op["kernel"]) not in (Kernel.CONV_DENSE, Kernel.CONV_BITMAP, Kernel.DEPTHWISE):
            continue
        conv = abi.CONV.unpack(data, op["params"])
        channels = abi.TENSOR.unpack(data, header["tensors"] + op["output"] * abi.TENSOR.size)["channels"]
        name = next(layers)
        assert found[name, "weights"] == conv["weight_bytes"]
        assert found[name, "biases"] == found[name, "multipliers"] == 4 * channels
        assert found[name, "shifts"] == channels
        assert found[name, "padding"] == -channels % 4
        assert found[name, "parameters"] == abi.CONV.size
    assert next(layers, None) is None


def thicker(graph: Graph, layer: str, count: int) -> Graph:
    """The same network with `count` more weights that are not zero."""
    nodes = []
    for node in graph.nodes:
        if node.name == layer:
            weight = node.constants["weight"].copy()
            places = np.flatnonzero(weight == 0)[:count]
            assert len(places) == count
            weight.flat[places] = 1
            node = replace(node, constants={**node.constants, "weight": weight})
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def test_64_bytes_more_in_one_tensor_are_64_bytes_in_its_row_and_in_the_elf(tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    before = residual(0, 0.2, shape=(8, 8, 3))
    layer = max((n for n in before.nodes if n.op in WEIGHTED), key=lambda n: n.constants["weight"].size).name
    found, sections = [], []
    for index, graph in enumerate((before, thicker(before, layer, 64))):
        folder, ftm, inputs = tmp_path / str(index), write_ftm(graph, BITMAP), samples(graph, 2)
        outputs = reference.run(graph, inputs)
        write_export(folder, "qemu-m4", make_artifacts(graph, ftm, b"", inputs, outputs, ("a",)))
        found.append({(owner, part): size for owner, part, size in ftm.ledger if size})
        from fedtiny_export.board.emulator import build

        elf = build(folder, load_device("qemu-m4")).elf
        sections.append({s.name: s.size for s in read_image(elf, load_device("qemu-m4")).sections})
    changed = {key: found[1][key] - size for key, size in found[0].items() if found[1][key] != size}
    assert changed == {(layer, "weights"): 64}
    assert sections[1][".ft_model"] - sections[0][".ft_model"] == 64


def test_bytes_that_nobody_owns_are_an_error():
    text = "\nLinker script and memory map\n\n.text   0x100  0x20\n .text.a 0x100 0x10 x/fedtiny-build-a/src/0-m.o\n"
    section = Section(".text", 0x100, 0x20, True)
    with pytest.raises(FedtinyError, match=r"names no owner for \.text from 0x110 on"):
        list(_tiled(section, read_map(text)[".text"]))
    whole = read_map(text + " *fill* 0x110 0x10\n")[".text"]
    assert [piece.size for piece in _tiled(section, whole)] == [16, 16]
    for gone in ("", "no map at all"):
        with pytest.raises(FedtinyError, match="names no owner"):
            list(_tiled(section, read_map(gone).get(".text", ())))


def test_another_model_in_the_firmware_is_not_taken_for_this_one(tmp_path, need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")
    run = make_run(tmp_path / "run")
    assert call(export_main, run, "--target", "qemu-m4", "--out", tmp_path / "out") == 0
    other = make_run(tmp_path / "other", seed=5, density=0.4)
    assert call(export_main, other, "--target", "qemu-m4", "--out", tmp_path / "two") == 0
    shutil.copy(tmp_path / "two" / "model.ftm", tmp_path / "out" / "model.ftm")
    assert call(check_main, tmp_path / "out") == 5
    owners = {row["owner"] for row in rows(tmp_path / "out", "measured-elf") if row["section"] == ".ft_model"}
    assert owners == {"self-test and report"}
