"""The ONNX file: names, operators, determinism, and the same function as the network in torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from fedtiny_train import calibrate, models, onnx_out, trace
from fedtiny_train.models.layers import same_pads

RESNET = models.ModelSpec("resnet8", (1, 8, 8), 10, 8)
SPECS = [
    RESNET,
    models.ModelSpec("resnet8", (3, 9, 12), 4, 4),
    models.ModelSpec("resnet8", (3, 32, 32), 10, 16),
    models.ModelSpec("mlp", (13,), 3, 4),
    models.ModelSpec("resnet18", (3, 9, 12), 4, 4),
    models.ModelSpec("vgg11", (1, 19, 32), 4, 4),
    models.ModelSpec("mobilenetv1", (3, 17, 32), 2, 4),
    models.ModelSpec("mobilenetv2", (3, 9, 12), 4, 4),
    models.ModelSpec("dscnn", (1, 49, 10), 12, 8),
    models.ModelSpec("cnn", (3, 19, 18), 4, 4),
    models.ModelSpec("resnet8", (3, 9, 12), 4, 4, "running", 0.5),
    models.ModelSpec("resnet8", (3, 9, 12), 4, 4, "scaled"),
    models.ModelSpec("mobilenetv2", (3, 9, 12), 4, 4, "scaled", 0.5),
    models.ModelSpec("mlp", (13,), 3, 4, "scaled", 0.5),
]


def lively(spec):
    """A state in which no parameter has its neutral value."""
    generator = np.random.default_rng(5)
    state = models.initial_state(spec, 1)
    for name, array in state.items():
        if "running_var" in name or name == "scale.inv_std":
            state[name] = generator.uniform(0.5, 2, array.shape).astype(np.float32)
        elif array.ndim < 2:
            state[name] = generator.normal(size=array.shape).astype(np.float32)
    return state


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.name}{s.shape}{s.norm}")
def test_onnx_computes_what_torch_computes(spec):
    state = lively(spec)
    generator = np.random.default_rng(2)
    masks = {name: generator.random(w.shape) < 0.6 for name, w in models.prunable(models.build(spec)).items()}
    state |= {name: state[name] * mask for name, mask in masks.items()}
    proto = onnx.load_from_string(onnx_out.to_onnx(spec, state, masks))
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(0).normal(3, 5, (4, *spec.shape)).astype(np.float32)
    # Every tensor, not just the last: a swapped padding would show where it happens.
    names = [node.output[0] for node in proto.graph.node]
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    found = dict(zip(names, ReferenceEvaluator(probe).run(None, {"input": x}), strict=True))
    model = models.shared(spec)
    models.load(model, state, masks)
    model.eval()
    with torch.no_grad():
        for name, value in trace.walk(trace.steps(model), torch.from_numpy(x)):
            if name != "input":
                # Sums in another order: a few units of float32 in the last place of the largest term.
                np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(model(torch.from_numpy(x)).numpy(), value.numpy())


def test_names_and_operators():
    proto = onnx.load_from_string(onnx_out.to_onnx(RESNET, lively(RESNET)))
    assert (proto.ir_version, proto.opset_import[0].version) == (8, 17)
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == ["N", 1, 8, 8]
    assert (proto.graph.input[0].name, proto.graph.output[0].name) == ("input", "logits")
    state = models.read(models.build(RESNET))
    assert {t.name for t in proto.graph.initializer} == set(state)
    assert [node.name for node in proto.graph.node][:6] == [
        "center",
        "scale",
        "stem.conv",
        "stem.bn",
        "stem.relu",
        "stack1.conv1",
    ]
    assert all(node.output[0] == node.name for node in proto.graph.node[:-1])
    assert {node.op_type for node in proto.graph.node} == {
        "Sub", "Mul", "Conv", "BatchNormalization", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"
    }  # fmt: skip
    pads = {n.name: list(a.ints) for n in proto.graph.node for a in n.attribute if a.name == "pads"}
    assert pads["stack1.conv1"] == [1, 1, 1, 1]
    assert pads["stack2.conv1"] == [0, 0, 1, 1]
    assert pads["stack2.shortcut"] == [0, 0, 0, 0]


def test_the_same_state_gives_the_same_bytes_without_a_path_in_them():
    state = lively(RESNET)
    data = onnx_out.to_onnx(RESNET, state)
    assert data == onnx_out.to_onnx(RESNET, {name: state[name] for name in sorted(state)})
    assert b".py" not in data
    assert b"/home" not in data


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [(8, 3, 1, (1, 1)), (8, 3, 2, (0, 1)), (9, 3, 2, (1, 1)), (8, 1, 2, (0, 0)), (1, 3, 2, (1, 1)), (7, 4, 3, (1, 2))],
)
def test_same_padding_is_tensorflows(size, kernel, stride, pads):
    assert same_pads(size, kernel, stride) == pads


def test_width_16_is_the_network_of_mlperf_tiny():
    sizes = {name: w.numel() for name, w in models.prunable(models.build(SPECS[2])).items()}
    assert sum(sizes.values()) == 432 + 4608 + 13824 + 512 + 55296 + 2048 + 640
    # 12.5 million multiply-accumulates, as published for ic01
    assert sum(trace.macs(models.build(SPECS[2]), (3, 32, 32)).values()) == 12_501_632


def test_ranges_and_histograms_by_hand():
    values = torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0])
    counts = calibrate.histogram(values, 0.0, 1.0)
    assert (counts[0], counts[25], counts[128], counts[255]) == (1, 1, 1, 2)
    assert calibrate.histogram(torch.full((7,), 3.0), 3.0, 3.0)[0] == 7
    assert calibrate.histogram(torch.tensor([-5.0, 5.0]), 0.0, 1.0)[[0, 255]].tolist() == [1, 1]
    pooled = calibrate.pool_ranges([np.array([[0.0, 2.0]]), np.array([[-1.0, 1.0]])])
    assert pooled.tolist() == [[-1.0, 2.0]]


def test_recalibrated_statistics_are_those_of_all_data_together():
    """Clients' pooled moments, pass after pass, end at the moments of the union: no trace of the split is left."""
    model, x = models.shared(RESNET), np.random.default_rng(0).normal(3, 5, (40, 1, 8, 8)).astype(np.float32)

    def converge(parts):
        models.load(model, lively(RESNET))
        for _ in models.norms(model):
            sent = [(len(part), calibrate.norm_moments(model, part)) for part in parts]
            models.load(model, calibrate.pool_moments(sent))
        return models.read(model)

    whole, split = converge([x]), converge([x[:7], x[7:]])
    for name in whole:
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # With these, what leaves each normalisation (before weight and bias) has mean 0 and variance 1.
    model.eval()
    with torch.no_grad():
        values = dict(trace.walk(trace.steps(model), torch.from_numpy(x)))
    norm = models.norms(model)["stack3.bn2"]
    out = (values["stack3.bn2"] - norm.bias[:, None, None]) / norm.weight[:, None, None]
    assert out.mean((0, 2, 3)).abs().max() < 1e-3
    assert (out.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-2
