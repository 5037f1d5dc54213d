"""FedPack: its schedule and shares by hand, and what must hold after every adjustment."""

from __future__ import annotations

import numpy as np
import pytest

from fedtiny_train import models
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.data import Shard
from fedtiny_train.masks import density_of, erk_counts, kept_total
from fedtiny_train.methods import Orders, Outcome, Services, fedpack, setting
from fedtiny_train.options import Config
from fedtiny_train.server import State

NOBODY = Services(
    lambda request, check, kept=None: pytest.fail("no client is asked here"),
    lambda state: state,
    Shard(-1, np.empty((0, 1, 8, 8), np.float32), np.empty(0, np.int64)),
)


def facts(width=16, **flags):
    config = settle(apply_flags(Config(), {"method": "fedpack", "model": "resnet8", "width": width, **flags}))
    return setting(config, models.ModelSpec("resnet8", (3, 32, 32), 10, width))


def fresh(found, seed=0):
    tensors = models.initial_state(found.spec, seed)
    return State(tensors, {name: np.ones(tensors[name].shape, np.bool_) for name in found.sizes})


def outcome(found, state, number, seed=0):
    """A round whose clients move every weight a little and send the gradients they were asked for."""
    generator = np.random.default_rng([seed, number])
    orders = fedpack.orders(found, state, number)
    moved = {
        name: (array + generator.normal(0, 0.01, array.shape).astype(np.float32)) * state.masks.get(name, True)
        for name, array in state.tensors.items()
    }
    after = State(moved, state.masks, state.memory, state.kept)
    gradients = {}
    for name, count in orders.top.items():
        pruned = np.flatnonzero(~state.masks[name])
        flat = np.zeros(state.masks[name].size, np.float32)
        flat[generator.permutation(pruned)[:count]] = generator.normal(0, 1, min(count, len(pruned)))
        gradients[name] = flat.reshape(state.masks[name].shape)
    return Outcome(number, state, after, {}, gradients, orders)


def test_growth_is_weighed_unless_told_otherwise():
    found, plain = facts(rounds=60, density=0.01), facts(rounds=60, density=0.01, weigh_growth=False)
    state = fedpack.begin(found, fresh(found), NOBODY)
    weighed, unweighed = fedpack.orders(found, state, 4), fedpack.orders(plain, state, 4)
    assert weighed.numbers == {"scale_by_norm": 1.0, "adjust": 1.0}
    assert unweighed.numbers == {"adjust": 1.0}
    assert weighed.top == unweighed.top


def test_what_a_layer_is_about_to_lose_is_pressed_if_asked():
    found = facts(rounds=60, density=0.01, press=True, extrusion_weight=0.5, lr=0.2)
    state = fedpack.begin(found, fresh(found), NOBODY)
    orders = fedpack.orders(found, state, 4)
    after = fedpack.shares(found, state, fedpack.density_at(found, 4))
    for name, mask in state.masks.items():
        lost = int(mask.sum()) - after[name] + orders.top.get(name, 0)
        assert orders.numbers.get(f"extrude/{name}", 0.0) == max(0, min(lost, int(mask.sum())))
    assert (orders.numbers["extrude_weight"], orders.numbers["extrude_lr"]) == (0.5, 0.2)
    assert not fedpack.orders(found, state, 5).numbers


def test_density_falls_by_the_cube_of_what_is_left():
    found = facts(rounds=60, density=0.01)
    assert fedpack.schedule(found) == (4, 40)
    assert fedpack.start_density(found) == 0.1
    assert fedpack.density_at(found, 20) == pytest.approx(0.01 + 0.09 / 8)
    assert fedpack.density_at(found, 40) == 0.01 == fedpack.density_at(found, 60)
    assert fedpack.start_density(facts(density=0.08)) == pytest.approx(0.32)
    assert fedpack.start_density(facts(density=0.5)) == 1.0
    assert fedpack.start_density(facts(density=0.02, start_density=0.05)) == 0.05
    assert fedpack.start_density(facts(density=0.2, start_density=0.05)) == 0.2


def test_shares_go_by_the_sum_of_a_layers_dimensions():
    # 4x3x3x3 (108 weights, sum 13) and 10x4 (40, sum 14): 27 weights are 13 and 14 of them
    assert erk_counts([(4, 3, 3, 3), (10, 4)], 27) == [13, 14]
    assert erk_counts([(4, 3, 3, 3), (2, 2)], 54) == [50, 4]  # the small layer is full, the rest goes on


def test_every_class_row_keeps_its_floor():
    found = facts(density=0.003, rounds=30)
    state = fedpack.begin(found, fresh(found), NOBODY)
    for number in range(1, 31):
        state = fedpack.learn(found, outcome(found, state, number))
    assert state.masks["fc.weight"].sum(axis=1).min() >= 3
    assert sum(int(m.sum()) for m in state.masks.values()) == kept_total(0.003, list(found.sizes.values()))


@pytest.mark.parametrize("global_share", [0.0, 0.5])
@pytest.mark.parametrize(("density", "rounds"), [(0.01, 50), (0.02, 7), (0.1, 3), (0.4, 60)])
def test_the_target_is_reached_exactly_and_never_left(density, rounds, global_share):
    found = facts(density=density, rounds=rounds, global_share=global_share)
    assert not found.dense
    state = fedpack.begin(found, fresh(found), NOBODY)
    totals = [sum(int(m.sum()) for m in state.masks.values())]
    for number in range(1, rounds + 1):
        state = fedpack.learn(found, outcome(found, state, number))
        totals.append(sum(int(m.sum()) for m in state.masks.values()))
        assert all(not state.tensors[name][~mask].any() for name, mask in state.masks.items())
    assert totals[0] == kept_total(fedpack.start_density(found), list(found.sizes.values()))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == kept_total(density, list(found.sizes.values()))
    assert density_of(state.masks) <= density
    assert all(mask.any() for mask in state.masks.values())


def test_momentum_carries_the_servers_step_on():
    found = facts(server_momentum=0.5, rounds=100)
    before = State({"b": np.array([1.0], np.float32)}, {})
    first = fedpack.learn(found, Outcome(1, before, State({"b": np.array([3.0], np.float32)}, {}), {}, {}, Orders()))
    assert first.tensors["b"].tolist() == [3.0]  # a step of 2
    again = State({"b": np.array([4.0], np.float32)}, {}, {}, first.kept)
    second = fedpack.learn(found, Outcome(2, first, again, {}, {}, Orders()))
    assert second.tensors["b"].tolist() == [5.0]  # a step of 1, and half of the last one


def test_the_last_rounds_are_averaged_at_the_end():
    found = facts(average_last=0.3, rounds=10)
    state = State({"b": np.array([0.0], np.float32)}, {})
    for number, value in enumerate([100.0] * 7 + [1.0, 2.0, 6.0], start=1):
        after = State({"b": np.array([value], np.float32)}, {}, {}, state.kept)
        state = fedpack.learn(found, Outcome(number, state, after, {}, {}, Orders()))
    assert state.tensors["b"].tolist() == [6.0]
    assert fedpack.close(found, state, NOBODY).tensors["b"].tolist() == [3.0]
