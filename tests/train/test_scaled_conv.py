"""The styles of a network: normalised weights, batch norm by running statistics, activations that are forgotten."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from fedtiny_export.errors import FedtinyError, UsageError
from onnx.reference import ReferenceEvaluator
from torch import nn

from fedtiny_train import client, models, rounds
from fedtiny_train.client import LocalSpec, fit
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.data import Shard
from fedtiny_train.models.layers import Add, SameConv2d, pads
from fedtiny_train.models.norms import RunningNorm1d, RunningNorm2d, normalised
from fedtiny_train.models.sparse import SignReLU, SignReLU6, SparseConv2d, SparseLinear, largest
from fedtiny_train.models.styles import restyle
from fedtiny_train.options import Config

SCALED = models.ModelSpec("resnet8", (1, 8, 8), 4, 4, "scaled")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


# --- normalised weights


def test_normalised_weights_by_hand():
    weight = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.001, -0.001, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    found = normalised(weight, torch.ones(3, 4, dtype=torch.bool), tensor(2.0, 1.0, 1.0))
    # mean 3, variance 3.5, times 4 is 14
    torch.testing.assert_close(found[0], 2 * tensor(-2, -1, 0, 3) / math.sqrt(14))
    # variance 5e-7, times 4 is 2e-6: under the least, so divided by 0.01
    torch.testing.assert_close(found[1], tensor(0.1, -0.1, 0, 0))
    assert found[2].tolist() == [0, 0, 0, 0]


def test_zeros_count_in_mean_and_variance_and_stay_zero():
    weight = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    found = normalised(weight, torch.tensor([[True, True, True, False]]), tensor(1.0))
    # mean 1.5, variance 1.25, times 4 is 5
    torch.testing.assert_close(found, torch.tensor([[-0.5, 0.5, 1.5, 0.0]]) / math.sqrt(5))
    assert found[0, 3] == 0
    # The same weights where the last position lives: a live zero is a weight like any other.
    assert normalised(weight, torch.ones(1, 4, dtype=torch.bool), tensor(1.0))[0, 3] == pytest.approx(-1.5 / 5**0.5)


def test_gradients_of_live_weights_are_exact_and_pruned_ones_tell_what_growing_gains():
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(3, 2, 2, 2, generator=generator) < 0.6
    weight = torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64) * mask
    gain = torch.rand(3, generator=generator, dtype=torch.float64) + 0.5
    outer = torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64)

    def loss(w, g):
        mean = w.mean((1, 2, 3), keepdim=True)
        variance = w.var((1, 2, 3), unbiased=False, keepdim=True)
        return (mask * (w - mean) / (variance * 8).clamp(min=1e-4).sqrt() * g.view(3, 1, 1, 1) * outer).sum()

    ours = [t.clone().requires_grad_() for t in (weight, gain)]
    plain = [t.clone().requires_grad_() for t in (weight, gain)]
    (normalised(ours[0], mask, ours[1]) * outer).sum().backward()
    loss(*plain).backward()
    torch.testing.assert_close(ours[1].grad, plain[1].grad)
    torch.testing.assert_close(ours[0].grad[mask], plain[0].grad[mask])
    scale = gain / (weight.var((1, 2, 3), unbiased=False) * 8).sqrt()
    direct = (ours[0].grad - plain[0].grad)[~mask]
    torch.testing.assert_close(direct, (outer * scale.view(3, 1, 1, 1))[~mask])


def test_scaled_takes_every_batch_norm_out_and_normalises_what_was_before():
    model = models.build(SCALED)
    assert models.norms(model) == {}
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 9
    assert all(type(m) is SparseConv2d and m.gain.tolist() == [1.0] * m.out_channels for m in convolutions)
    assert type(model.fc) is nn.Linear  # nothing normalised it before
    assert [m.bias is not None for m in convolutions].count(True) == 2  # the shortcuts, as before
    assert [type(m) for m in models.build(models.ModelSpec("mlp", (5,), 3, 2, "scaled")).children()][2:7] == [
        SparseLinear, nn.ReLU, SparseLinear, nn.ReLU, nn.Linear
    ]  # fmt: skip
    names = {n for n in models.read(models.build(models.ModelSpec("resnet8", (1, 8, 8), 4, 4))) if ".bn" not in n}
    assert {n for n in models.read(model) if not n.endswith("gain")} == names
    assert set(models.prunable(model)) == {n for n in names if n.endswith("weight")}


def test_a_filter_of_one_weight_stays_as_it_is():
    model = restyle(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)), "scaled", 0)
    assert [type(m) for m in model.children()] == [nn.Conv2d, SparseConv2d]


def test_a_batch_norm_that_stands_elsewhere_cannot_be_taken_out():
    with pytest.raises(FedtinyError, match="norm scaled normalises the weights before a batch norm, and 0 does"):
        restyle(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)), "scaled", 0)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.add = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), Add()

        def forward(self, x):
            y = self.conv(x)
            return self.add(self.bn(y), y)

    with pytest.raises(FedtinyError, match="bn does not stand alone behind a convolution"):
        restyle(Shared(), "scaled", 0)


def test_masks_are_set_by_name_and_are_no_part_of_the_state():
    model = models.shared(SCALED)
    mask = np.zeros((8, 4, 3, 3), np.bool_)
    mask[:, 0] = True
    models.load(model, models.initial_state(SCALED, 0), {"stack2.conv1.weight": mask})
    layer = model.stack2.conv1
    assert torch.equal(layer.mask, torch.from_numpy(mask))
    assert model.stack2.conv2.mask.all()
    assert not any("mask" in name for name in models.read(model))
    x = torch.zeros(1, 4, 8, 8)
    x[:, 1:] = 1  # what only pruned positions see
    assert not layer(x).any()
    models.set_masks(model, {})
    assert layer(x).any()


def shard(count=6, label=None, shape=(1, 8, 8)):
    generator = np.random.default_rng(3)
    y = np.full(count, label) if label is not None else np.arange(count) % 4
    return Shard(0, generator.normal(size=(count, *shape)).astype(np.float32), y.astype(np.int64))


def trained(spec, data, masks=None, steps=4, numbers=None):
    model = models.shared(spec)
    state = models.initial_state(spec, 0)
    masks = masks or {}
    state |= {name: state[name] * mask for name, mask in masks.items()}
    models.load(model, state)
    schedule = [np.arange(len(data.y))] * steps
    loss, _, habits = fit(model, data, masks, schedule, 0.05, LocalSpec(spec, 0, 32, 1, 0.9, 0.0), numbers)
    return loss, models.read(model), [habit.results() for habit in habits]


def test_fit_trains_under_its_own_masks_whatever_was_set_before():
    mask = {"stack2.conv1.weight": np.random.default_rng(0).random((8, 4, 3, 3)) < 0.5}
    models.set_masks(models.shared(SCALED), {})
    one, state, (sent,) = trained(SCALED, shard(), mask, numbers={"top/stack2.conv1.weight": 120.0})
    models.set_masks(models.shared(SCALED), {"stem.conv.weight": np.zeros((4, 1, 3, 3), np.bool_)})
    other, *_ = trained(SCALED, shard(), mask)
    assert one == other
    assert not state["stack2.conv1.weight"][~mask["stack2.conv1.weight"]].any()
    # A method that grows weights finds gradients at the pruned positions.
    assert np.count_nonzero(sent["top/stack2.conv1.weight"].values) > 100
    assert np.abs(state["stack1.conv1.gain"] - 1).max() > 0  # learned


# --- activations that are forgotten


def test_a_convolution_keeps_the_largest_half_of_its_input_by_hand():
    conv = nn.Conv2d(1, 1, 1, bias=True)
    layer = SparseConv2d(conv, scaled=False, drop=0.5)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(1.0)
    x = torch.tensor([[[[1.0, -4.0], [2.0, 3.0]]]], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [[[[3.0, -7.0], [5.0, 7.0]]]]
    y.backward(torch.tensor([[[[10.0, 1.0], [10.0, 1.0]]]]))
    assert layer.weight.grad.item() == -4 + 3  # exact would be 27
    assert layer.bias.grad.item() == 22
    assert x.grad.tolist() == [[[[20.0, 2.0], [20.0, 2.0]]]]


def test_a_linear_layer_keeps_the_largest_over_the_whole_batch_by_hand():
    layer = SparseLinear(nn.Linear(2, 1), scaled=False, drop=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 3.0]]))
        layer.bias.zero_()
    x = torch.tensor([[5.0, -6.0], [1.0, 2.0]], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [[-13.0], [7.0]]
    y.sum().backward()
    assert layer.weight.grad.tolist() == [[5.0, -6.0]]  # exact would be [6, -4]: the second sample is forgotten
    assert x.grad.tolist() == [[1.0, 3.0], [1.0, 3.0]]
    assert layer.bias.grad.tolist() == [2.0]


def test_both_together_by_hand():
    """Weights 0 0 3: mean 1, variance 2, times 3 is 6. Of the inputs 4 1 2 only the 4 is kept."""
    layer = SparseConv2d(nn.Conv2d(3, 1, 1, bias=False), scaled=True, drop=2 / 3)
    with torch.no_grad():
        layer.weight.copy_(tensor(0, 0, 3).view(1, 3, 1, 1))
    y = layer(tensor(4, 1, 2).view(1, 3, 1, 1))
    scale = 1 / math.sqrt(6)
    assert y.item() == pytest.approx(scale * (-4 - 1 + 4))
    y.backward()
    # G = 4 0 0: scale * (G - mean G - (w - mean) / 6 * sum G (w - mean)), and the gain's is sum G (w - mean) * scale
    torch.testing.assert_close(layer.weight.grad.flatten(), scale * tensor(2, -2, 0), atol=1e-6, rtol=1e-6)
    assert layer.gain.grad.item() == pytest.approx(-4 * scale)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 6, 3, padding="same", groups=2),
        SameConv2d(4, 6, 3, 2, (8, 7)),
    ],
    ids=lambda c: str(c),
)
def test_what_forgets_next_to_nothing_is_the_plain_convolution(conv, last):
    layer = SparseConv2d(conv, scaled=False, drop=1e-9)
    layer.load_state_dict(conv.state_dict())
    assert layer.share < 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 7, generator=generator)
    x = x.to(memory_format=torch.channels_last) if last else x
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, wanted = layer(a), conv(b)
    torch.testing.assert_close(found, wanted)
    outer = torch.randn(wanted.shape, generator=generator)
    conv.zero_grad()
    found.backward(outer)
    wanted.backward(outer)
    torch.testing.assert_close(a.grad, b.grad)
    for one, other in zip(layer.parameters(), conv.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_pads_of_a_plain_convolution():
    assert pads(nn.Conv2d(1, 1, (4, 3), padding="same", dilation=(1, 2))) == (2, 2, 1, 2)
    assert pads(nn.Conv2d(1, 1, 3, padding=(1, 2))) == (2, 2, 1, 1)
    assert pads(nn.Conv2d(1, 1, 3, padding="valid")) == (0, 0, 0, 0)


@pytest.mark.parametrize("last", [False, True])
def test_the_largest_are_found_and_positions_are_narrow(last):
    x = torch.arange(-30.0, 30.0).reshape(1, 3, 4, 5)
    x = x.to(memory_format=torch.channels_last) if last else x
    values, places = largest(x, 0.1)
    assert sorted(values.tolist()) == [-30, -29, -28, -27, -26, 29] or sorted(values.abs().tolist()) == [
        27, 28, 28, 29, 29, 30
    ]  # fmt: skip
    flat = (x.permute(0, 2, 3, 1) if last else x).reshape(-1)
    assert torch.equal(flat[places.long()], values)
    assert places.dtype == torch.int16
    assert largest(torch.zeros(1 << 15), 0.1)[1].dtype == torch.int16
    assert largest(torch.zeros((1 << 15) + 1), 0.1)[1].dtype == torch.int32
    assert [len(largest(torch.ones(10), share)[0]) for share in (0.0, 0.3, 0.31, 1.0)] == [1, 3, 4, 10]


def kept_by(layer, x):
    """What a layer keeps for backward beside its own parameters, in bytes."""
    own = {p.data_ptr() for p in layer.parameters()}
    sizes = []

    def keep(t):
        if t.data_ptr() not in own:
            sizes.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    return sum(sizes)


def test_saved_bytes_by_hand():
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    conv = nn.Conv2d(2, 3, 3, padding=1)
    assert kept_by(conv, x) == 256 * 4
    assert kept_by(SparseConv2d(conv, False, 0.75), x) == 64 * (4 + 2)
    big = torch.randn(3, 2, 80, 80)
    assert kept_by(SparseConv2d(conv, False, 0.75), big) == 9600 * (4 + 4)
    assert kept_by(nn.ReLU(), x.clone().requires_grad_()) == 256 * 4
    assert kept_by(SignReLU(), x.clone().requires_grad_()) == 256 // 8
    assert kept_by(SignReLU(), torch.ones(9, requires_grad=True)) == 2
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(192, 2))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    # The input, and the ReLU's output once, though the linear layer keeps a view of it as well.
    assert models.saved_bytes(model, x) == 256 * 4 + 2 * 192 * 4
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    norm = nn.Sequential(nn.BatchNorm2d(2), conv)
    models.saved_bytes(norm, x)
    assert norm[0].running_mean.tolist() == [0, 0]


@pytest.mark.parametrize("kinds", [(nn.ReLU(), SignReLU()), (nn.ReLU6(), SignReLU6())], ids=["relu", "relu6"])
@pytest.mark.parametrize("last", [False, True])
def test_rectifiers_that_keep_bits_are_exact(kinds, last):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 3, generator=generator) * 6
    x[0, 0, 0] = tensor(0.0, 6.0, -0.0)
    x = x.to(memory_format=torch.channels_last) if last else x
    outer = torch.randn(x.shape, generator=generator)
    found = []
    for kind in kinds:
        one = x.clone().requires_grad_()
        y = kind(one)
        y.backward(outer)
        found.append((y, one.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2"])
def test_both_styles_are_really_active_in_a_whole_network(name):
    def make(*style):
        spec = models.ModelSpec(name, (3, 16, 16), 4, 8, *style)
        model = models.build(spec)
        models.load(model, models.initial_state(spec, 0))
        return model

    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled, both = make("scaled", 0.0), make("scaled", 0.75)
    layers = [m for m in both.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(m, SparseConv2d | SparseLinear) and m.share == 0.25 for m in layers)
    assert all(m.gain is not None for m in layers if isinstance(m, nn.Conv2d))
    assert models.saved_bytes(both, x) < 0.75 * models.saved_bytes(scaled, x)
    assert models.saved_bytes(make("batch", 0.75), x) < models.saved_bytes(make("batch", 0.0), x)
    a, b = scaled(x), both(x)
    assert torch.equal(a, b)  # forward is exact
    a.square().sum().backward()
    b.square().sum().backward()
    differ = [not torch.equal(p.grad, q.grad) for p, q in zip(scaled.parameters(), both.parameters(), strict=True)]
    assert sum(differ) >= len(layers)
    # and the normalisation is in effect: weights of twice the size give the same
    with torch.no_grad():
        both.stem.conv.weight.mul_(2)
    torch.testing.assert_close(both(x), b)


# --- batch norm by running statistics


def test_running_norm_by_hand():
    norm = RunningNorm1d(1, eps=0.0)
    found = norm(torch.tensor([[1.0], [3.0]]))
    # mean 0.1 * 2; variance 0.9 * 1 + 0.1 * mean of 0.8^2 and 2.8^2
    assert norm.running_mean.item() == pytest.approx(0.2)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.1 * (0.64 + 7.84) / 2)
    torch.testing.assert_close(found[0], (tensor(1.0) - 0.2) / math.sqrt(1.324))
    norm.eval()
    assert torch.equal(norm(torch.tensor([[1.0], [3.0]])), found)
    image = RunningNorm2d(2)
    image(torch.stack([torch.full((3, 2), 5.0), torch.zeros(3, 2)])[None])
    torch.testing.assert_close(image.running_mean, tensor(0.5, 0.0))
    torch.testing.assert_close(image.running_var, tensor(0.9 + 0.1 * 4.5**2, 0.9))


def test_statistics_get_no_gradient():
    norm = RunningNorm2d(1)
    x = torch.randn(2, 1, 3, 3, requires_grad=True)
    norm(x).sum().backward()
    scale = 1 / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(x.grad, scale.expand(2, 1, 3, 3) * torch.ones(2, 1, 3, 3))


STYLES = [("running", 0.0), ("running", 0.5), ("scaled", 0.0), ("scaled", 0.5)]


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("name", ["resnet8", "mlp", "dscnn"])
@pytest.mark.parametrize(("count", "label"), [(1, 2), (6, 1)], ids=["one sample", "one class"])
def test_a_poor_client_stays_finite(style, name, count, label):
    shape = (9,) if name == "mlp" else (1, 8, 8)
    spec = models.ModelSpec(name, shape, 4, 4, *style)
    loss, state, _ = trained(spec, shard(count, label, shape), steps=20)
    assert math.isfinite(loss)
    assert all(np.isfinite(a).all() for a in state.values())
    x = np.random.default_rng(9).normal(size=(5, *shape)).astype(np.float32)
    model = models.shared(spec)
    model.eval()
    with torch.no_grad():
        assert model(torch.from_numpy(x)).isfinite().all()
    if style[0] == "running":
        first = next(name for name in state if name.endswith("running_mean"))
        assert state[first].any()  # renewed, even by a single sample


def test_a_batch_norm_needs_two_samples_and_the_others_do_not():
    for norm, needs in (("batch", True), ("running", False), ("scaled", False)):
        spec = models.ModelSpec("resnet8", (1, 8, 8), 4, 4, norm)
        assert models.needs_two_samples(models.build(spec)) == needs
        assert client.renews(models.build(spec), shard(1)) != needs
        assert client.renews(models.build(spec), shard(2))


def test_batches_of_one():
    generator = np.random.default_rng(0)
    assert [len(b) for b in client.batches(3, 1, generator)] == [1, 1, 1]
    assert [len(b) for b in client.batches(7, 2, generator)] == [2, 2, 3]
    with pytest.raises(UsageError, match="batch norm needs two samples; use --norm running or scaled"):
        apply_flags(Config(), {"batch": 1})
    assert apply_flags(Config(), {"batch": 1, "norm": "running"}).train.batch == 1


# --- whole runs


def npz(path, shape=(8, 8)):
    generator = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = generator.normal(size=(60, *shape)) + y.reshape(-1, *[1] * len(shape))
    np.savez(path, x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:])
    return path


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize(("shape", "batch"), [((8, 8), 1), ((7,), 8)], ids=["images", "vectors"])
def test_a_run_exports_what_it_measured(tmp_path, style, shape, batch):
    flags = {
        "data": str(npz(tmp_path / "x.npz", shape)), "clients": 3, "partition": "shards:1", "public": "holdout:9",
        "rounds": 3, "local_epochs": 1, "batch": batch, "density": 0.4, "width": 4, "pool": 2, "lr": 0.02,
        "adjust_every": 1, "adjust_until": 3, "norm": style[0], "activation_pruning": style[1],
    }  # fmt: skip
    summary = rounds.carry_out(settle(apply_flags(Config(), flags)), tmp_path / "run", lambda line: None)
    assert summary["refused"] == 0
    proto = onnx.load(tmp_path / "run/model.onnx")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert not any("gain" in name or "mask" in name for name in held)
    if style[0] == "scaled":
        assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert sum(np.count_nonzero(held[layer["name"]]) for layer in summary["layers"]) == summary["nonzero"]
    assert summary["nonzero"] <= 0.4 * summary["weights"]
    with np.load(tmp_path / "run/samples.npz") as samples:
        x, y = samples["x"].astype(np.float32), samples["y"]
    logits = ReferenceEvaluator(proto).run(None, {"input": x[:, None] if x.ndim == 3 else x})[0]
    assert (logits.argmax(1) == y).mean() == summary["accuracy"]
    loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(y)).item()
    assert loss == pytest.approx(summary["loss"], rel=1e-3, abs=1e-5)
    ranges = json.loads((tmp_path / "run/ranges.json").read_text())
    assert list(ranges) == ["input", *(node.output[0] for node in proto.graph.node)]


def test_styles_do_not_depend_on_workers_or_stops(tools, tmp_path, monkeypatch):
    train, small, contents, flags = tools
    style = ["--norm", "scaled", "--activation-pruning", "0.6", "--rounds", "2"]
    one = contents(small(tmp_path / "one", *style))
    assert contents(small(tmp_path / "two", *style, "--workers", "2")) == one
    note = rounds._note

    def note_and_die(folder, lines, number, *rest):
        note(folder, lines, number, *rest)
        if number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_note", note_and_die)
    assert train(*flags, *style, "--out", tmp_path / "stopped") == 130
    monkeypatch.undo()
    assert train("--resume", tmp_path / "stopped") == 0
    assert contents(tmp_path / "stopped") == one


@pytest.mark.parametrize("name", ["resnet8", "mlp"])
def test_pruned_activations_go_with_bf16(name):
    shape = (3, 8, 8) if name == "resnet8" else (5,)
    model = models.build(models.ModelSpec(name, shape, 4, 4, "scaled", 0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(6, *shape)).float().square().mean()
    loss.backward()
    weights = models.prunable(model).values()
    assert all(w.grad is not None and w.grad.dtype == torch.float32 and w.grad.isfinite().all() for w in weights)
    assert any(w.grad.any() for w in weights)
