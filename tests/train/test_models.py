"""The networks: published sizes, shapes of output, groups of layers, and that each can be trained and written."""

from __future__ import annotations

import json
import tomllib

import host_runtime
import numpy as np
import onnx
import pytest
import torch
from fedtiny_export.errors import UsageError
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.passes import simplify
from fedtiny_export.onnx_in.read import read_onnx
from fedtiny_export.quant.calibration import choose_ranges, read_ranges
from fedtiny_export.quant.quantize import quantize
from networks import samples
from onnx.reference import ReferenceEvaluator
from torch import nn

from fedtiny_train import models, rounds, trace
from fedtiny_train.config import apply_flags, settle, to_toml
from fedtiny_train.options import MODELS, WIDTHS, Config, ModelOptions

IMAGES = [name for name in MODELS if name not in ("auto", "mlp")]


def built(name, shape, classes, width=0):
    spec = models.choose(ModelOptions(name, width), shape, classes)
    return spec, models.build(spec)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def weights(model):
    return sum(w.numel() for w in models.prunable(model).values())


def normalised(model):
    return sum(norm.num_features for norm in models.norms(model).values())


# Keras counts the two running statistics of a batch norm as parameters, and MLPerf Tiny's networks have a bias
# in every convolution: three numbers a normalised channel that ours do not count or have.
KERAS = 3


@pytest.mark.parametrize(
    ("name", "shape", "classes", "width", "extra", "published", "macs"),
    [
        # The summaries of MLPerf Tiny's Keras models; weights and MACs are those of its .tflite files.
        ("resnet8", (3, 32, 32), 10, 16, KERAS, 78_666, 12_501_632),
        ("mobilenetv1", (3, 96, 96), 2, 8, KERAS, 221_794, 7_489_664),
        ("dscnn", (1, 49, 10), 12, 64, KERAS, 24_908, 2_656_768),
        # The ResNet-18 of FedTiny's authors.
        ("resnet18", (3, 32, 32), 10, 64, 0, 11_173_962, 555_422_720),
        # The usual VGG-11 for CIFAR-10, with its bias in every convolution. With the authors' classifier it has
        # 272.3 million MACs: 119,578,624 for 25088-4096-4096-10 in place of 512-10.
        ("vgg11", (3, 32, 32), 10, 64, 1, 9_231_114, 272_343_040 - 119_578_624 + 5_120),
        # The paper's network as torchvision counts it; strides do not change the parameters.
        ("mobilenetv2", (3, 32, 32), 1000, 32, 0, 3_504_872, None),
        # FedTiny's authors: 32-64-32/128. MACs by hand: 30*30*864 + 13*13*18432 + 4*4*18432 + 65536 + 1280.
        ("cnn", (3, 32, 32), 10, 32, 0, 104_810, 777_600 + 3_115_008 + 294_912 + 65_536 + 1_280),
    ],
)
def test_the_sizes_are_the_published_ones(name, shape, classes, width, extra, published, macs):
    spec, model = built(name, shape, classes, 0 if name != "resnet8" else width)
    assert spec.width == width
    assert parameters(model) + extra * normalised(model) == published
    if macs is not None:
        assert sum(trace.macs(model, shape).values()) == macs


def test_weights_of_the_mlperf_networks_are_those_of_their_tflite_files():
    found = [weights(built(*one)[1]) for one in (("mobilenetv1", (3, 96, 96), 2), ("dscnn", (1, 49, 10), 12))]
    assert found == [208_112, 22_016]


@pytest.mark.parametrize("name", IMAGES)
def test_macs_are_what_the_shapes_of_a_forward_pass_say(name):
    """Counted in another way: outputs times the inputs that one output reads."""
    shape = (2, 20, 24)
    _, model = built(name, shape, 3, 8)
    found = {}

    def count(path):
        def hook(module, given, output):
            if isinstance(module, nn.Conv2d):
                reads = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            else:
                reads = module.in_features
            found[f"{path}.weight"] = output[0].numel() * reads

        return hook

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count(path))
    model.eval()
    model(torch.zeros(1, *shape))
    assert trace.macs(model, shape) == found


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(1, 18, 18), (3, 19, 33), (3, 32, 32), (2, 21, 18)])
def test_any_image_size_gives_one_row_of_logits(name, shape):
    _, model = built(name, shape, 7, 8)
    model.eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "cnn"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 5, 2)])
