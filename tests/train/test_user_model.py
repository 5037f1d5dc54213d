"""A network of the user's own: what works, what every tensor is then called, and one clear line for what does not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fedtiny_export.errors import FedtinyError, UsageError
from onnx.reference import ReferenceEvaluator
from torch import nn

from fedtiny_train import client, data, models, onnx_out, rounds, trace, wire
from fedtiny_train.client import LocalSpec
from fedtiny_train.config import apply_flags, settle, to_toml
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order
from fedtiny_train.options import Config, ModelOptions
from fedtiny_train.session import opened
from fedtiny_train.wire import Message

ROOT = Path(__file__).parents[2]
PREFIX = """
import operator
import torch
import torch.nn.functional as F
from torch import nn


def seq(*layers):
    return nn.Sequential(*layers)


def good(classes):
    return nn.Flatten(), nn.Linear(144, classes)


def wrap(forward, **layers):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x):
            return forward(self, x)

    return Net()
"""


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Write a module into the current folder; return its network's name. Each has a name of its own."""
    monkeypatch.chdir(tmp_path)
    written = []

    def write(body: str, function: str = "build") -> str:
        name = f"own_{tmp_path.name}_{len(written)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(PREFIX + textwrap.dedent(body))
        written.append(name)
        return f"{name}:{function}"

    yield write
    for name in written:
        sys.modules.pop(name, None)


def made(name, shape=(2, 9, 8), classes=3, **style):
    spec = models.choose(ModelOptions(name, **style), shape, classes)
    return spec, models.build(spec)


EVERYTHING = """
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, padding="same", groups=channels)
        self.point = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x):
        return x + self.act(self.bn(self.point(self.depth(x))))


class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.last = nn.Linear(6, classes)  # defined first, used last
        self.conv = nn.Conv2d(shape[0], 8, (3, 2), stride=(2, 1), padding=(1, 0))
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.block = Block(8)
        self.pool = nn.MaxPool2d(2, stride=1, padding=1)
        self.average = nn.AvgPool2d((2, 3), stride=(2, 1), padding=1)
        self.wide = nn.Conv2d(8, 6, 3, padding=(2, 1), dilation=(2, 1), groups=2)
        self.fc = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Identity())

    def forward(self, image):
        x = self.relu(self.norm(self.conv(image)))
        x = self.block(x)
        x = F.relu6(self.wide(self.average(self.pool(x))))
        short = x
        x = F.max_pool2d(self.relu(F.avg_pool2d(torch.relu(x), 3, 1, 1)), 3, 1, 1)
        x = x.add(short)
        x += short
        x = F.dropout(x, 0.2, self.training)
        means = torch.mean(x, dim=(-1, -2))
        other = F.adaptive_avg_pool2d(x, (1, 1))
        other = other.view(other.size(0), -1) + other.flatten(1)
        other = other + x.mean((2, 3), keepdim=True).reshape(x.shape[0], -1)
        return self.last(self.fc(means + other).relu())


def build(shape, classes):
    return Net(shape, classes)
"""


def test_everything_that_works_together(network):
    spec, model = made(network(EVERYTHING))
    names = [step.output for step in trace.steps(model)]
    assert names == [
        "center", "scale", "conv", "norm", "relu", "block.depth", "block.point", "block.bn", "block.act", "add",
        "pool", "average", "wide", "relu6", "relu_1", "avg_pool2d", "relu_2", "max_pool2d", "add_1", "add_2",
        "dropout", "mean", "mean_flatten", "adaptive_avg_pool2d", "view", "flatten", "add_3", "mean_1", "reshape",
        "add_4", "add_5", "fc.0", "fc.1", "fc.2", "relu_3", "logits",
    ]  # fmt: skip
    # Weights are in the order of computation, whatever the order they were defined in.
    assert list(models.prunable(model)) == [
        f"{layer}.weight" for layer in ("conv", "block.depth", "block.point", "wide", "fc.0", "last")
    ]
    assert models.depthwise(model) == {"block.depth.weight"}
    state = models.initial_state(spec, 3)
    generator = np.random.default_rng(1)
    for name in state:
        if "running_var" in name or name.startswith("scale"):
            state[name] = generator.uniform(0.5, 2, state[name].shape).astype(np.float32)
        elif state[name].ndim < 2:
            state[name] = generator.normal(size=state[name].shape).astype(np.float32)
    proto = onnx.load_from_string(onnx_out.to_onnx(spec, state))
    x = generator.normal(3, 5, (4, *spec.shape)).astype(np.float32)
    found = ReferenceEvaluator(proto).run(None, {"input": x})[0]
    # The user's own module, given the normalised input, is the definition.
    function = sys.modules[spec.name.split(":")[0]].build
    plain = function(spec.shape, spec.classes).eval()
    models.load(plain, {name: a for name, a in state.items() if name.split(".")[0] not in ("center", "scale")})
    with torch.no_grad():
        wanted = plain(torch.from_numpy((x - state["center.mean"]) * state["scale.inv_std"])).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert {"GlobalAveragePool", "AveragePool", "MaxPool", "Clip", "Identity"} <= {n.op_type for n in proto.graph.node}


