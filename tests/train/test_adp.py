"""ADP: gates by hand, what freezing keeps and what it may prune, personal gates, FedDP's threshold, and a device."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import onnx
import oracles
import pytest
import torch
from fedtiny_export.cli import export_main
from fedtiny_export.errors import FedtinyError, UsageError
from torch import nn

from fedtiny_train import calibrate, client, data, models, rounds, trace, wire
from fedtiny_train.client import Device, LocalSpec
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.data import Shard
from fedtiny_train.habits import Lesson, thinning
from fedtiny_train.methods import Orders, Outcome, Services, adp, setting
from fedtiny_train.models.gating import winners
from fedtiny_train.models.layers import Gate
from fedtiny_train.options import Config
from fedtiny_train.server import Answers, State, logits, update_check
from fedtiny_train.session import opened
from fedtiny_train.wire import Message

NO_DATA = Shard(-1, np.empty((0, 1, 8, 8), np.float32), np.empty(0, np.int64))


def configured(**flags) -> Config:
    return settle(apply_flags(Config(), {"method": "adp", **flags}))


def facts(name="resnet8", width=4, shape=(1, 8, 8), **flags):
    return setting(configured(**flags), models.ModelSpec(name, shape, 10, width))


def fresh(found, seed=0) -> State:
    tensors = models.initial_state(found.spec, seed)
    return State(tensors, {name: np.ones(tensors[name].shape, np.bool_) for name in found.sizes})


def gate_of(weight, bias, keep) -> Gate:
    gate = Gate(2, 2, keep)
    with torch.no_grad():
        gate.weight.copy_(torch.tensor(weight))
        gate.bias.copy_(torch.tensor(bias))
    return gate


L = math.log(3)  # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2
# Two samples of two channels of 1x2; their channel means are (0, ln 3) and (ln 3, 0).
X = torch.tensor([[[[-1.0, 1.0]], [[0.0, 2 * L]]], [[[L, L]], [[0.0, 0.0]]]])


def test_a_gate_by_hand():
    """2 * 1/2 - 4 * 3/4 + 1 = -1, rectified to 0; 4 * 3/4 - 1 = 2. The other sample: 3/2 - 2 + 1 and 2 - 1."""
    gate = gate_of([[2.0, -4.0], [0.0, 4.0]], [1.0, -1.0], keep=2)
    assert gate.strengths(X).detach().numpy() == pytest.approx(np.array([[0.0, 2.0], [0.5, 1.0]]))
    y = torch.full((2, 2, 1, 2), 3.0)
    assert gate(X, y)[:, :, 0, 1].detach().numpy() == pytest.approx(np.array([[0.0, 6.0], [1.5, 3.0]]))


def test_only_the_strongest_of_a_sample_win_and_only_they_learn():
    gate = gate_of([[4.0, 0.0], [0.0, 4.0]], [0.0, 0.0], keep=1)
    found = gate.strengths(X)
    assert found.detach().numpy() == pytest.approx(np.array([[0.0, 3.0], [3.0, 0.0]]))
    found[0].sum().backward()
    assert gate.bias.grad.tolist() == [0.0, 1.0]
    assert gate.weight.grad.numpy() == pytest.approx(np.array([[0.0, 0.0], [0.5, 0.75]]))
    even = gate_of([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0], keep=1)
    assert even.strengths(X).tolist() == [[1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(("channels", "ratio", "count"), [(16, 0.7, 11), (10, 0.7, 7), (3, 0.1, 1), (8, 1.0, 8)])
def test_winners(channels, ratio, count):
    assert winners(channels, ratio) == count


def test_density_is_the_square_of_the_ratio():
    assert configured().train.density == 0.49
    assert facts().spec.gates == pytest.approx(0.7)
    assert facts(density=0.25).spec.gates == 0.5
    assert configured(threshold=1e-3).train.density == 1.0
    assert facts(threshold=1e-3).spec == models.ModelSpec("resnet8", (1, 8, 8), 10, 4)
    assert facts(gates="personal").spec.personal


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"threshold": 1e-3, "density": 0.3}, "with a threshold adp keeps whatever is above it"),
        ({"gate_client": 2}, "add --gates personal"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"gates": "own"}, "unknown gates 'own'"),
        ({"batch": 1}, "batch norm needs two samples"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, said):
    with pytest.raises(UsageError, match=said):
        configured(**flags)


@pytest.mark.parametrize(("name", "shape"), [("mlp", (64,)), ("cnn", (1, 32, 32))])
def test_a_network_without_a_place_for_gates_is_refused(name, shape):
    with pytest.raises(UsageError, match=f"model {name} has none; use --model resnet8"):
        facts(name, shape=shape)


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(UsageError, match="has none"):
        setting(configured(), models.ModelSpec("resnet8", (1, 8, 8), 10, 4, norm="scaled"))


def test_gates_stand_behind_every_batch_norm_and_are_no_weights_to_prune():
    found = facts()
    names = ["stem.bn", *(f"stack{i}.bn{j}" for i in (1, 2, 3) for j in (1, 2))]
    plain = models.exported(found.spec)
    assert list(models.gates(models.shared(found.spec))) == [f"gate.{name}" for name in names]
    assert list(models.gates(models.shared(facts(gates="personal").spec))) == [f"own.{name}" for name in names]
    assert list(found.sizes) == list(models.prunable(models.build(plain)))
    state, before = models.initial_state(found.spec, 3), models.initial_state(plain, 3)
    assert all(np.array_equal(state[name], before[name]) for name in before)
    assert {name for name in state if name not in before} == {
        f"gate.{n}.{p}" for n in names for p in ("weight", "bias")
    }
    assert (state["gate.stem.bn.bias"] == 1).all()
    big = models.initial_state(dataclasses.replace(found.spec, width=64), 0)["gate.stack3.bn2.weight"]
    assert big.std() == pytest.approx(math.sqrt(2 / 256), rel=0.02)


def test_executed_work_by_hand():
    """Half of four channels: a layer costs its share of inputs times that of outputs, and its gate's products."""
    spec = facts(density=0.25).spec
    macs = trace.macs(models.build(spec), spec.shape)
    assert macs == {
        "stem.conv.weight": 64 * 9 * 4 // 2 + 4,  # the input is whole
        "stack1.conv1.weight": 64 * 9 * 16 // 4 + 16,
        "stack1.conv2.weight": 64 * 9 * 16 // 4 + 16,
        "stack2.conv1.weight": 16 * 9 * 32 // 2 + 32,  # behind the addition, at most all channels
        "stack2.conv2.weight": 16 * 9 * 64 // 4 + 64,
        "stack2.shortcut.weight": 16 * 32,
        "stack3.conv1.weight": 4 * 9 * 128 // 2 + 128,
        "stack3.conv2.weight": 4 * 9 * 256 // 4 + 256,
        "stack3.shortcut.weight": 4 * 128,
        "fc.weight": 160,
    }


