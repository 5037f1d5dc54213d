"""For TensorFlow Lite Micro: coded weights run as the plain ones do, and the C files hold what they say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import networks
import numpy as np
import oracles
import pytest
import tflm_library
from commands import export
from fedtiny_export.graph.ir import Op
from fedtiny_export.tflite.write import write_tflite
from fedtiny_export.tflm import files as tflm
from fedtiny_export.tflm.decode import HEADER, decode, decoded_bytes, encode, pays
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from networks import Builder
from runs import make_run

SOURCES = Path(tflm.__file__).parents[1]


def test_weights_by_hand():
    weight = np.array([[0, 5, 0], [0, 0, 0], [0, -1, 7]], np.int8)
    mask, ancillary = encode(weight)
    assert mask == bytes([0b01000001, 0b10000000])
    assert ancillary == bytes([2, 1, 0, 0, 1] + [0] * 11 + [5, 255, 7])
    assert len(HEADER) == 16


@settings(deadline=None)
@given(arrays(np.int8, st.integers(1, 70), elements=st.sampled_from([-128, -1, 0, 0, 0, 1, 127])))
def test_what_is_coded_is_decoded(weight):
    assert np.array_equal(decode(*encode(weight), weight.size), weight)


def _depthwise() -> networks.Graph:
    b = Builder((9, 9, 64), 0, density=0.1)
    b.depthwise(2, (3, 3), pads=(1, 1, 1, 1), low=0.0)
    b.conv(24, 1)
    b.add(Op.MEAN)
    b.dense(200)
    b.dense(7)
    return b.int8()


@pytest.mark.parametrize("name", ["resnet8 at 10 %", "resnet8 at 50 %", "depthwise and dense", "one scale for all"])
def test_tflite_micro_computes_the_same_from_coded_weights(name):
    graph = {
        "resnet8 at 10 %": lambda: networks.ic01(0.1),
        "resnet8 at 50 %": lambda: networks.ic01(0.5),
        "depthwise and dense": _depthwise,
        "one scale for all": lambda: _one_scale(networks.ic01(0.1)),
    }[name]()
    plain, coded = write_tflite(graph), write_tflite(graph, decode=True)
    inputs = networks.samples(graph, 8)
    expected = oracles.tflite_micro(plain, inputs)
    assert np.array_equal(oracles.tflite_micro(coded, inputs), expected)
    assert len(np.unique(expected)) > 5
    used = tflm.operators(coded)
    assert used.count("TFLM_DECODE") == 1
    assert "DENSIFY" not in used
    assert len(coded) < len(plain) - sum(decoded_bytes(graph).values()) // 4


def _one_scale(graph: networks.Graph) -> networks.Graph:
    """As other converters write it: the first scale of every layer holds for all of its channels."""
    from dataclasses import replace

    nodes = tuple(
        replace(n, constants={**n.constants, "weight_scale": n.constants["weight_scale"][:1]}) if n.constants else n
        for n in graph.nodes
    )
    return replace(graph, nodes=nodes)


@pytest.mark.parametrize("density", [0.02, 0.3, 0.6, 0.7, 0.8])
def test_coding_never_makes_a_file_larger(density):
    for channels in (4, 8, 10, 12, 16, 24, 40):
        builder = Builder((6, 6, channels), channels, density)
        builder.conv(channels)
        graph = builder.int8()
        plain, coded = len(write_tflite(graph)), len(write_tflite(graph, decode=True))
        assert coded < plain if pays(graph.nodes[0]) else coded == plain


def test_a_single_depthwise_channel_is_left_plain():
    builder = Builder((40, 40, 1), 0, density=0.01)
    builder.depthwise(1, (33, 33))
    assert not pays(builder.int8().nodes[0])


def test_coded_weights_are_counted_in_the_arena(tmp_path, capsys):
    run = make_run(tmp_path / "run", density=0.1, widths=(24, 32))
    figures = {}
    for runtime in ("tflm", "tflm-decode"):
        assert export(run, "--target", "esp32", "--out", tmp_path / runtime, "--runtime", runtime) == 0
        report = json.loads((tmp_path / runtime / "report.json").read_text())
        assert report["runtime"] == runtime
        figures[runtime] = {(f["name"], f["source"]): f["value"] for f in report["figures"]}
        golden = np.load(tmp_path / runtime / "golden.npz")
        found = oracles.tflite_micro((tmp_path / runtime / "model.tflite").read_bytes(), golden["inputs"])
        assert np.array_equal(found, golden["outputs"].reshape(len(found), -1))
        assert "model.tflite, byte by byte" in capsys.readouterr().out
    plain, coded = figures["tflm"], figures["tflm-decode"]
    assert coded["flash.model", "planned"] < plain["flash.model", "planned"] - 10_000
    assert coded["ram.arena", "planned"] > plain["ram.arena", "planned"]
    for one in (plain, coded):
        assert one["ram.arena", "planned"] < one["ram.arena", "measured-run"]
    layers = json.loads((tmp_path / "tflm-decode/report.json").read_text())["layers"]
    assert {layer["encoding"] for layer in layers if layer["weights"]} == {"dense", "decode"}


def test_a_dense_network_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run", density=1.0)
    assert export(run, "--target", "esp32", "--out", tmp_path / "o", "--runtime", "tflm-decode") == 1
    assert "no layer gets smaller by DECODE" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_arena_that_was_measured_is_the_least_that_works():
    model = write_tflite(networks.ic01(0.1))
    size = tflm.measured_arena(model)
    inputs = np.zeros((1, 32, 32, 3), np.int8)
    oracles.tflite_micro(model, inputs, arena_bytes=size)
    with pytest.raises(RuntimeError):
        oracles.tflite_micro(model, inputs, arena_bytes=size - 64)


def test_without_the_package_the_arena_is_said_not_to_be_measured(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tflite_micro.python.tflite_micro", None)
    assert tflm.measured_arena(write_tflite(networks.residual(0))) is None
    header = tflm.tflm_files(write_tflite(networks.residual(0)), None)["model_data.h"].decode()
    assert "MODEL_ARENA_BYTES" not in header
    assert "was not measured" in header


@pytest.mark.parametrize(
    "compiler", [("gcc", "-std=c99"), ("gcc", "-std=c11"), ("g++", "-std=c++17", "-x", "c++")], ids=lambda c: c[1]
)
def test_the_c_array_is_the_file_and_aligned(compiler, tmp_path, need_tool):
    need_tool(compiler[0], compiler[0])
    model = write_tflite(networks.residual(1, 0.3))
    for name, content in tflm.tflm_files(model, 4321).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "model_data.h"\nint main(void) {\n'
        "  fwrite(model_data, 1, sizeof model_data, stdout);\n"
        "  return (int)((uintptr_t)model_data % 16) + (MODEL_ARENA_BYTES != 4321u);\n}\n"
    )
    flags = ("-Wall", "-Wextra", "-Werror", "-pedantic")
    subprocess.run([*compiler, *flags, "main.c", "model_data.c", "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout == model


def test_a_teensy_keeps_the_c_array_in_flash(tmp_path, need_tool):
    need_tool("gcc", "gcc")
    for name, content in tflm.tflm_files(write_tflite(networks.residual(1, 0.3)), None).items():
        (tmp_path / name).write_bytes(content)
    flags = ("-Wall", "-Wextra", "-Werror", "-DARDUINO=1", "-D__IMXRT1062__")
    subprocess.run(["gcc", *flags, "-c", "model_data.c", "-o", "model.o"], cwd=tmp_path, check=True)
    shown = subprocess.run(["objdump", "-h", "model.o"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ".progmem.model_data" in shown.stdout


@pytest.mark.parametrize("flags", [(), ("-DMODEL_OPS_ANY_TYPE",)], ids=["int8", "any type"])
@pytest.mark.parametrize("namespace", ["tflite", "tflite::micro"])
def test_the_resolver_has_exactly_the_operators_used(namespace, flags, tmp_path, need_tool):
    """Against stand-ins for TensorFlow Lite Micro's classes, with its names where it had and where it has them."""
    need_tool("g++", "g++")
    model = write_tflite(networks.ic01(0.1), decode=True)
    assert sorted(tflm.operators(model)) == ["ADD", "CONV_2D", "FULLY_CONNECTED", "MEAN", "TFLM_DECODE"]
    for name, content in tflm.tflm_files(model, None).items():
        (tmp_path / name).write_bytes(content)
    tflm_library.write_headers(tmp_path, namespace, int8=not flags)
    (tmp_path / "main.cc").write_text(
        '#include <cstdio>\n#include "model_ops.h"\nint main() {\n  MODEL_OPS_RESOLVER resolver;\n'
        "  int failed = static_cast<int>(AddModelOps(resolver)) + (resolver.used != MODEL_OPS_COUNT);\n"
        "  for (unsigned i = 0; i < resolver.used; i++) std::puts(resolver.added[i]);\n  return failed;\n}\n"
    )
    subprocess.run(["g++", "-std=c++17", "-Wall", "-I.", *flags, "main.cc", "-o", "main"], cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout
    methods = [tflm.METHODS[name][0] for name in tflm.operators(model)]
    assert said.splitlines() == [tflm_library.added(method, int8=not flags) for method in methods]


def test_every_operator_that_is_written_has_a_row():
    text = (SOURCES / "tflite/layers_out.py").read_text()
    emitted = {name for line in re.findall(r"emit\(\s*[^,]+,", text) for name in re.findall(r'"([A-Z0-9_]+)"', line)}
    assert len(emitted) > 15
    assert emitted | {"TFLM_DECODE"} == set(tflm.METHODS)
