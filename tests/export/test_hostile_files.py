"""Hostile ONNX and .tflite files: a clean refusal or a right export, within two seconds, and nothing else."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
from fedtiny_export.cli import export_main
from fedtiny_export.errors import FedtinyError
from fedtiny_export.onnx_in.read import read_onnx
from fedtiny_export.tflite.write import write_tflite
from hostile import attempt, mutate
from onnx import TensorProto, helper, numpy_helper
from runs import residual_onnx
from test_onnx_operators import CASES, IMAGE, model, node

MUTATIONS = int(os.environ.get("FEDTINY_MUTATIONS", "552"))
FIRST = int(os.environ.get("FEDTINY_MUTATION_SEED", "0"))
DIGITS = Path(__file__).parents[2] / "benchmarks/models/digits-fedtiny-10.tflite"


def originals(suffix: str) -> list[bytes]:
    """Every ONNX operator and a residual network; random chains of every .tflite operator and a trained network."""
    if suffix == ".tflite":
        return [DIGITS.read_bytes(), *(write_tflite(networks.anything(seed)) for seed in range(1, 19))]
    made = [residual_onnx(seed=3, density=0.5)]
    for nodes, constants, *opset in CASES.values():
        made.append(model(nodes, IMAGE, constants, *opset))
    return [one.SerializeToString() for one in made]


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_mutated_files_are_refused_or_exported(suffix, tmp_path):
    """FEDTINY_MUTATIONS=20000 is the long form; a file that fails goes into tests/regressions."""
    given, path, refused = originals(suffix), tmp_path / f"m{suffix}", 0
    for data in given:
        path.write_bytes(data)
        assert attempt(path) == "exported"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for number in range(MUTATIONS // 2):
        turn, place = divmod(number, len(given))
        seed = FIRST + 2 * number + turn % 2  # in turn in the format's own terms and of bytes
        path.write_bytes(mutate(given[place], suffix, seed))
        try:
            refused += attempt(path) != "exported"
        except Exception as error:
            raise AssertionError(f"mutation {seed} of original {place}") from error
    assert 0.3 < refused / (MUTATIONS // 2) < 0.95, "the mutations are too tame, or too wild"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before < 1000, "megabytes"


def onnx_file(path: Path, nodes, shape, constants=None) -> Path:
    onnx.save(model(nodes, shape, constants), path)
    return path


def test_a_cycle_is_refused(tmp_path):
    nodes = [node("Add", "input b", "a"), node("Relu", "a", "b")]
    with pytest.raises(FedtinyError, match=r"nothing before it writes|sorted"):
        read_onnx(onnx_file(tmp_path / "m.onnx", nodes, (2, 4, 4)))


@pytest.mark.parametrize(
    ("nodes", "shape", "constants"),
    [
        ([node("Relu", "input", "y")], (60_000, 60_000, 60_000), {}),
        ([node("GlobalMaxPool", "input", "y")], (1, 60_000, 200), {}),
        (
            [node("Resize", "input n s", "y")],
            (1, 4, 4),
            {"n": np.array([], np.float32), "s": np.array([1, 1, 1e9, 1e9], np.float32)},
        ),
        ([node("Pad", "input p", "y")], (1, 4, 4), {"p": np.array([0, 0, 2**62, 0, 0, 0, 0, 0])}),
        ([node("Conv", "input w", "y", pads=[255] * 4)], (1, 3000, 3000), {"w": np.ones((1, 1, 255, 255), np.float32)}),
        ([node("Reshape", "input s", "y")], (1, 4, 4), {"s": np.array([1, 2**62, 4])}),
        (
            [node("Gather", "t t", "u"), node("Gather", "u t", "v"), node("Relu", "input", "y")],
            (1, 4, 4),
            {"t": np.zeros((2000,), np.int64)},
        ),
    ],
)
def test_huge_sizes_cost_nothing(nodes, shape, constants, tmp_path):
    assert attempt(onnx_file(tmp_path / "m.onnx", nodes, shape, constants)) != ""


def test_an_initialiser_that_announces_more_than_it_holds(tmp_path):
    proto = model([node("Conv", "input w", "y")], (1, 4, 4), {})
    weight = numpy_helper.from_array(np.ones((1, 1, 2, 2), np.float32), "w")
    weight.dims[:] = [1, 1, 60_000, 60_000]
    proto.graph.initializer.append(weight)
    onnx.save(proto, tmp_path / "m.onnx")
    assert "14400000000 bytes required" in attempt(tmp_path / "m.onnx")


def test_other_kinds_of_graph_are_refused(tmp_path):
    body = helper.make_graph(
        [node("Relu", "input", "y")], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body, name="branch")]
    said = attempt(onnx_file(tmp_path / "m.onnx", nodes, (1, 4, 4), {"c": np.array(True)}))
    assert "operator branch of type If is not supported" in said


def test_names_in_a_report_are_of_one_line_and_steer_no_terminal(tmp_path):
    proto = residual_onnx(seed=3, density=0.5)
    made = {name for item in proto.graph.node for name in item.output} - {"logits"}
    for item in proto.graph.node:
        for names in (item.input, item.output):
            names[:] = [f"{name}\nfits\x1b[2J" if name in made else name for name in names]
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 17, (20, 8, 8)))
    given = ["--calibration", str(tmp_path / "x.npz"), "--explain", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        export_main([str(tmp_path / "m.onnx"), "--target", "esp32", *given])
    assert not end.value.code
    text = (tmp_path / "out/report.txt").read_text()
    assert "stem.relu?fits?[2J" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert not any(line.startswith("fits?") for line in text.splitlines())