def test_what_clients_find_is_averaged_by_samples():
    found = facts()
    state = fresh(found)
    names = list(models.gates(models.shared(found.spec)))

    def ask(request, check, kept=None, own=None):
        assert request.numbers == {"client": -1}
        replies = {}
        for one, (samples, mean, wins) in enumerate([(1, 4.0, 1.0), (3, 0.0, 0.2)]):
            values = {
                f"{n}.{part}": np.full(len(state.tensors[f"{n}.bias"]), value)
                for n in names
                for part, value in (("mean", mean), ("wins", wins))
            }
            replies[one] = Message("gates", {"samples": samples}, values)
            check(replies[one])
        return Answers(replies, (), 0, 0, {})

    use = adp._ask_for_gates(found, state, Services(ask, lambda s: s, NO_DATA))["stack1.bn1"]
    assert use.mean == pytest.approx(np.full(4, 1.0))
    assert use.wins == pytest.approx(np.full(4, 0.4))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"a.mean": [1.0], "a.wins": [1.5]}, "no share of samples"),
        ({"a.mean": [-1.0], "a.wins": [0.5]}, "no strength"),
        ({"a.mean": [1.0]}, "a.wins is missing"),
        ({"a.mean": [1.0, 1.0], "a.wins": [0.5]}, "has shape"),
        ({"a.mean": [np.nan], "a.wins": [0.5]}, "not finite"),
        ({}, "is missing"),
    ],
)
def test_what_no_gate_can_send_is_refused(values, said):
    check = adp._gates_check({"a.mean": (1,), "a.wins": (1,)}, personal=False)
    check(Message("gates", {"samples": 2}, {"a.mean": np.array([0.0]), "a.wins": np.array([1.0])}))
    with pytest.raises(FedtinyError, match=said):
        check(Message("gates", {"samples": 2}, {name: np.array(v) for name, v in values.items()}))


