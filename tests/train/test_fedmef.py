"""FedMef: its schedule, its extrusion and its swaps by hand; what must hold in a run, and the way to a device."""

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
from fedtiny_export.errors import UsageError
from torch import nn

from fedtiny_train import data, models, rounds
from fedtiny_train.client import LocalSpec, fit
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.data import Shard
from fedtiny_train.habits import Lesson, extrusion, habits
from fedtiny_train.masks import density_of, erk_counts, kept_total
from fedtiny_train.methods import Orders, Outcome, Services, fedmef, method, setting
from fedtiny_train.options import Config
from fedtiny_train.server import State
from fedtiny_train.session import Traffic, opened

NOBODY = Services(
    lambda request, check, kept=None: pytest.fail("no client is asked here"),
    lambda state: state,
    Shard(-1, np.empty((0, 1, 8, 8), np.float32), np.empty(0, np.int64)),
)


def facts(width=16, **flags):
    config = settle(apply_flags(Config(), {"method": "fedmef", "model": "resnet8", "width": width, **flags}))
    return setting(config, models.ModelSpec("resnet8", (1, 8, 8), 10, width))


def begun(found):
    tensors = models.initial_state(found.spec, 0)
    dense = State(tensors, {name: np.ones(tensors[name].shape, np.bool_) for name in found.sizes})
    return method("fedmef").begin(found, dense, NOBODY)


def test_it_is_cheap_where_it_adjusts_and_stops_at_three_fifths():
    assert fedmef.schedule(facts(rounds=500)) == (10, 300)
    assert fedmef.schedule(facts(rounds=50)) == (1, 30)
    assert fedmef.schedule(facts(rounds=500, adjust_every=7, adjust_until=20)) == (7, 20)
    found = facts(rounds=500)
    state = begun(found)
    due = [r for r in range(1, 501) if fedmef.orders(found, state, r).top]
    # In round 300 the cosine is -1: nothing is left to swap.
    assert due == list(range(10, 300, 10))
    assert fedmef.orders(found, state, 11) == Orders()


@pytest.mark.parametrize(("number", "share"), [(100, 0.3), (150, 0.2), (200, 0.1)])
def test_counts_by_hand(number, share):
    """a_t = 0.4 / 2 * (1 + cos(pi t / T)) * n: with t / T = 1/3, 1/2, 2/3 it is 0.3, 0.2 and 0.1 of n."""
    found = facts(rounds=500, local_epochs=3)
    state = begun(found)
    orders = fedmef.orders(found, state, number)
    live = {name: int(state.masks[name].sum()) for name in found.maskable}
    assert set(orders.top) == {name for name in found.maskable if not state.masks[name].all()}
    for name, count in orders.top.items():
        assert count == min(math.ceil(share * live[name] - 1e-6), state.masks[name].size - live[name])
    halved = fedmef.orders(facts(rounds=500, local_epochs=3, fedmef_rate=0.2), state, number)
    name = "stack3.conv2.weight"
    assert halved.top[name] == math.ceil(share / 2 * live[name] - 1e-6)


def test_extrusion_is_asked_for_in_the_same_round_and_for_the_same_numbers():
    found = facts(rounds=500, extrusion_weight=1e-4, lr=0.07)
    state = begun(found)
    request = fedmef.orders(found, state, 50).request()
    pressed = {name.removeprefix("extrude/"): n for name, n in request.items() if name.startswith("extrude/")}
    assert pressed == {name: float(n) for name, n in fedmef.orders(found, state, 50).top.items()}
    assert (request["extrude_weight"], request["extrude_lr"]) == (1e-4, 0.07)
    off = fedmef.orders(facts(rounds=500, extrusion=False), state, 50).request()
    assert not [name for name in off if name.startswith("extrude")]
    assert [name for name in off if name.startswith("top/")]


def lesson(numbers, steps=4):
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 0.0, 3.0]]))
    masks = {"0.weight": torch.tensor([[True, True, False, True]])}
    return Lesson(model, {"0.weight": model[0].weight}, masks, numbers, steps, steps)


ASKED = {"extrude/0.weight": 2.0, "extrude_weight": 0.5, "extrude_lr": 0.1}


