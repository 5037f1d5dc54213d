"""Reading ONNX: the float graph equals ONNX's own evaluator, and what cannot be read is refused in one line."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import onnx
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph.evaluate import run_float
from fedtiny_export.graph.ir import Op
from fedtiny_export.graph.passes import simplify
from fedtiny_export.onnx_in.read import read_onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from runs import OnnxBuilder, residual_onnx


def _same(model: onnx.ModelProto, path, x: np.ndarray) -> None:
    """x is channels first; both the graph as read and the simplified one must agree with ONNX."""
    onnx.save(model, path)
    expected = ReferenceEvaluator(model).run(None, {"input": x.astype(np.float32)})[0]
    last = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
    for graph in (read_onnx(path), simplify(read_onnx(path))):
        found = run_float(graph, last.astype(np.float64))[graph.output]
        assert np.allclose(found.reshape(expected.shape), expected, atol=1e-4), "float error only"


def test_a_residual_network_reads_and_folds_without_change(tmp_path):
    model = residual_onnx(seed=3, density=0.3)
    _same(model, tmp_path / "m.onnx", np.random.default_rng(0).uniform(0, 16, (5, 1, 8, 8)))
    graph = simplify(read_onnx(tmp_path / "m.onnx"))
    assert {node.op for node in graph.nodes} == {Op.CONV, Op.ADD, Op.MEAN, Op.DENSE}
    assert graph.nodes[0].pad_value == pytest.approx(16 / 255 * 78), "padding with the mean, as before the folding"


def _graph(nodes, shape, out, *constants):
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["N", "F"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_flattened_image_keeps_its_order(tmp_path):
    random = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], pads=[0, 1, 2, 0]),
        helper.make_node("Clip", ["c", "low", "high"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["d"]),
        helper.make_node("Add", ["d", "b"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["logits"]),
    ]
    constants = [
        ("w", random.normal(size=(3, 2, 3, 2)).astype(np.float32)),
        ("low", np.float32(0)),
        ("high", np.float32(6)),
        ("shape", np.array([-1, 3 * 4 * 4], np.int64)),
        ("m", random.normal(size=(48, 5)).astype(np.float32)),
        ("b", np.float32(0.25)),
        ("half", np.float32(0.5)),
    ]
    _same(_graph(nodes, [1, 2, 4, 4], "logits", *constants), tmp_path / "m.onnx", random.normal(size=(6, 2, 4, 4)))


def test_feature_vectors_are_read(tmp_path):
    random = np.random.default_rng(2)
    nodes = [
        helper.make_node("Gemm", ["input", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["logits"]),
    ]
    constants = [
        ("w", random.normal(size=(7, 4)).astype(np.float32)),
        ("b", random.normal(size=7).astype(np.float32)),
        ("v", random.normal(size=(7, 3)).astype(np.float32)),
    ]
    _same(_graph(nodes, ["N", 4], "logits", *constants), tmp_path / "m.onnx", random.normal(size=(9, 4)))


CONSTANTS = [
    ("w", np.ones((4, 1, 3, 3), np.float32)),
    ("tall", np.ones((4, 1, 17, 3), np.float32)),
    ("three", np.float32(3)),
    ("three_numbers", np.ones(3, np.float32)),
    ("huge", np.array([1 << 20, 1 << 20])),
    ("nan", np.float32(np.nan)),
    ("m", np.ones((36, 5), np.float32)),
    ("half", np.float32(0.5)),
    ("one", np.array([1], np.int64)),
    ("per_row", np.ones((6, 1), np.float32)),
    ("scales", np.array([1, 1, 1.5, 1.5], np.float32)),
]
REFUSED = [
    ([helper.make_node("Sin", ["input"], ["y"], name="wave")], "operator wave of type Sin is not supported"),
    ([helper.make_node("Conv", ["input", "w"], ["y"], name="c", group=2)], "in 2 groups do not fit 1 channels"),
    ([helper.make_node("Conv", ["input", "w"], ["y"], name="c", strides=[0, 1])], "between 0 and 255"),
    ([helper.make_node("Div", ["three", "input"], ["y"], name="s")], "second operand"),
    ([helper.make_node("Conv", ["input", "w", "three_numbers"], ["y"], name="c")], "bias of shape"),
    ([helper.make_node("BatchNormalization", ["input", *["three_numbers"] * 4], ["y"], name="b")], "1 numbers of each"),
    ([helper.make_node("Clip", ["input", "nan"], ["y"], name="c")], "not a number"),
    ([helper.make_node("Clip", ["input", "three", "half"], ["y"], name="c")], "3.0 is above 0.5"),
    (
        [helper.make_node("Gemm", ["input", "m"], ["g"]), helper.make_node("ReduceMean", ["g"], ["y"], axes=[2, 3])],
        "flatten it before",
    ),
    ([helper.make_node("ReduceMean", ["input"], ["y"], axes=[1, 3])], "over height and width"),
    ([helper.make_node("Softmax", ["input"], ["y"], name="s", axis=-1)], "over the channels"),
    ([helper.make_node("Sub", ["input", "input"], ["y"], name="s")], "Sub of two activations"),
    ([helper.make_node("Mul", ["input", "per_row"], ["y"], name="s")], "one number, or one a channel"),
    ([helper.make_node("HardSigmoid", ["input"], ["y"], name="s", alpha=-0.2)], "alpha -0.2"),
    (
        [
            helper.make_node("ConstantOfShape", ["huge"], ["h"]),
            helper.make_node("Add", ["input", "h"], ["y"]),
        ],
        "the limit is 1,024",
    ),
    ([helper.make_node("ReduceMax", ["input"], ["y"], axes=[1, 3])], "over height and width"),
    ([helper.make_node("MaxPool", ["input"], ["y"], name="p", kernel_shape=[2, 2], dilations=[2, 1])], "dilated pools"),
    ([helper.make_node("MaxPool", ["input"], ["y"], name="p", kernel_shape=[2, 2], pads=[2, 0, 0, 0])], "as large as"),
    ([helper.make_node("Transpose", ["input"], ["y"], name="t", perm=[1, 0, 2, 3])], "keep the batch first"),
    ([helper.make_node("Concat", ["input", "input"], ["y"], name="j", axis=0)], "not one of a sample's"),
    ([helper.make_node("Pad", ["input", "one"], ["y"], name="p")], "do not fit 4 sides"),
    ([helper.make_node("LeakyRelu", ["input"], ["y"], name="l", alpha=-1.0)], "alpha -1.0"),
    (
        [helper.make_node("Resize", ["input", "", "scales"], ["y"], name="r", nearest_mode="ceil")],
        "no TensorFlow Lite equivalent",
    ),
]


@pytest.mark.parametrize(("nodes", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_what_is_not_supported_is_refused_by_name(nodes, message, tmp_path):
    onnx.save(_graph(nodes, [1, 1, 6, 6], "y", *CONSTANTS), tmp_path / "m.onnx")
    with pytest.raises(FedtinyError, match=message):
        simplify(read_onnx(tmp_path / "m.onnx"))


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    bad = ("w", np.full((4, 1, 3, 3), np.nan, np.float32))
    onnx.save(_graph([helper.make_node("Conv", ["input", "w"], ["y"])], [1, 1, 6, 6], "y", bad), tmp_path / "m.onnx")
    with pytest.raises(FedtinyError, match="not finite"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("size", [0, 1, 100, 2000])
def test_a_truncated_file_is_one_clear_line(size, tmp_path):
    whole = residual_onnx().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole[:size])
    with pytest.raises(FedtinyError) as caught:
        simplify(read_onnx(tmp_path / "m.onnx"))
    assert "\n" not in str(caught.value)


def test_random_damage_never_escapes_as_another_exception(tmp_path):
    whole, random = residual_onnx().SerializeToString(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for position in random.integers(0, len(damaged), 3):
            damaged[position] = int(random.integers(0, 256))
        (tmp_path / "m.onnx").write_bytes(bytes(damaged))
        with contextlib.suppress(FedtinyError):
            simplify(read_onnx(tmp_path / "m.onnx"))


def test_limits_of_an_old_clip_are_attributes(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["h"]),
        helper.make_node("Clip", ["h"], ["y"], min=0.0, max=0.5),
    ]
    model = _graph(nodes, ["N", 4], "y", ("w", np.eye(4, dtype=np.float32)))
    model.opset_import[0].version = 9
    onnx.save(model, tmp_path / "m.onnx")
    graph = simplify(read_onnx(tmp_path / "m.onnx"))
    assert run_float(graph, np.array([[-1.0, 0.2, 0.7, 9.0]]))["y"].tolist() == [[0.0, 0.2, 0.5, 0.5]]


def test_equal_node_names_are_no_matter(tmp_path):
    """ONNX asks for different tensor names only."""
    model = residual_onnx(seed=3, density=0.3)
    for node in model.graph.node:
        node.name = "same"
    _same(model, tmp_path / "m.onnx", np.random.default_rng(0).uniform(0, 16, (5, 1, 8, 8)))
    assert len({node.name for node in simplify(read_onnx(tmp_path / "m.onnx")).nodes}) == 10


def test_a_thousand_layers_are_read_in_seconds(tmp_path):
    b = OnnxBuilder(0, 1.0)
    x = "input"
    for i in range(500):
        x = b.node("Relu", f"r{i}", b.conv_bn(f"c{i}", x, 2, 2, 1, 1, [0] * 4))
    constants = b.initializers
    model = _graph(b.nodes, ["N", 2, 4, 4], x)
    model.graph.initializer.extend(constants)
    onnx.save(model, tmp_path / "m.onnx")
    start = time.perf_counter()
    assert len(simplify(read_onnx(tmp_path / "m.onnx")).nodes) == 500
    assert time.perf_counter() - start < 10, "it takes a fraction of a second; this catches the quadratic"