def test_names_are_the_same_every_time(network):
    name = network(EVERYTHING)
    one, other = made(name)[1], made(name)[1]
    assert [s.output for s in trace.steps(one)] == [s.output for s in trace.steps(other)]


def test_a_name_that_is_taken_is_not_given_twice(network):
    _, model = made(
        network("""
        def build(shape, classes):
            return wrap(lambda self, x: self.fc(self.add(torch.relu(x + x) + x).flatten(1)),
                        add=nn.Conv2d(2, 2, 1), relu=nn.ReLU(), fc=nn.Linear(144, classes))
        """)
    )
    names = [step.output for step in trace.steps(model)]
    assert len(set(names)) == len(names)
    assert {"add", "add_", "relu_"} <= set(names)


@pytest.mark.parametrize("norm", ["batch", "running", "scaled"])
def test_a_run_with_every_style(network, tmp_path, norm):
    generator = np.random.default_rng(0)
    y = np.arange(48) % 3
    x = generator.normal(size=(48, 9, 8, 2)) + y.reshape(-1, 1, 1, 1)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    flags = {
        "data": "x.npz", "model": network(EVERYTHING), "clients": 2, "partition": "iid", "public": "holdout:8",
        "rounds": 2, "local_epochs": 1, "density": 0.5, "pool": 2, "lr": 0.02, "adjust_every": 1, "adjust_until": 2,
        "norm": norm, "activation_pruning": 0.5 if norm == "scaled" else 0.0,
    }  # fmt: skip
    config = settle(apply_flags(Config(), flags))
    assert tomllib.loads(to_toml(config))["model"]["model"] == flags["model"]
    summary = rounds.carry_out(config, tmp_path / "run", lambda line: None)
    assert (summary["model"], summary["refused"]) == (flags["model"], 0)
    held = {t.name for t in onnx.load(tmp_path / "run/model.onnx").graph.initializer}
    assert ("block.bn.weight" in held) == (norm != "scaled")
    assert "center.mean" in held


def test_the_command_builds_it_in_workers_and_resumes_to_the_same_bytes(network, tools, tmp_path, monkeypatch):
    train, _, contents, flags = tools
    name = network(EVERYTHING)
    flags = [flag for at, flag in enumerate(flags) if "--width" not in flags[max(0, at - 1) : at + 1]]
    own = [*flags, "--model", name, "--rounds", "2", "--density", "0.4"]
    assert train(*own, "--out", "one") == 0
    # Another process, as a user starts it: nothing but the current folder leads to the module.
    code = "import sys; sys.path.remove(''); from fedtiny_train.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, own), "--workers", "2", "--out", "two"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT}/export", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    note = rounds._note

    def note_and_die(folder, lines, number, *rest):
        note(folder, lines, number, *rest)
        if number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_note", note_and_die)
    assert train(*own, "--out", "stopped") == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert train("--resume", "stopped") == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "one")


def test_vectors_and_a_normalisation_of_ones_own(network):
    spec, model = made(
        network("""
        from fedtiny_train.models.layers import Center, Scale

        def build(shape, classes):
            return wrap(lambda self, x: self.fc(self.scale(self.center(x))),
                        center=Center(), scale=Scale(), fc=nn.Linear(shape[0], classes))
        """),
        shape=(5,),
    )
    assert [step.output for step in trace.steps(model)] == ["center", "scale", "logits"]
    assert set(models.initial_state(spec, 0)) == {"center.mean", "scale.inv_std", "fc.weight", "fc.bias"}


def test_what_a_function_draws_is_the_same_in_every_process(network):
    name = network("""
    def build(shape, classes):
        norm = nn.BatchNorm2d(2)
        nn.init.uniform_(norm.weight)
        return seq(nn.Conv2d(2, 2, 1), norm, nn.Flatten(), nn.Linear(144, classes))
    """)
    one, other = (models.initial_state(made(name)[0], 0) for _ in range(2))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert not np.array_equal(one["1.weight"], np.ones(2))