def test_very_small_images(name, shape):
    _, model = built(name, shape, 3, 8)
    model.eval()
    with torch.no_grad():
        assert model(torch.zeros(1, *shape)).shape == (1, 3)


def test_an_image_that_the_cnn_would_shrink_to_nothing_is_refused():
    with pytest.raises(UsageError, match="at least 18x18, and these have 8x17; use resnet8"):
        built("cnn", (1, 8, 17), 3)


def test_mobilenetv2_rounds_as_the_paper_does():
    from fedtiny_train.models.mobilenetv2 import scaled

    # 0.75 of 24 is 18, and 16 takes away more than a tenth of it; 0.35 * 32 = 11.2 likewise; 0.25 * 96 = 24.
    assert [scaled(24, 24), scaled(32, 11.2), scaled(96, 8), scaled(16, 8), scaled(320, 32)] == [24, 16, 24, 8, 320]
    _, model = built("mobilenetv2", (3, 32, 32), 10, 16)
    assert model.stem.conv.out_channels == 16
    assert model.head.conv.out_channels == 1280


def test_strides_of_mobilenetv2_are_those_for_small_images():
    _, model = built("mobilenetv2", (3, 32, 32), 10, 8)
    model.eval()
    with torch.no_grad():
        sides = {name: v.shape[-1] for name, v in trace.walk(trace.steps(model), torch.zeros(1, 3, 32, 32))}
    found = [sides[name] for name in ("stem.relu", "stage1.0.project.bn", "stage2.1.add", "stage3.2.add")]
    assert found + [sides[name] for name in ("stage5.2.add", "stage7.0.project.bn")] == [32, 32, 32, 16, 8, 4]


def test_depthwise_weights_are_named_and_counted():
    _, model = built("dscnn", (1, 49, 10), 12)
    found = models.depthwise(model)
    assert found == {f"block{i}.depth.conv.weight" for i in range(1, 5)}
    assert found <= set(models.prunable(model))
    assert models.depthwise(built("resnet8", (1, 8, 8), 2)[1]) == frozenset()
    # One channel in, one out: that is a whole convolution, not a depthwise one.
    assert models.depthwise(nn.Sequential(nn.Conv2d(1, 1, 3))) == frozenset()
    assert len(models.depthwise(built("mobilenetv2", (3, 32, 32), 2)[1])) == 17
    assert len(models.depthwise(built("mobilenetv1", (3, 32, 32), 2)[1])) == 13


def tops(name, shape=(3, 32, 32), width=8):
    groups = models.blocks(built(name, shape, 4, width)[1])
    return [sorted({weight.split(".")[0] for weight in group}) for group in groups]


def test_blocks_follow_the_stages():
    assert tops("resnet18") == [["stage1", "stem"], ["stage2"], ["stage3"], ["fc", "stage4"]]
    assert tops("resnet8") == [["stack1", "stem"], ["stack2"], ["fc", "stack3"]]
    assert tops("vgg11") == [["conv1", "conv2", "conv3"], ["conv4", "conv5"], ["conv6", "conv7"], ["conv8", "fc"]]
    assert tops("dscnn") == [["block1", "stem"], ["block2"], ["block3"], ["block4", "fc"]]
    assert tops("mobilenetv1")[0] == ["stage1", "stem"]
    assert tops("mobilenetv1")[-1] == ["fc", "stage5"]
    assert tops("mobilenetv2")[-2:] == [["stage7"], ["fc", "head"]]
    assert tops("cnn") == [["conv1", "conv2", "conv3"], ["fc1", "fc2"]]
    assert tops("mlp", (9,)) == [["fc1"], ["fc2"], ["fc3"]]


