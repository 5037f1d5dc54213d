"""Hostile ONNX and .tflite files: a clean refusal or a right export, within two seconds, and nothing else."""

from __future__ import annotations

import resource
from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.onnx_in.read import read_onnx
from fedtiny_export.tflite.write import write_tflite
from hostile import attempt, mutate
from onnx import TensorProto, helper, numpy_helper
from runs import residual_onnx
from test_onnx_operators import CASES, IMAGE, model, node


def originals() -> list[tuple[str, bytes]]:
    found = [(".onnx", residual_onnx(seed=3, density=0.5).SerializeToString())]
    for case in ("squeeze and excite", "reshape there and back", "concat", "max pool, ceil", "pad channels", "resize"):
        nodes, constants, *opset = CASES[case]
        found.append((".onnx", model(nodes, IMAGE, constants, *opset).SerializeToString()))
    return found + [(".tflite", write_tflite(networks.anything(seed))) for seed in (1, 2, 3, 5, 7)]


ORIGINALS = originals()


@pytest.mark.parametrize("place", range(len(ORIGINALS)))
def test_mutated_files_are_refused_or_exported(place, tmp_path):
    suffix, data = ORIGINALS[place]
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    assert attempt(path) == "exported"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    outcomes = []
    for seed in range(46):
        path.write_bytes(mutate(data, suffix, 1000 * place + seed))
        try:
            outcomes.append(attempt(path))
        except Exception as error:
            raise AssertionError(f"mutation {1000 * place + seed} of original {place}") from error
    assert any(said != "exported" for said in outcomes), "the mutations are too tame"
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