def test_the_penalty_and_its_gradient_by_hand():
    """The two smallest live weights are 1 and -2, not the pruned 0: 0.5 * (1 + 4), gradient 2 * 0.5 * w."""
    one = lesson(ASKED)
    habit = extrusion(one)
    penalty = habit.penalty(0)
    assert penalty.item() == 2.5
    penalty.backward()
    assert one.weights["0.weight"].grad.tolist() == [[1.0, -2.0, 0.0, 0.0]]


def test_the_rate_by_hand():
    """|theta_low| = sqrt(5), and 2 sigmoid(2.236068) - 1 = 0.806884; p(t) = (8 - 2t) / (8 - t) of four steps."""
    habit = extrusion(lesson(ASKED))
    expected = [0.0806884 * p for p in (1, 6 / 7, 4 / 6, 2 / 5)]
    assert [habit.rate(t, 0.0) for t in range(4)] == pytest.approx(expected, rel=1e-5)
    assert [habit.rate(t, 0.05) for t in range(4)] == pytest.approx([*expected[:3], 0.05], rel=1e-5)
    assert habits(lesson({})) == []


def test_training_presses_the_chosen_weights_and_no_others():
    """Inputs of zero leave the loss without a gradient: a step takes 2 * lambda * rate of each chosen weight."""
    one = lesson(ASKED)
    shard = Shard(0, np.zeros((4, 4), np.float32), np.zeros(4, np.int64))
    masks = {name: mask.numpy() for name, mask in one.masks.items()}
    local = LocalSpec(models.ModelSpec("mlp", (4,), 1, 1), 0, 2, 1, 0.0, 0.0)
    fit(one.model, shard, masks, [np.arange(2), np.arange(2, 4)], 0.01, local, ASKED)
    first = 1 - 2 * 0.5 * 0.0806884
    # After one step |theta_low| is 2.236068 * 0.9193116 = 2.055643; p(1) of two steps is 2/3.
    second = 1 - 0.1 * (2 / 3) * (2 / (1 + math.exp(-2.055643)) - 1)
    found = one.model[0].weight.detach().numpy()[0]
    assert found == pytest.approx([first * second, -2 * first * second, 0.0, 3.0], rel=1e-5)


def test_what_is_small_goes_and_what_has_gradient_comes_at_zero():
    found = facts(row_floor=0)
    name = "fc.weight"
    state = begun(found)
    weights, mask = np.zeros((10, 64), np.float32), np.zeros((10, 64), np.bool_)
    gradient = np.zeros_like(weights)
    mask[0, :4], weights[0, :4] = True, [0.5, -0.1, 0.3, -0.2]
    gradient[1, :3] = [0.1, -9.0, 2.0]
    state = dataclasses.replace(state, tensors=state.tensors | {name: weights}, masks=state.masks | {name: mask})
    after = method("fedmef").learn(found, Outcome(10, state, state, {}, {name: gradient}, Orders({name: 2})))
    assert [tuple(at) for at in np.argwhere(after.masks[name])] == [(0, 0), (0, 2), (1, 1), (1, 2)]
    assert after.tensors[name][0, :4].tolist() == pytest.approx([0.5, 0, 0.3, 0])
    assert not after.tensors[name][1].any()


@pytest.mark.parametrize(("density", "first"), [(0.05, False), (0.1, True), (0.5, False), (1.0, True)])
def test_the_first_mask_is_random_with_erk_shares(density, first):
    found = facts(density=density, first_dense=first)
    masks = begun(found).masks
    assert sum(int(m.sum()) for m in masks.values()) == kept_total(density, list(found.sizes.values()))
    shapes = [masks[name].shape for name in found.maskable]
    assert [int(masks[name].sum()) for name in found.maskable] == erk_counts(shapes, found.budget)
    other = begun(facts(density=density, first_dense=first, seed=1)).masks
    assert all(np.array_equal(masks[n], other[n]) for n in masks) == (density == 1)


def test_the_method_brings_its_network_unless_another_is_asked_for():
    def style(**flags):
        model = settle(apply_flags(Config(), flags)).model
        return model.norm, model.activation_pruning

    assert style(method="fedmef") == ("scaled", 0.7)
    assert style(method="fedmef", activation_pruning=0.5) == ("scaled", 0.5)
    assert style(method="fedmef", norm="scaled") == ("scaled", 0.0)
    assert style(method="fedmef", norm="batch") == ("batch", 0.0)
    assert style(method="rigl") == ("batch", 0.0)
    assert settle(apply_flags(Config(), {"method": "fedmef", "batch": 1})).train.batch == 1
    with pytest.raises(UsageError, match="batch norm needs two samples"):
        apply_flags(Config(), {"method": "fedmef", "batch": 1, "norm": "batch"})


