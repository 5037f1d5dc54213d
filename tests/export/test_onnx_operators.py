"""Every ONNX operator: the float graph equals ONNX's evaluator, and its int8 form equals TFLite Micro byte for byte."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import oracles
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph import reference
from fedtiny_export.graph.evaluate import Samples, calibrate, run_float, to_int8
from fedtiny_export.graph.ir import Op
from fedtiny_export.graph.passes import simplify
from fedtiny_export.onnx_in.read import read_onnx
from fedtiny_export.quant.quantize import quantize
from fedtiny_export.tflite.write import write_tflite
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def model(nodes, shape, constants=None, opset=17) -> onnx.ModelProto:
    """The last node's output is the network's; its sides are left open."""
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["N", "any"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def last(values: np.ndarray) -> np.ndarray:
    """ONNX's layout as the Graph has it: channels last, one row for a signal."""
    values = np.moveaxis(values, 1, -1) if values.ndim > 2 else values
    return values[:, None] if values.ndim == 3 else values


def check(proto: onnx.ModelProto, path: Path, seed: int = 0, channels_last: bool = False):
    """Return the simplified graph after comparing everything that can be compared."""
    onnx.save(proto, path)
    sides = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(seed).normal(size=(20, *sides)).astype(np.float32)
    expected = ReferenceEvaluator(proto).run(None, {"input": x})[0]
    given = (x if channels_last else last(x)).astype(np.float64)
    wanted = expected if channels_last else last(expected)
    for graph in (read_onnx(path), simplify(read_onnx(path))):
        found = run_float(graph, given)[graph.output]
        assert found.shape[1:] == graph.tensors[graph.output].shape
        assert np.allclose(found.reshape(wanted.shape), wanted, atol=1e-4), "float error only"
    ranges = calibrate(graph, Samples(given, None))
    coarse = quantize(graph, ranges)
    inputs = to_int8(coarse, given)
    outputs = reference.run(coarse, inputs)
    assert np.array_equal(oracles.tflite_micro(write_tflite(coarse), inputs), outputs.reshape(20, -1))
    quant = coarse.tensors[coarse.output].quant
    real = (outputs.astype(np.float64) - quant.zero_point) * quant.scale
    span = max(1e-6, float(np.ptp(wanted)))
    assert np.abs(real.reshape(wanted.shape) - wanted).mean() < 0.05 * span, "int8 is near float"
    return graph


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), output.split(), name=f"the {kind}", **attributes)


R = np.random.default_rng(5)


def weights(*shape):
    return R.normal(size=shape).astype(np.float32)


