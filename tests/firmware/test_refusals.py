"""On the device: a damaged, cut or foreign model is refused with a reason, and a wrong layer is named."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
from fedtiny_export.board.check import measure, read_log
from fedtiny_export.board.devices import load_device
from fedtiny_export.board.elf import read_image
from fedtiny_export.board.emulator import Firmware, Run, build, run
from fedtiny_export.board.selftest import fnv1a, golden_steps
from fedtiny_export.errors import FedtinyError
from fedtiny_export.export import make_artifacts
from fedtiny_export.ftm import abi
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import WEIGHTED
from networks import every_operator, residual, samples, streamed
from small_project import write_export

DEVICE = load_device("qemu-m4")
GRAPH = residual(seed=1, density=0.3)
DENSE = {kernel: 10**9 * (kernel not in (Kernel.CONV_DENSE, Kernel.DEPTHWISE)) for kernel in Kernel}


@pytest.fixture(scope="module", autouse=True)
def tools(need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")


def made_of(graph, costs=DENSE):
    inputs = samples(graph, 3)
    return make_artifacts(graph, write_ftm(graph, costs), b"", inputs, reference.run(graph, inputs), ("a", "b"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[bytes, int]:
    """A linked firmware, and where its model lies in the file."""
    folder = tmp_path_factory.mktemp("whole")
    made = write_export(folder, "qemu-m4", made_of(GRAPH))
    elf = build(folder, DEVICE).elf.read_bytes()
    assert elf.count(made.ftm) == 1
    return elf, elf.index(made.ftm)


def ran(elf: bytes, folder) -> Run:
    path = folder / "changed.elf"
    path.write_bytes(elf)
    made = made_of(GRAPH)
    return run(Firmware(path, path), read_image(path, DEVICE), DEVICE, made.golden_inputs, made.output.elements)


def refused(result: Run, reason: str) -> None:
    assert result.exit_code == 1, result.text
    assert result.text == f"the model was refused: {reason}\n", "nothing else is said, and nothing runs"
    assert result.outputs == b""
    with pytest.raises(FedtinyError, match="the device does not run: the model was refused: "):
        read_log(result.text)


def test_one_flipped_bit_anywhere_in_the_flashed_model_is_refused(built, tmp_path):
    elf, start = built
    size = len(made_of(GRAPH).ftm)
    assert ran(elf, tmp_path).exit_code == 0
    places = [16, 39, 41, size // 3, size // 2, size - 1, *np.random.default_rng(3).integers(16, size, 6).tolist()]
    for place in places:
        for bit in (0, 7):
            changed = bytearray(elf)
            changed[start + place] ^= 1 << bit
            refused(ran(bytes(changed), tmp_path), "damaged (status -5)")


def sealed(model: bytes) -> bytes:
    return model[: abi.CRC_FROM - 4] + zlib.crc32(model[abi.CRC_FROM :]).to_bytes(4, "little") + model[abi.CRC_FROM :]


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"F", "not a model (status -3)"),
        (4, b"\x63", "other version (status -4)"),
        (20, b"\xff\xff\xff\x7f", "arena too small (status -8)"),
        (16, b"\xff\xff\xff\xff", "kernel missing (status -7)"),
        (28, b"\xff\xff", "bad format (status -6)"),
    ],
)
def test_a_whole_file_that_is_not_for_this_firmware_is_refused(built, tmp_path, at, value, reason):
    elf, start = built
    model = bytearray(made_of(GRAPH).ftm)
    model[at : at + len(value)] = value if at else b"G"
    changed = elf[:start] + sealed(bytes(model)) + elf[start + len(model) :]
    refused(ran(changed, tmp_path), reason)


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    whole = made_of(GRAPH)
    write_export(tmp_path, "qemu-m4", dataclasses.replace(whole, ftm=whole.ftm[:-64]))
    with pytest.raises(FedtinyError, match=r"ended with code 1: the model was refused: cut off \(status -2\)"):
        measure(tmp_path, DEVICE, None)


def ask_for_layers(folder) -> None:
    main = folder / "src" / "main.c"
    text = main.read_text()
    assert text.count("#define NAME_THE_LAYER 0") == 1
    main.write_text(text.replace("#define NAME_THE_LAYER 0", "#define NAME_THE_LAYER 1"))


def test_naming_layers_costs_nothing_unless_asked_for(tmp_path):
    write_export(tmp_path, "qemu-m4", made_of(GRAPH))
    image = read_image(build(tmp_path, DEVICE).elf, DEVICE)
    assert image.symbol("ft_report_layers") is image.symbol("ft_golden_steps") is None
    library = tmp_path / "lib" / "fedtiny" / "src"
    for name in ("ft_layers.c", "layers.c"):
        (library / name).rename(tmp_path / name)
    assert read_image(build(tmp_path, DEVICE).elf, DEVICE).sections == image.sections
    for name in ("ft_layers.c", "layers.c"):
        (tmp_path / name).rename(library / name)
    ask_for_layers(tmp_path)
    asked = read_image(build(tmp_path, DEVICE).elf, DEVICE)
    assert asked.symbol("ft_report_layers") is not None
    assert asked.flash_bytes > image.flash_bytes


def damaged(graph, layer: str) -> bytes:
    """The model with the biases of a layer changed, and its checksum right."""
    ftm = write_ftm(graph, DENSE)
    position, order = 0, [node.name for node in ftm.plan.graph.nodes if node.op in WEIGHTED]
    header = abi.HEADER.unpack(ftm.data, 0)
    for index in range(header["op_count"]):
        op = abi.OP.unpack(ftm.data, header["ops"] + index * abi.OP.size)
        if Kernel(op["kernel"]) not in (Kernel.CONV_DENSE, Kernel.DEPTHWISE):
            continue
        if order[position] == layer:
            bias = abi.CONV.unpack(ftm.data, op["params"])["bias"]
            changed = bytearray(ftm.data)
            channels = abi.TENSOR.unpack(ftm.data, header["tensors"] + op["output"] * abi.TENSOR.size)["channels"]
            for channel in range(channels):
                changed[bias + 4 * channel + 2] ^= 0x40  # four million: no rescaling hides it
            return sealed(bytes(changed))
        position += 1
    raise AssertionError(layer)


@pytest.mark.parametrize("index", [0, 2, -1])
def test_the_first_layer_that_differs_is_named(tmp_path, index):
    whole = made_of(GRAPH)
    layers = [node.name for node in write_ftm(GRAPH, DENSE).plan.graph.nodes if node.op in WEIGHTED]
    model = damaged(GRAPH, layers[index])
    write_export(tmp_path, "qemu-m4", dataclasses.replace(whole, ftm=model))
    ask_for_layers(tmp_path)
    measured = measure(tmp_path, DEVICE, None)
    assert not measured.golden_equal
    named = measured.first_difference.partition("; the first layer that differs is ")[2]
    assert layers[index] in named.split(" > "), measured.first_difference


@pytest.mark.parametrize("graph", [every_operator(0), streamed(1)], ids=["every operator", "streamed"])
def test_a_model_that_is_right_has_every_step_as_exported(tmp_path, graph):
    """Every hash is compared on the device, in whatever order and place the planner chose."""
    made = made_of(graph)
    assert len({step.name for step in made.steps}) > 3
    if graph.nodes[0].name.startswith("s"):
        assert any(" > " in step.name for step in made.steps)
    write_export(tmp_path, "qemu-m4", made)
    ask_for_layers(tmp_path)
    main = tmp_path / "src" / "main.c"
    main.write_text(main.read_text().replace("if (!selftest.passed) (void)ft_report", "(void)ft_report"))
    firmware = build(tmp_path, DEVICE)
    result = run(firmware, read_image(firmware.elf, DEVICE), DEVICE, made.golden_inputs, made.output.elements)
    assert "self-test: every layer is as exported\n" in result.text, result.text


def test_the_hash_is_fnv_1a():
    assert [fnv1a(text) for text in (b"", b"a", b"foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


def test_names_can_be_printed_anywhere():
    graph = residual(seed=1, density=0.3)
    odd = dataclasses.replace(graph.nodes[0], name='a"b\\c\n%s' + "x" * 100)
    graph = dataclasses.replace(graph, nodes=(odd, *graph.nodes[1:]))
    names = [step.name for step in golden_steps(write_ftm(graph, DENSE).plan, samples(graph, 1))]
    assert any("a_b_c__s" in name for name in names)
    assert all(len(name) <= 60 and name.isprintable() and '"' not in name for name in names)