@pytest.mark.parametrize("name", [*IMAGES, "mlp"])
def test_blocks_hold_every_weight_once_and_in_order(name):
    _, model = built(name, (9,) if name == "mlp" else (3, 32, 32), 4, 8)
    assert [weight for group in models.blocks(model) for weight in group] == list(models.prunable(model))


def test_blocks_of_a_part_with_everything_in_it_are_pairs():
    inner = nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)])
    assert [len(g) for g in models.blocks(nn.Sequential(inner))] == [2, 2, 2]
    assert [len(g) for g in models.blocks(nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))))] == [1, 1]


def test_the_width_that_a_network_has_of_its_own_is_written_down():
    assert settle(Config()).model.width == 8
    for name in MODELS:
        made = settle(apply_flags(Config(), {"model": name}))
        assert tomllib.loads(to_toml(made))["model"]["width"] == WIDTHS[name] > 0
    assert settle(apply_flags(Config(), {"model": "vgg11", "width": 5})).model.width == 5
    # `auto` may become either; what was settled must hold for both.
    assert WIDTHS["auto"] == WIDTHS["resnet8"] == WIDTHS["mlp"]


def random_npz(path, shape, classes=3, count=48):
    generator = np.random.default_rng(0)
    y = np.arange(count) % classes
    x = generator.normal(size=(count, *shape)) + y.reshape(-1, *[1] * len(shape))
    np.savez(path, x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    return path


SHORT = {
    "clients": 2, "partition": "iid", "public": "holdout:8", "rounds": 2, "local_epochs": 1, "batch": 8, "density": 0.5,
    "depthwise_dense": False,
    "pool": 2, "pretrain_epochs": 3, "tune_epochs": 3, "adaptation_passes": 1, "adjust_every": 1, "adjust_until": 2,
    "lr": 0.01,
}  # fmt: skip
CASES = [
    ("resnet8", (9, 9), 4),
    ("mlp", (6,), 2),
    ("cnn", (18, 19, 2), 4),
    ("dscnn", (13, 10), 8),
    pytest.param("mobilenetv1", (32, 32, 3), 8, marks=pytest.mark.slow),
    pytest.param("mobilenetv2", (9, 9, 3), 4, marks=pytest.mark.slow),
    pytest.param("resnet18", (9, 9), 4, marks=pytest.mark.slow),
    pytest.param("vgg11", (9, 9), 4, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "shape", "width"), CASES)
def test_every_network_is_trained_pruned_and_written(tmp_path, name, shape, width):
    path = random_npz(tmp_path / "random.npz", shape)
    config = settle(apply_flags(Config(), {**SHORT, "data": str(path), "model": name, "width": width}))
    summary = rounds.carry_out(config, tmp_path / "run", lambda line: None)
    assert (summary["model"], summary["rounds"], summary["refused"]) == (name, 2, 0)
    assert abs(summary["density"] - 0.5) < 1 / summary["weights"] + 1e-9
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(np.isfinite(line["loss"]) for line in lines)
    proto = onnx.load(tmp_path / "run/model.onnx")
    with np.load(tmp_path / "run/samples.npz") as kept:
        x = kept["x"].astype(np.float32)
    x = x if x.ndim == 2 else x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    logits = ReferenceEvaluator(proto).run(None, {"input": x})[0]
    assert logits.shape == (12, 3)
    assert np.isfinite(logits).all()
    ranges = json.loads((tmp_path / "run/ranges.json").read_text())
    assert list(ranges) == ["input", *(node.output[0] for node in proto.graph.node)]
    the_c_runtime_agrees(tmp_path / "run")


def the_c_runtime_agrees(run):
    """No network of ours has an operator that it lacks."""
    network = simplify(read_onnx(run / "model.onnx"))
    graph = quantize(network, choose_ranges(network, read_ranges(run / "ranges.json")))
    inputs = samples(graph, 8)
    expected = reference.run(graph, inputs)
    assert len(np.unique(expected)) > 4
    status, _, found = host_runtime.run(write_ftm(graph, {}).data, inputs)
    assert (status, found) == (0, expected.tobytes())