W = {"w": weights(6, 4, 3, 3), "b": weights(6)}
CONV = node("Conv", "input w b", "c", pads=[1, 1, 1, 1])
DENSE = {"m": weights(10, 6 * 8 * 6), "n": weights(10)}
IMAGE = (4, 8, 6)
CASES = {
    "depthwise": (
        [node("Conv", "input w", "y", group=4, pads=[1, 0, 2, 1], strides=[2, 1])],
        {"w": weights(8, 1, 3, 2)},
    ),
    "groups": (
        [node("Conv", "input w b", "y", group=2, pads=[1, 1, 1, 1])],
        {"w": weights(6, 2, 3, 3), "b": weights(6)},
    ),
    "dilation": ([node("Conv", "input w b", "y", dilations=[2, 3], pads=[2, 3, 1, 2])], W),
    "auto_pad": ([node("Conv", "input w b", "y", auto_pad="SAME_LOWER", strides=[2, 2])], W),
    "bias after": ([node("Conv", "input w", "c"), node("Add", "c v", "y")], W | {"v": weights(1, 6, 1, 1)}),
    "relu read elsewhere": ([CONV, node("Relu", "c", "r"), node("Add", "c r", "y")], W),
    "relu6 of the input": (
        [node("Clip", "input zero six", "r"), node("Conv", "r w b", "y")],
        W | {"zero": np.float32(0), "six": np.float32(1.5)},
    ),
    "clip to -1..1": ([CONV, node("Clip", "c low high", "y")], W | {"low": np.float32(-1), "high": np.float32(1)}),
    "leaky": ([CONV, node("LeakyRelu", "c", "y", alpha=0.2)], W),
    "hard swish": ([CONV, node("HardSwish", "c", "y")], W),
    "hard swish in two": ([CONV, node("HardSigmoid", "c", "h", alpha=1 / 6, beta=0.5), node("Mul", "c h", "y")], W),
    "hard sigmoid of ONNX": ([CONV, node("HardSigmoid", "c", "y")], W),
    "squeeze and hard sigmoid": (
        [
            CONV,
            node("GlobalAveragePool", "c", "g"),
            node("Conv", "g e", "h"),
            node("HardSigmoid", "h", "s", alpha=1 / 6, beta=0.5),
            node("Mul", "c s", "y"),
        ],
        W | {"e": weights(6, 6, 1, 1)},
    ),
    "hard swish and its gate": (
        [
            CONV,
            node("HardSigmoid", "c", "h", alpha=1 / 6, beta=0.5),
            node("Mul", "c h", "s"),
            node("Add", "s h", "y"),
        ],
        W,
    ),
    "tanh": ([CONV, node("Tanh", "c", "y")], W),
    "tanh joined": ([CONV, node("Tanh", "c", "t"), node("Concat", "t c", "y", axis=1)], W),
    "silu": ([CONV, node("Sigmoid", "c", "h"), node("Mul", "h c", "y")], W),
    "squeeze and excite": (
        [
            CONV,
            node("GlobalAveragePool", "c", "g"),
            node("Conv", "g e", "h"),
            node("Sigmoid", "h", "s"),
            node("Mul", "c s", "y"),
        ],
        W | {"e": weights(6, 6, 1, 1)},
    ),
    "max pool": ([CONV, node("MaxPool", "c", "y", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])], W),
    "max pool, ceil": ([CONV, node("MaxPool", "c", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], W),
    "average pool": ([CONV, node("AveragePool", "c", "y", kernel_shape=[2, 2], strides=[2, 2])], W),
    "average pool counts padding": (
        [CONV, node("AveragePool", "c", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        W,
    ),
    "average pool around padding": ([CONV, node("AveragePool", "c", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], W),
    "global max": ([CONV, node("GlobalMaxPool", "c", "y")], W),
    "mean without sides": ([CONV, node("ReduceMean", "c axes", "y", keepdims=0)], W | {"axes": np.array([-1, -2])}, 18),
    "maximum": ([CONV, node("ReduceMax", "c axes", "y", keepdims=1)], W | {"axes": np.array([2, 3])}, 18),
    "maximum without sides": ([CONV, node("ReduceMax", "c axes", "y", keepdims=0)], W | {"axes": np.array([2, 3])}, 18),
    "pads that are worked out": (
        [
            node("ConstantOfShape", "four", "z", value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
            node("Concat", "p z", "a", axis=0),
            node("Reshape", "a pairs", "b2"),
            node("Slice", "b2 back start first back", "t"),
            node("Transpose", "t", "u", perm=[1, 0]),
            node("Reshape", "u back", "f"),
            node("Cast", "f", "g", to=TensorProto.INT64),
            node("Pad", "input g", "q"),
            node("Conv", "q w b", "y"),
        ],
        W
        | {"four": np.array([4]), "p": np.array([2, 0, 0, 1]), "pairs": np.array([-1, 2]), "back": np.array([-1])}
        | {"start": np.array([-(2**63) + 1]), "first": np.array([0])},
    ),
    "pad into the convolution": (
        [node("Pad", "input p", "q"), node("Conv", "q w b", "y")],
        W | {"p": np.array([0, 0, 1, 0, 0, 0, 0, 2])},
    ),
    "normalised, padded, convolved": (
        [
            node("Sub", "input half", "s"),
            node("Div", "s half", "d"),
            node("Pad", "d p", "q"),
            node("Conv", "q w b", "y"),
        ],
        W | {"half": np.float32(0.5), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
    ),
    "pad channels": (
        [CONV, node("Pad", "c p v", "q"), node("Relu", "q", "y")],
        W | {"p": np.array([0, 1, 0, 0, 0, 2, 0, 1]), "v": np.float32(0.5)},
    ),
    "concat": ([CONV, node("Relu", "c", "r"), node("Concat", "r c input", "y", axis=1)], W),
    "concat rows": ([CONV, node("Relu", "c", "r"), node("Concat", "r c", "y", axis=2)], W),
    "batch norm before": (
        [node("BatchNormalization", "input g o m v", "n"), node("Relu", "n", "r"), node("Conv", "r w b", "y")],
        W | {"g": weights(4) + 2, "o": weights(4), "m": weights(4), "v": np.abs(weights(4)) + 0.5},
    ),
    "scale of the input by channel": (
        [node("Mul", "input s", "m"), node("Add", "m o", "y")],
        {"s": weights(4, 1, 1), "o": weights(1, 4, 1, 1)},
    ),
    "resize": (
        [
            CONV,
            node(
                "Resize",
                "c r s",
                "y",
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
        ],
        W | {"r": np.array([], np.float32), "s": np.array([1, 1, 2, 3], np.float32)},
    ),
    "dense": ([CONV, node("Flatten", "c", "f"), node("Gemm", "f m n", "y", transB=1, alpha=0.5, beta=2.0)], W | DENSE),
    "dropout, relu and identity between": (
        [
            CONV,
            node("Flatten", "c", "f"),
            node("Dropout", "f", "d"),
            node("Relu", "d", "r"),
            node("Identity", "r", "i"),
            node("MatMul", "i m", "a"),
            node("Add", "a n", "y"),
        ],
        W | {"m": DENSE["m"].T.copy(), "n": DENSE["n"]},
    ),
    "softmax": (
        [CONV, node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "f"), node("Softmax", "f", "y", axis=1)],
        W,
    ),
    "softmax over channels of an image": ([CONV, node("Softmax", "c", "y", axis=1)], W),
    "flat output in ONNX's order": ([CONV, node("Flatten", "c", "y")], W),
    "batch norm of a flat tensor": (
        [CONV, node("Flatten", "c", "f"), node("BatchNormalization", "f g o m v", "y")],
        W | {"g": weights(288), "o": weights(288), "m": weights(288), "v": np.abs(weights(288)) + 1},
    ),
    "flat tensors joined": (
        [CONV, node("Flatten", "c", "f"), node("Flatten", "input", "g"), node("Concat", "f g", "y", axis=1)],
        W,
    ),
    "reshape there and back": (
        [CONV, node("Reshape", "c t", "f"), node("Reshape", "f u", "i"), node("Conv", "i v", "y")],
        W | {"t": np.array([0, -1]), "u": np.array([-1, 3, 8, 12]), "v": weights(2, 3, 3, 3)},
    ),
    "transpose": (
        [
            CONV,
            node("Transpose", "c", "t", perm=[0, 2, 3, 1]),
            node("Relu", "t", "r"),
            node("Transpose", "r", "y", perm=[0, 3, 2, 1]),
        ],
        W,
    ),
    "shape arithmetic of older exporters": (
        [
            CONV,
            node("Shape", "c", "s"),
            node("Gather", "s zero", "n", axis=0),
            node("Unsqueeze", "n axes", "u"),
            node("Concat", "u minus", "t", axis=0),
            node("Reshape", "c t", "f"),
            node("Gemm", "f m n2", "y", transB=1),
        ],
        W | {"zero": np.array(0), "axes": np.array([0]), "minus": np.array([-1]), "m": DENSE["m"], "n2": DENSE["n"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_means_what_onnx_says(case, tmp_path):
    nodes, constants, *opset = CASES[case]
    check(model(nodes, IMAGE, constants, *opset), tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["plain", "separable", "pooled"])
def test_one_dimensional_networks_are_images_of_one_row(kind, tmp_path):
    first = {
        "plain": [node("Conv", "input w b", "c", pads=[1, 2], strides=[2], dilations=[2])],
        "separable": [node("Conv", "input d", "e", group=3, pads=[2, 0]), node("Conv", "e p b", "c")],
        "pooled": [
            node("MaxPool", "input", "e", kernel_shape=[2], strides=[2]),
            node("Conv", "e w b", "c", pads=[1, 1]),
        ],
    }[kind]
    rest = [node("Relu", "c", "r"), node("Flatten", "r", "f"), node("Gemm", "f m", "y")]
    length = {"plain": 8, "separable": 16, "pooled": 8}[kind]
    constants = {
        "w": weights(5, 3, 3),
        "d": weights(3, 1, 3),
        "p": weights(5, 3, 1),
        "b": weights(5),
        "m": weights(5 * length, 4),
    }
    graph = check(model(first + rest, (3, 16), constants), tmp_path / "m.onnx")
    assert graph.tensors["input"].shape == (1, 16, 3)
    mean = [*first, node("GlobalAveragePool", "c", "g"), node("Squeeze", "g axes", "y")]
    check(model(mean, (3, 16), constants | {"axes": np.array([2])}), tmp_path / "m.onnx")
    image = [node("Unsqueeze", "c rows", "u"), node("ReduceMean", "u sides", "g"), node("Squeeze", "g rows", "y")]
    more = constants | {"rows": np.array([-2]), "sides": np.array([-1, -2])}
    graph = check(model([*first, *image], (3, 16), more, 18), tmp_path / "m.onnx")
    assert Op.TRANSPOSE not in {one.op for one in graph.nodes}


def test_a_network_that_is_channels_last_outside_loses_its_transposes(tmp_path):
    nodes = [
        node("Transpose", "input", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w b", "c"),
        node("Transpose", "c", "y", perm=[0, 2, 3, 1]),
    ]
    graph = check(model(nodes, (8, 6, 4), W), tmp_path / "m.onnx", channels_last=True)
    assert [n.op for n in graph.nodes] == [Op.CONV]


def test_padding_and_normalisation_go_into_the_convolution(tmp_path):
    nodes, constants = CASES["normalised, padded, convolved"]
    onnx.save(model(nodes, IMAGE, constants), tmp_path / "m.onnx")
    (only,) = simplify(read_onnx(tmp_path / "m.onnx")).nodes
    assert only.window.pads == (1, 1, 1, 1)
    assert only.pad_value == pytest.approx(0.5), "zero after the normalisation is one half before it"


def _external(path: Path, **entries) -> Path:
    proto = model([CONV], IMAGE, W)
    weight = proto.graph.initializer[0]
    content = bytes(7) + weight.raw_data + b"more"
    (path.parent / "weights.bin").write_bytes(content)
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "7", "length": str(size), **entries}.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


def test_constants_beside_the_file_are_read(tmp_path):
    found = read_onnx(_external(tmp_path / "m.onnx")).nodes[0].constants["weight"]
    assert np.array_equal(found, W["w"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "/etc/hostname"}, "outside the model's folder"),
        ({"location": "link.bin"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"location": "none.bin"}, "not beside the model"),
        ({"location": "."}, "not beside the model"),
        ({"offset": "8000"}, "are not in"),
        ({"length": "99999"}, "are not in"),
        ({"offset": "-1"}, "not numbers"),
        ({"length": "9" * 40}, "not numbers"),
    ],
)
def test_constants_from_elsewhere_are_refused(entries, message, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4000))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(FedtinyError, match=message):
        read_onnx(_external(folder / "m.onnx", **entries))


@pytest.mark.parametrize("dynamo", [False, True])
def test_files_of_both_torch_exporters(need_extra, dynamo, tmp_path):
    need_extra("torch", "train")
    need_extra("onnxscript", "dev")
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        *(nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 6, 1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(6 * 16, 10), nn.Softmax(1)),
    ).eval()
    path, x = tmp_path / "m.onnx", torch.randn(1, 3, 16, 16)
    torch.onnx.export(net, (x,), str(path), input_names=["input"], dynamo=dynamo, opset_version=18 if dynamo else 17)
    graph = simplify(read_onnx(path))
    found = run_float(graph, last(x.numpy()).astype(np.float64))[graph.output]
    assert np.allclose(found, net(x).detach().numpy(), atol=1e-5)
    coarse = quantize(graph, calibrate(graph, Samples(last(torch.randn(50, 3, 16, 16).numpy()).astype(float), None)))
    inputs = to_int8(coarse, last(torch.randn(20, 3, 16, 16).numpy()))
    found = oracles.tflite_micro(write_tflite(coarse), inputs)
    assert np.array_equal(found, reference.run(coarse, inputs))