def steady(found, seed=0) -> State:
    """A state whose gates say the same of every sample: their weights are 0, their biases differ."""
    state = fresh(found, seed)
    generator = np.random.default_rng(seed)
    tensors = dict(state.tensors)
    for name, array in tensors.items():
        if name.startswith("gate."):
            drawn = generator.permutation(len(array)) / len(array) + 0.5
            tensors[name] = np.zeros_like(array) if name.endswith("weight") else drawn.astype(np.float32)
        elif ".bn" in name or "norm" in name:
            tensors[name] = generator.uniform(0.5, 1.5, array.shape).astype(np.float32)
    return dataclasses.replace(state, tensors=tensors)


NETWORKS = [
    ("resnet8", (1, 8, 8), 8),
    ("resnet18", (3, 16, 16), 4),
    ("vgg11", (3, 32, 32), 4),
    ("mobilenetv2", (3, 16, 16), 8),
    ("dscnn", (1, 20, 10), 8),
]


@pytest.mark.parametrize(("name", "shape", "width"), NETWORKS)
def test_frozen_is_as_gated_where_every_sample_chooses_alike(name, shape, width):
    found = facts(name, width, shape)
    state = steady(found)
    x = np.random.default_rng(1).normal(size=(6, *shape)).astype(np.float32)
    model = models.shared(found.spec)
    models.load(model, state.tensors)
    use = calibrate.gate_moments(model, x)
    for path, gate in models.gates(model).items():
        bias = state.tensors[f"{path}.bias"].astype(float)
        best = np.argsort(-bias, kind="stable")[: gate.keep]
        assert np.flatnonzero(use[f"{path}.wins"]).tolist() == sorted(best.tolist())
        assert use[f"{path}.mean"][best] == pytest.approx(bias[best])
    seen = {n.removeprefix("gate."): adp.GateUse(use[f"{n}.mean"], use[f"{n}.wins"]) for n in models.gates(model)}
    frozen = adp.freeze(found, state, seen)
    plain = models.exported(found.spec)
    gated = logits(found.spec, state, x)
    # Products of float32 in another order.
    near = pytest.approx(gated, rel=1e-3, abs=1e-4 * float(np.abs(gated).max()))
    assert gated.std() > 1e-3
    assert logits(plain, frozen, x) == near
    assert frozen.memory["frozen"] == {"client": None, "wins_kept": 1.0}
    assert not [n for n in frozen.tensors if n.startswith("gate.")]
    kept = sum(int(m.sum()) for m in frozen.masks.values()) / sum(m.size for m in frozen.masks.values())
    assert 0.35 < kept < 0.8
    # What was pruned did nothing, and no whole layer went.
    whole = frozen.tensors | {n: np.where(m, frozen.tensors[n], state.tensors[n]) for n, m in frozen.masks.items()}
    assert logits(plain, dataclasses.replace(frozen, tensors=whole), x) == near
    assert all(mask.any() for mask in frozen.masks.values())