DROPPING = """
def build(shape, classes):
    return seq(nn.Flatten(), nn.Linear(144, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 20),
               nn.BatchNorm1d(20), nn.Linear(20, classes))
"""


def test_dropout_is_drawn_by_the_keys_of_a_client_and_a_round(network):
    spec, _ = made(network(DROPPING))
    generator = np.random.default_rng(0)
    shard = Shard(1, generator.normal(size=(64, *spec.shape)).astype(np.float32), np.arange(64) % 3)
    state = models.initial_state(spec, 0)
    pool = {f"0/{name}": array for name, array in state.items()}
    # As many samples as a batch: the order of the samples draws nothing else.
    requests = [Message("train", {"round": float(number), "lr": 0.1}, state) for number in (1, 3)]
    requests.append(Message("adapt", {"pool": 1, "passes": 3}, pool))
    local = LocalSpec(spec, 0, 64, 1, 0.9, 0.0)
    found = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        found.append([client.answer(Order(1, wire.encode(request)), shard, local) for request in requests])
        torch.manual_seed(seed)
        found[-1].append(client.answer(Order(1, wire.encode(requests[-1])), shard, local))
    assert found[0] == found[1]
    losses = [wire.decode(reply.body).numbers["loss"] for reply in found[0][:2]]
    assert losses[0] != pytest.approx(losses[1], rel=0.01)


def test_dropout_of_pre_training_is_drawn_by_the_seed(network, tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 9, 8, 2)), np.arange(30) % 3
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    flags = {"data": "x.npz", "model": network(DROPPING), "clients": 2, "partition": "iid", "rounds": 1}
    more = {"density": 0.9, "public": "holdout:6", "pretrain_epochs": 2, "tune_epochs": 0, "method": "random"}
    config = settle(apply_flags(Config(), {**flags, **more}))
    with opened(config, data.load(config.data)) as run:
        tensors = models.initial_state(run.setting.spec, 0)
        found = []
        for seed in (7, 8):
            torch.manual_seed(seed)
            found.append(rounds.pretrain(run, tensors))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in tensors)


def test_operations_take_their_arguments_as_torch_does(network):
    _, model = made(
        network("""
        def build(shape, classes):
            def forward(self, x):
                x = F.dropout(x, 0.25, self.training)
                x = self.drop(x)
                x = F.dropout(x, 0.75, False)
                x = F.max_pool2d(x, 4, 1, 2, 3)
                x = F.max_pool2d(x, kernel_size=2, ceil_mode=False, padding=1)
                x = F.avg_pool2d(x, 2, stride=1, padding=1, count_include_pad=False)
                return self.fc(x.flatten(1))
            return wrap(forward, drop=nn.Dropout(0.125, inplace=True), fc=nn.Linear(24, classes))
        """)
    )
    layers = [step.module for step in trace.steps(model)][2:-2]
    assert [type(layer) for layer in layers] == [nn.Dropout, nn.Dropout, nn.MaxPool2d, nn.MaxPool2d, nn.AvgPool2d]
    assert [(layer.p, layer.inplace) for layer in layers[:2]] == [(0.25, False), (0.125, False)]
    pools = [(p.kernel_size, p.stride, p.padding, p.dilation) for p in layers[2:4]]
    assert pools == [(4, 1, 2, 3), (2, 2, 1, 1)]
    assert (layers[4].kernel_size, layers[4].stride, layers[4].padding, layers[4].count_include_pad) == (2, 1, 1, False)