def played(**flags):
    """Three rounds with an adjustment in each of the first two; the states and the lines."""
    flags = {"rounds": 3, "clients": 3, "width": 4, "local_epochs": 1, "public": "none", "density": 0.2} | flags
    config = settle(apply_flags(Config(), {"method": "fedmef", "adjust_every": 1, "adjust_until": 3, **flags}))
    with opened(config, data.load(config.data)) as run:
        state, line = rounds.set_up(run)
        states, lines = [state], [line]
        for number in range(1, 4):
            state, line = rounds.train_round(run, state, number)
            states.append(state)
            lines.append(line)
    return states, lines


@pytest.fixture(scope="module")
def three_rounds():
    return played()


def test_every_layer_moves_and_the_density_stays(three_rounds):
    states, lines = three_rounds
    total = kept_total(0.2, [m.size for m in states[0].masks.values()])
    for state, line in zip(states, lines, strict=True):
        assert sum(int(m.sum()) for m in state.masks.values()) == total
        assert line["density"] == density_of(state.masks)
        assert not any(state.tensors[name][~mask].any() for name, mask in state.masks.items())
    before, after = states[0], states[1]
    for name, mask in before.masks.items():
        grown = after.masks[name] & ~mask
        assert grown.any() == (not mask.all()), name
        assert int(after.masks[name].sum()) == int(mask.sum())
        assert not after.tensors[name][grown].any()
    assert all(np.array_equal(states[2].masks[n], states[3].masks[n]) for n in after.masks)


def test_extrusion_empties_what_is_about_to_be_pruned():
    """The weights that are the smallest as the round begins are far smaller as it ends, if they are pressed."""
    left = {}
    for weight in (0.0, 1.0):
        flags = {"rounds": 5, "clients": 3, "width": 4, "adjust_every": 1, "public": "none", "extrusion_weight": weight}
        config = settle(apply_flags(Config(), {"method": "fedmef", **flags}))
        with opened(config, data.load(config.data)) as run:
            state, _ = rounds.set_up(run)
            orders = fedmef.orders(run.setting, state, 1)
            outcome, _ = rounds.one_round(run, state, 1, orders, Traffic(1), 0.05)
        lowest = []
        for name, count in orders.top.items():
            live = np.flatnonzero(state.masks[name])
            size = np.abs(state.tensors[name].reshape(-1)[live])
            lowest.append(outcome.state.tensors[name].reshape(-1)[live[np.argsort(size)[:count]]])
        left[weight] = float(np.linalg.norm(np.concatenate(lowest)))
    assert left[1.0] < 0.5 * left[0.0]


@pytest.mark.parametrize("style", [[], ["--norm", "batch"]])
def test_a_run_repeats_itself_goes_on_and_reaches_a_device(style, tmp_path, tools):
    train, small, contents, _ = tools
    flags = ["--method", "fedmef", "--density", "0.3", "--no-first-dense", *style]
    run = small(tmp_path / "a", *flags)
    assert contents(run) == contents(small(tmp_path / "b", *flags, "--workers", "2"))
    whole = contents(run)
    for name in ("summary.json", "model.onnx", "ranges.json", "report.html"):
        (run / name).unlink()
    assert train("--resume", run) == 0
    assert contents(run) == whole
    summary = json.loads((run / "summary.json").read_text())
    assert summary["method"] == "fedmef"
    assert 0.29 < summary["density"] <= 0.3
    graph = onnx.load(run / "model.onnx").graph
    assert ("BatchNormalization" in {node.op_type for node in graph.node}) == bool(style)
    plain = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    assert not [name for name in plain if name.endswith("gain")]
    for layer in summary["layers"]:
        assert np.count_nonzero(plain[layer["name"]]) <= layer["kept"]
    with pytest.raises(SystemExit) as left:
        export_main([str(run), "--target", "esp32", "--out", str(tmp_path / "out")])
    assert not left.value.code
    golden = np.load(tmp_path / "out" / "golden.npz")
    made = oracles.tflite_micro((tmp_path / "out" / "model.tflite").read_bytes(), golden["inputs"])
    assert np.array_equal(made, golden["outputs"])