def test_freezing_by_hand():
    """The two that win most often stay, whatever their strength; ties go to the stronger."""
    found = facts(density=0.25)
    state = fresh(found)
    names = [n.removeprefix("gate.") for n in models.gates(models.shared(found.spec))]
    sizes = {n: len(state.tensors[f"{n}.weight"]) for n in names}
    use = {n: adp.GateUse(np.linspace(1, 2, c), np.linspace(0, 1, c)) for n, c in sizes.items()}
    use["stem.bn"] = adp.GateUse(np.array([9.0, 0.5, 0.25, 0.75]), np.array([0.1, 0.6, 0.5, 0.5]))
    tensors = state.tensors | {"stem.bn.bias": np.full(4, 2, np.float32)}
    frozen = adp.freeze(found, dataclasses.replace(state, tensors=tensors), use)
    assert frozen.tensors["stem.bn.weight"].tolist() == [0.0, 0.5, 0.0, 0.75]
    assert frozen.tensors["stem.bn.bias"].tolist() == [0.0, 1.0, 0.0, 1.5]
    rows = frozen.masks["stem.conv.weight"].reshape(4, -1)
    assert rows.any(1).tolist() == rows.all(1).tolist() == [False, True, False, True]
    # stack1.conv1 reads channels 1 and 3 of the stem and makes its own channels 2 and 3.
    assert [tuple(at) for at in np.argwhere(frozen.masks["stack1.conv1.weight"].any((2, 3)))] == [
        (2, 1), (2, 3), (3, 1), (3, 3),
    ]  # fmt: skip
    # The sum of the stem (1, 3) and stack1.bn2 (2, 3) is dead in channel 0 alone.
    for name in ("stack2.conv1.weight", "stack2.shortcut.weight"):
        assert frozen.masks[name].any((0, 2, 3)).tolist() == [False, True, True, True]
    assert frozen.masks["fc.weight"].all()


def test_thinning_by_hand():
    conv, linear = nn.Conv2d(1, 1, (1, 4), bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0.5, -0.25, 0.2, -0.7]).reshape(1, 1, 1, 4))
        linear.weight.fill_(0.1)
        habit = thinning(Lesson(conv, {"a": conv.weight, "b": linear.weight}, {}, {"threshold": 0.25}, 4, 2))
        before = conv.weight.clone()
        habit.after_step(0)
        assert torch.equal(conv.weight, before)
        habit.after_step(1)
    assert conv.weight.flatten().tolist() == pytest.approx([0.5, 0, 0, -0.7])
    assert linear.weight.item() == pytest.approx(0.1)
    assert thinning(Lesson(conv, {}, {}, {}, 4, 2)) is None


def test_a_threshold_is_sent_and_becomes_the_mask():
    found = facts(threshold=0.1)
    assert adp.orders(found, fresh(found), 1).request() == {"threshold": 0.1}
    assert facts().config.adp.threshold == 0
    assert adp.orders(facts(), fresh(facts()), 1) == Orders()
    state = fresh(found)
    closed = adp.close(found, state, Services(None, lambda s: s, NO_DATA))
    for name, mask in closed.masks.items():
        assert np.array_equal(mask, np.abs(state.tensors[name]) > 0.1) or name == "fc.weight"
    assert closed.masks["fc.weight"].all()
    with pytest.raises(FedtinyError, match=r"threshold 50.0 leaves stem.conv.weight without a weight"):
        adp.thresholded(state, 50.0)


def device_with(notes, spec):
    own = Message("own", {}, notes) if notes is not None else None
    return Device(NO_DATA, LocalSpec(spec, 0, 2, 1, 0.0, 0.0), None, own)


def test_own_gates_begin_alike_and_are_read_with_care():
    spec = facts(gates="personal").spec
    begun = client.own_part(device_with(None, spec))
    assert begun.keys() == {n for n in models.initial_state(spec, 0) if n.startswith("own.")}
    noted = client.own_part(device_with({"own.stem.bn.bias": np.full(4, 7.0, np.float32)}, spec))
    assert noted["own.stem.bn.bias"].tolist() == [7.0] * 4
    assert np.array_equal(noted["own.stem.bn.weight"], begun["own.stem.bn.weight"])
    for bad in (np.ones(5, np.float32), np.full(4, np.nan, np.float32)):
        with pytest.raises(wire.WireError, match=r"noted as own\.stem\.bn\.bias is of no use"):
            client.own_part(device_with({"own.stem.bn.bias": bad}, spec))
    assert client.own_part(device_with(None, facts().spec)) == {}


def test_own_gates_never_travel():
    found = facts(gates="personal")
    state = fresh(found)
    message = state.message("train")
    assert not [name for name in message.tensors if name.startswith("own.")]
    fixed = ("center.mean", "scale.inv_std")
    update = {name: t for name, t in message.tensors.items() if name not in fixed}
    check = update_check(state, {})
    check(Message("update", {"samples": 1, "loss": 0.0}, update))
    leak = Message("update", {"samples": 1, "loss": 0.0}, update | {"own.stem.bn.bias": np.ones(4, np.float32)})
    with pytest.raises(FedtinyError, match=r"own\.stem\.bn\.bias that was not asked for"):
        check(leak)