BAD = {
    "seq(nn.Conv2d(2, 2, 1), nn.GELU(), *good(classes))": "GELU is not known; known are Conv2d, Linear",
    "seq(nn.Conv2d(2, 2, 1), nn.Conv1d(2, 2, 1), *good(classes))": "Conv1d is not known",
    "seq(*good(classes), nn.Softmax(1))": "Softmax is not known; leave it out: the loss has it",
    "seq(nn.Conv2d(2, 2, 1, padding_mode='reflect'), *good(classes))": "0 is a Conv2d with padding_mode other",
    "seq(nn.BatchNorm2d(2, affine=False), *good(classes))": "0 is a BatchNorm2d with affine or track_running_stats",
    "seq(nn.BatchNorm2d(2, momentum=None), *good(classes))": "or without momentum",
    "seq(nn.MaxPool2d(1, ceil_mode=True), *good(classes))": "MaxPool2d with ceil_mode or return_indices",
    "seq(nn.AvgPool2d(1, divisor_override=2), *good(classes))": "AvgPool2d with ceil_mode or divisor_override",
    "seq(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, classes))": "AdaptiveAvgPool2d with output_size",
    "seq(nn.Flatten(2), nn.Linear(72, classes))": "Flatten with dimensions other than all from 1 on",
    "seq(nn.Linear(8, classes), nn.Flatten())": "0 gets features of shape (2, 9, 8); flatten them first",
    "seq(nn.Flatten(), nn.Linear(7, classes))": "1 on a sample of shape (144,) fails with RuntimeError: mat1 and mat2",
    "seq(nn.Flatten(), nn.Linear(144, classes + 1))": "returns shape (4,) for a sample of shape (2, 9, 8); it must",
    "seq(nn.Flatten(), nn.ReLU())": "has no convolution or linear layer",
    "wrap(lambda s, x: s.a((x * 2).flatten(1)), a=nn.Linear(144, classes))": "mul is not known; known are",
    "wrap(lambda s, x: s.a((x + 2).flatten(1)), a=nn.Linear(144, classes))": "an addition of anything but two tensors",
    "wrap(lambda s, x: s.a(torch.sigmoid(x).flatten(1)), a=nn.Linear(144, classes))": "sigmoid is not known",
    "wrap(lambda s, x: s.a(torch.cat([x, x], 1).flatten(1)), a=nn.Linear(288, classes))": "cat is not known",
    "wrap(lambda s, x: F.linear(x.flatten(1), s.a.weight), a=nn.Linear(144, classes))": "linear is not known; use nn",
    "wrap(lambda s, x: s.a(x.mean(1).flatten(1)), a=nn.Linear(72, classes))": "a mean over anything but the image",
    "wrap(lambda s, x: s.a(x.view(-1, 144)), a=nn.Linear(144, classes))": "a view or reshape other than",
    "wrap(lambda s, x: s.a(x.view(x.size(1), -1)), a=nn.Linear(144, classes))": "a view or reshape other than",
    "wrap(lambda s, x: s.a(x.flatten(1)) if x.sum() > 0 else x, a=nn.Linear(144, classes))": "decides by what a tensor",
    "wrap(lambda s, x: s.c(s.c(x)).flatten(1), c=nn.Conv2d(2, 2, 1))": "layer c is used twice",
    "wrap(lambda s, x: (s.a(x.flatten(1)), x), a=nn.Linear(144, classes))": "returns something other than one tensor",
    "wrap(lambda s, x: s.a(F.relu_(x).flatten(1) + x.flatten(1)), a=nn.Linear(144, classes))": "relu_ changes a tensor",
    "wrap(lambda s, x: s.a(s.r(x).flatten(1) + x.flatten(1)), a=nn.Linear(144, classes), r=nn.ReLU(True))": "changes a",
    "wrap(lambda s, x: s.b(s.a(x) + x), a=nn.Conv2d(2, 1, 1), b=seq(*good(classes)))": "add adds (1, 9, 8) and (2, 9",
    "wrap(lambda s, x: s.a(s.logits(x).flatten(1)), logits=nn.ReLU(), a=nn.Linear(144, classes))": "is called logits",
    "wrap(lambda s, x: s.a(s.input(x).flatten(1)), input=nn.ReLU(), a=nn.Linear(144, classes))": "is called input",
    "wrap(lambda s, x: s.a(s.center(x).flatten(1)), center=nn.ReLU(), a=nn.Linear(144, classes))": "called center",
    "wrap(lambda s, x: s.running_a(x.flatten(1)), running_a=nn.Linear(144, classes))": "called 'running_a'; use",
    "wrap(lambda s, x: s.d['a/b'](x.flatten(1)), d=nn.ModuleDict({'a/b': nn.Linear(144, classes)}))": "called 'd.a/b'",
    "wrap(lambda s, x: s.a(x.flatten(1)) + s.p, a=nn.Linear(144, classes), p=nn.Parameter(torch.ones(3)))": "reads p",
    "wrap(lambda s, x: s.a(x.flatten(1)) if s.training else s.b(x.flatten(1)), a=nn.Linear(144, classes), "
    "b=nn.Linear(144, classes))": "computes something else than its layers",
    "tied(classes)": "1.b and 1.a share a parameter",
    "nn.Bilinear(1, 1, 1)": "takes 2 tensors",
    "42": "returns a int; it must return an nn.Module",
    "1 / 0": "fails with ZeroDivisionError: division by zero",
    "exit(3)": "fails with SystemExit: 3",
}
TIED = """
def tied(classes):
    a, b = nn.Linear(144, 144), nn.Linear(144, 144)
    b.weight = a.weight
    return seq(nn.Flatten(), wrap(lambda s, x: s.b(s.a(x)), a=a, b=b), nn.Linear(144, classes))
"""