def test_each_client_trains_its_own_gates_and_one_is_measured():
    config = configured(gates="personal", gate_client=1, clients=3, width=4, local_epochs=1, rounds=2, public="none")
    with opened(config, data.load(config.data)) as run:
        state, _ = rounds.set_up(run)
        assert state.memory["gate_client"] == 1
        after, _ = rounds.train_round(run, state, 1)
    noted = {k: wire.decode(notes).array("own.stack3.bn2.weight") for k, notes in after.own.items()}
    assert sorted(noted) == [0, 1, 2]
    assert not np.array_equal(noted[0], noted[1])
    assert np.array_equal(after.tensors["own.stack3.bn2.weight"], noted[1])
    other = dataclasses.replace(after, own={0: after.own[0]})
    kept = adp.learn(run.setting, Outcome(2, after, other, {}, {}, Orders())).tensors
    assert np.array_equal(kept["own.stack3.bn2.weight"], noted[1])


def test_the_client_with_most_samples_is_chosen_and_an_unknown_one_refused():
    def ask(request, check, kept=None, own=None):
        replies = {}
        for k, count in enumerate((64.0, 640.0, 128.0)):
            facts = {"count": count, "sum": count, "squares": count, "min": 0.0, "max": 2.0}
            replies[k] = Message("described", facts)
            check(replies[k])
        return Answers(replies, (), 0, 0, {})

    services = Services(ask, lambda s: s, NO_DATA)
    found = facts(gates="personal")
    assert adp.begin(found, fresh(found), services).memory["gate_client"] == 1
    third = facts(gates="personal", gate_client=2)
    assert adp.begin(third, fresh(third), services).memory["gate_client"] == 2
    far = facts(gates="personal", gate_client=3)
    with pytest.raises(UsageError, match="gate_client is 3, but the clients are 0 to 2"):
        adp.begin(far, fresh(far), services)


def exported(run, out):
    with pytest.raises(SystemExit) as left:
        export_main([str(run), "--target", "esp32", "--out", str(out)])
    assert not left.value.code
    golden = np.load(out / "golden.npz")
    made = oracles.tflite_micro((out / "model.tflite").read_bytes(), golden["inputs"])
    assert np.array_equal(made, golden["outputs"])


@pytest.mark.parametrize("gates", ["shared", "personal"])
def test_a_run_repeats_itself_goes_on_and_reaches_a_device(gates, tmp_path, tools):
    train, small, contents, _ = tools
    flags = ["--method", "adp", "--gates", gates, "--width", "8"]
    run = small(tmp_path / "a", *flags)
    whole = contents(run)
    assert whole == contents(small(tmp_path / "b", *flags, "--workers", "2"))
    for name in ("summary.json", "model.onnx", "ranges.json", "report.html"):
        (run / name).unlink()
    last = sorted((run / "state").iterdir())[-1]
    (last / "progress.json").unlink()  # so that the last round is done again, with the notes of the one before
    assert train("--resume", run) == 0
    assert contents(run) == whole
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert summary["accuracy_before_freezing"] == lines[-1]["accuracy"]
    assert (summary["frozen"]["client"] is None) == (gates == "shared")
    assert 0.3 < summary["density"] < 0.7
    graph = onnx.load(run / "model.onnx").graph
    assert not [t.name for t in graph.initializer if t.name.startswith(("gate.", "own."))]
    assert {node.op_type for node in graph.node} == {
        "Sub", "Mul", "Conv", "BatchNormalization", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm",
    }  # fmt: skip
    exported(run, tmp_path / "out")


def test_a_run_with_a_threshold_gives_what_comes_out(tmp_path, tools):
    _, small, _, _ = tools
    run = small(tmp_path / "a", "--method", "adp", "--threshold", "0.05")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["frozen"] is summary["accuracy_before_freezing"] is None
    assert 0.3 < summary["density"] < 0.95
    assert summary["density"] * summary["weights"] == pytest.approx(summary["nonzero"])
    exported(run, tmp_path / "out")