@pytest.mark.parametrize(("body", "reason"), BAD.items())
def test_what_does_not_work_is_refused_in_one_line(network, body, reason):
    name = network(TIED + f"\n\ndef build(shape, classes):\n    return {body}\n")
    with pytest.raises(FedtinyError) as caught:
        made(name)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"model {name}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("body", "function", "reason", "status"),
    [
        ("x = (", "build", "fails with SyntaxError", 1),
        ("import nowhere_at_all", "build", "fails with ModuleNotFoundError: No module named 'nowhere_at_all'", 1),
        ("raise ValueError('a\\nb')", "build", "fails with ValueError: a", 1),
        ("raise SystemExit(4)", "build", "fails with SystemExit: 4", 1),
        ("def built(shape, classes): pass", "build", "has no function build (did you mean built?)", 2),
        ("build = 3", "build", "has no function build", 2),
        ("def build(shape): pass", "build", "fails with TypeError", 1),
    ],
)
def test_errors_of_the_module_itself(network, body, function, reason, status):
    name = network(body, function)
    with pytest.raises(FedtinyError) as caught:
        made(name)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == status


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"model": "own:"}, "is not MODULE:FUNCTION"),
        ({"model": ":build"}, "is not MODULE:FUNCTION"),
        ({"model": "a b:c"}, "is not MODULE:FUNCTION"),
        ({"model": "../own:build"}, "is not MODULE:FUNCTION"),
        ({"model": "own.py:build"}, "names a file; name the module: own:build"),
        ({"model": "own:build", "width": 4}, "width is 4, but own:build decides on its own channels"),
        ({"model": "resnet19"}, "did you mean resnet18"),
    ],
)
def test_names_that_cannot_be(flags, reason):
    with pytest.raises(UsageError, match=reason):
        apply_flags(Config(), flags)


def test_the_command_says_it_in_one_line_and_writes_nothing(network, tools, tmp_path, capsys):
    train, _, _, _ = tools
    name = network("def build(shape, classes):\n    return seq(nn.Conv2d(1, 2, 1), nn.Tanh())")
    files = set(tmp_path.iterdir())
    for given, status, reason in (
        (name, 1, "Tanh is not known"),
        ("no_such_module:f", 2, "there is no module no_such_module in the current folder"),
    ):
        assert train("--model", given, "--out", tmp_path / "run") == status
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
    assert {p for p in tmp_path.iterdir() if p.name != "__pycache__"} == files


def test_the_search_path_is_left_as_it_was(network):
    before = list(sys.path)
    made(network(EVERYTHING))
    with pytest.raises(FedtinyError):
        made(network("1 / 0"))
    assert sys.path == before


def test_a_subclass_of_a_known_layer_is_looked_into(network):
    """It may compute anything: here it is a convolution of doubled weights, which plain export would get wrong."""
    name = network("""
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight * 2, self.bias)


    class Renamed(nn.Linear):
        def forward(self, x):
            return super().forward(x)


    def build(shape, classes):
        return seq(Doubled(2, 2, 1), nn.Flatten(), nn.Linear(144, classes))


    def named(shape, classes):
        return seq(nn.Flatten(), Renamed(144, classes))
    """)
    with pytest.raises(FedtinyError, match="mul is not known"):
        made(name)
    with pytest.raises(FedtinyError, match=r"linear is not known; use nn\.Linear"):
        made(name.replace(":build", ":named"))


def test_the_last_layer_may_be_called_logits(network):
    _, model = made(
        network("""
        def build(shape, classes):
            return wrap(lambda s, x: s.logits(x.flatten(1)), logits=nn.Linear(144, classes))
        """)
    )
    assert [step.path for step in trace.steps(model)][-1] == "logits"
    assert list(models.prunable(model)) == ["logits.weight"]
    assert isinstance(model.logits, nn.Linear)
    assert json.dumps([step.output for step in trace.steps(model)]).count("logits") == 1
