"""The baseline methods: their equations against numbers worked out by hand, and the counts they must keep."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtiny_train import masks, models
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.data import Shard
from fedtiny_train.habits import Lesson, habits
from fedtiny_train.methods import Orders, Outcome, Services, Setting, feddst, lotteryfl, method, prunefl, setting
from fedtiny_train.options import Config
from fedtiny_train.server import State
from fedtiny_train.wire import Message, Sparse, masked

PUBLIC = Shard(-1, np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), np.arange(8) % 3)
SPEC = models.ModelSpec("mlp", (6,), 3, 2)
FIXED = ["random", "erk", "magnitude", "snip", "synflow", "rigl", "feddst", "prunefl", "fl-pqsu"]


def services(public=PUBLIC):
    return Services(lambda request, check, kept=None: pytest.fail("no client is asked here"), lambda s: s, public)


def configured(**flags):
    return settle(apply_flags(Config(), flags))


def plain(sizes, dense=(), **flags):
    """Facts about layers that no network has; the last one is the classifier."""
    return Setting(configured(**flags), SPEC, sizes, frozenset(dense), ())


def state_of(tensors, kept=None):
    arrays = {name: np.array(values, np.float32) for name, values in tensors.items()}
    live = {name: np.ones(a.shape, np.bool_) for name, a in arrays.items()}
    return State(arrays, live).with_masks({name: np.array((kept or live)[name], np.bool_) for name in live})


def outcome(number, state, orders=None, messages=None, gradients=None):
    return Outcome(number, state, state, messages or {}, gradients or {}, orders or Orders())


def test_uniform_counts_by_hand():
    assert masks.uniform_counts([10, 20, 30], 12) == [2, 4, 6]
    assert masks.uniform_counts([1, 1, 98], 10) == [1, 1, 8]  # no layer is left empty


def test_magnitude_keeps_the_largest_of_each_layer():
    found = plain({"a": 6, "b": 4}, density=0.5, row_floor=0)
    state = state_of({"a": [[1, -9, 2], [8, 0, 3]], "b": [[5, 6], [1, 2]]})
    made = method("magnitude").begin(found, state, services())
    assert made.masks["a"].tolist() == [[False, True, False], [True, False, True]]
    assert made.masks["b"].tolist() == [[True, True], [False, False]]
    assert made.tensors["a"].tolist() == [[0, -9, 0], [8, 0, 3]]
    floored = method("magnitude").begin(plain({"a": 6, "b": 4}, density=0.5, row_floor=1), state, services())
    assert floored.masks["b"].tolist() == [[False, True], [False, True]]  # each class keeps one


def test_rigl_moves_all_layers_until_three_quarters():
    found = plain({"a": 100, "b": 40}, method="rigl", density=0.5, rounds=100, local_epochs=2)
    live = {"a": np.arange(100) < 50, "b": np.arange(40) < 20}
    state = state_of({"a": np.ones(100), "b": np.ones(40)}, live)
    rigl = method("rigl")
    assert rigl.orders(found, state, 4) == Orders()  # delta-R is 100 / 30, 3
    # 0.15 (1 + cos(pi 3 / 75)) = 0.29882 of the live weights, rounded up
    assert rigl.orders(found, state, 3).top == {"a": 15, "b": 6}
    assert rigl.orders(found, state, 39).top == {"a": 8, "b": 3}  # 0.15 (1 - 0.06279): 7.03 and 2.81
    assert rigl.orders(found, state, 75).top == {}  # the cosine has come down to 0
    assert rigl.orders(found, state, 78) == Orders()
    half = plain({"a": 100, "b": 40}, density=0.5, rounds=100, adjust_until=50)
    assert rigl.orders(half, state, 51).top == {}


def test_rigl_swaps_by_hand():
    found = plain({"a": 6, "b": 4}, density=0.5, row_floor=0)
    state = state_of({"a": [0.1, -0.9, 0.5, 0, 0, 0], "b": [1, 2, 0, 0]}, {"a": [1, 1, 1, 0, 0, 0], "b": [1, 1, 0, 0]})
    gradients = {"a": np.array([0, 0, 0, 0.2, -0.8, 0.3], np.float32), "b": np.array([0, 0, 0, 1], np.float32)}
    made = method("rigl").learn(found, outcome(3, state, Orders({"a": 2, "b": 1}), gradients=gradients))
    assert made.masks["a"].tolist() == [False, True, False, False, True, True]
    assert made.tensors["a"].tolist() == [0, np.float32(-0.9), 0, 0, 0, 0]  # what grew is zero
    assert made.masks["b"].tolist() == [False, True, False, True]


def test_feddst_orders_say_when_and_how_many():
    sizes = {"a": 100, "b": 40}
    state = state_of({"a": np.ones(100), "b": np.ones(40)}, {"a": np.arange(100) < 50, "b": np.arange(40) < 20})
    for epochs, moment in ((1, 1.0), (2, 1.0), (5, 4.0)):
        found = plain(sizes, density=0.5, rounds=60, local_epochs=epochs)
        asked = feddst.orders(found, state, 2)  # 0.15 (1 + cos(pi 2 / 30)) = 0.29672 of 50 and of 20
        assert dict(asked.numbers) == {"swap/a": 15.0, "swap/b": 6.0, "swap_epoch": moment}
        assert asked.own_masks
        assert not asked.top
    assert feddst.orders(found, state, 3) == Orders()
    assert feddst.orders(found, state, 32) == Orders()  # R_stop is half of the rounds


def test_feddst_starts_from_the_largest_weights_with_erk_shares():
    found = plain({"a": 40, "b": 8}, density=0.25, row_floor=0)
    weights = np.arange(40, dtype=np.float32).reshape(4, 10)
    made = method("feddst").begin(found, state_of({"a": weights, "b": [[4, 3, -9, 2], [2, 1, 5, 0]]}), services())
    # 12 weights; the shares are as 4 + 10 to 2 + 4, so 8.4 and 3.6
    assert made.masks["a"].reshape(-1).tolist() == [False] * 32 + [True] * 8
    assert made.masks["b"].tolist() == [[True, True, True, False], [False, False, True, False]]


def test_feddst_joins_by_hand():
    def update(samples, places, values):
        return Message("update", {"samples": samples}, {"w": Sparse((4,), np.array(places), np.array(values, "f4"))})

    messages = {0: update(1, [0, 1], [2, 4]), 1: update(3, [0, 2], [6, -8])}
    weights, union = feddst.joined(messages, "w")
    assert weights.tolist() == [5.0, 4.0, -8.0, 0.0]  # (1 * 2 + 3 * 6) / 4, then each from its only owner
    assert union.tolist() == [True, True, True, False]
    state = state_of({"w": [1, 1, 0, 0]}, {"w": [1, 1, 0, 0]})
    found = plain({"w": 4}, density=0.5, row_floor=0)
    made = feddst.learn(found, outcome(3, state, Orders(own_masks=True), messages))
    assert made.masks["w"].tolist() == [True, False, True, False]
    assert made.tensors["w"].tolist() == [5.0, 0.0, -8.0, 0.0]
    assert feddst.learn(found, outcome(3, state, Orders(), messages)) is state  # other rounds are plain
    dense = {0: Message("update", {"samples": 2}, {"w": np.array([1, 2, 3, 4], np.float32)})}
    assert feddst.joined(dense, "w")[0].tolist() == [1, 2, 3, 4]


def test_feddst_prunes_again_within_the_union():
    union = np.array([[False, True, False], [True, True, True]])
    weights = np.array([[0.0, 0.0, 0.0], [3.0, 2.0, 1.0]], np.float32)
    assert feddst.pruned_again(weights, union, 3, 0).tolist() == [[False] * 3, [True] * 3]
    # A live zero goes before a position that nobody has.
    assert feddst.pruned_again(weights, union, 4, 0).tolist() == union.tolist()
    assert feddst.pruned_again(weights, union, 3, 1).tolist() == [[False, True, False], [True, True, False]]
    # A floor of 2 would need one that nobody has in the first row: all rows get the floor that this one has.
    assert feddst.pruned_again(weights, union, 4, 2).tolist() == union.tolist()


def lesson_of(weights, live, numbers, steps=2, per_epoch=1):
    layer = torch.nn.Linear(len(weights), 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    mask = torch.tensor([[bool(one) for one in live]])
    return layer, Lesson(layer, {"w": layer.weight}, {"w": mask}, numbers, steps, per_epoch)


def test_a_client_swaps_at_its_moment_by_hand():
    numbers = {"swap/w": 1.0, "swap_epoch": 2.0}
    layer, lesson = lesson_of([0.1, -0.5, 0.0, 0.0], [1, 1, 0, 0], numbers, steps=3)
    (swapping,) = habits(lesson)
    for step, gradient in enumerate([[0, 0, 9.0, 1.0], [0, 0, 2.0, -3.0], [0, 0, 9.0, 1.0]]):
        layer.weight.grad = torch.tensor([gradient])
        swapping.after_backward(step)
        with torch.no_grad():
            swapping.after_step(step)
    assert lesson.masks["w"].tolist() == [[False, True, False, True]]  # by the second epoch's batch, and once
    assert layer.weight.tolist() == [[0.0, -0.5, 0.0, 0.0]]


def test_a_dropped_weight_may_come_back():
    layer, lesson = lesson_of([0.1, -0.5, 0.0], [1, 1, 0], {"swap/w": 1.0, "swap_epoch": 2.0}, steps=2)
    (swapping,) = habits(lesson)
    layer.weight.grad = torch.tensor([[5.0, 0.0, 1.0]])
    for step in range(2):
        swapping.after_backward(step)
        with torch.no_grad():
            swapping.after_step(step)
    assert lesson.masks["w"].tolist() == [[True, True, False]]
    assert layer.weight.tolist() == [[0.0, -0.5, 0.0]]  # but begins again from zero


def test_squares_are_the_mean_over_all_batches_by_hand():
    layer, lesson = lesson_of([1.0, 0.0, 0.0], [1, 0, 0], {"top/w": 2.0, "squares": 1.0})
    (sending,) = habits(lesson)
    for step, gradient in enumerate([[7.0, 1.0, -2.0], [7.0, 3.0, 4.0]]):
        layer.weight.grad = torch.tensor([gradient])
        sending.after_backward(step)
    sent = sending.results()["top/w"]
    assert sent.indices.tolist() == [1, 2]
    assert sent.values.tolist() == [5.0, 10.0]  # (1 + 9) / 2 and (4 + 16) / 2


def test_squares_are_scaled_as_gradients_before_they_are_squared():
    model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.BatchNorm1d(1))
    model[1].running_var[:] = 4 - model[1].eps
    mask = {"0.weight": torch.tensor([[False, False]])}
    numbers = {"top/0.weight": 2.0, "squares": 1.0, "scale_by_norm": 1.0}
    (sending,) = habits(Lesson(model, {"0.weight": model[0].weight}, mask, numbers, 1, 1))
    model[0].weight.grad = torch.tensor([[1.0, 3.0]])
    sending.after_backward(0)
    assert sending.results()["top/0.weight"].values.tolist() == pytest.approx([4.0, 36.0])  # (2 * 1)^2, (2 * 3)^2


def test_prunefl_asks_for_every_pruned_position_of_inner_layers():
    names = ("stem.weight", "stack.conv.weight", "stack.shortcut.weight", "fc.weight")
    sizes = dict.fromkeys(names, 100)
    state = state_of(
        {n: np.ones((10, 10, 1, 1)) for n in sizes}, {n: np.arange(100).reshape(10, 10, 1, 1) < 20 for n in sizes}
    )
    found = plain(sizes, density=0.2, rounds=300)
    asked = prunefl.orders(found, state, 10)
    assert dict(asked.top) == {"stack.conv.weight": 80}
    assert asked.numbers["squares"] == 1.0
    every = plain(sizes, dense=["stem.weight"], density=0.2, rounds=300, adjust_all=True)
    assert dict(prunefl.orders(every, state, 10).top) == dict.fromkeys(names[1:], 80)
    assert prunefl.orders(found, state, 11) == Orders()
    assert prunefl.orders(found, state, 110) == Orders()
    features = state_of({"fc1": np.ones((10, 10)), "fc2": np.ones((10, 10))}, {"fc1": np.eye(10), "fc2": np.eye(10)})
    # A perceptron has no first convolution, and its first layer moves.
    assert dict(prunefl.orders(plain({"fc1": 100, "fc2": 100}, density=0.2, rounds=300), features, 10).top) == {
        "fc1": 90
    }


def test_prunefl_swaps_a_t_weights_by_hand():
    found = plain({"w": 10, "fc": 2}, density=0.5, rounds=300, local_epochs=1)
    live = {"w": [1] * 5 + [0] * 5, "fc": [1, 1]}
    state = state_of({"w": [5, 0.1, 4, 0.2, 3, 0, 0, 0, 0, 0], "fc": [1, 1]}, live)
    squares = {"w": np.array([0] * 5 + [1, 9, 2, 8, 3], np.float32)}
    orders = Orders({"w": 5}, {"squares": 1.0})
    # t = 10 of 100: 0.15 (1 + cos(pi / 10)) * 5 = 1.46, rounded up to 2, though five squares came
    made = prunefl.learn(found, outcome(10, state, orders, gradients=squares))
    assert np.flatnonzero(made.masks["w"]).tolist() == [0, 2, 4, 6, 8]
    assert made.tensors["w"].tolist() == [5, 0, 4, 0, 3, 0, 0, 0, 0, 0]


def test_lotteryfl_thins_out_in_equal_steps():
    found = plain({"a": 80, "b": 20}, density=0.1, rounds=9, adjust_every=2, adjust_until=7, row_floor=0)
    state = state_of({"a": np.arange(80) + 1.0, "b": -np.arange(20) - 1.0})
    state = method("lotteryfl").begin(found, state, services())
    counts = []
    for number in range(1, 10):
        state = method("lotteryfl").learn(found, outcome(number, state))
        counts.append([int(state.masks["a"].sum()), int(state.masks["b"].sum())])
    # three steps: 1 - 0.9 / 3, 1 - 0.9 * 2 / 3, 0.1
    assert counts == [[80, 20], [56, 14], [56, 14], [32, 8], [32, 8], [8, 2], [8, 2], [8, 2], [8, 2]]
    assert np.flatnonzero(state.masks["a"]).tolist() == list(range(72, 80))
    assert state.tensors["b"].tolist() == [0] * 18 + [-19, -20]


@pytest.mark.parametrize(
    ("every", "until", "expected"),
    [(0, 0, (10, 100)), (5, 400, (5, 300)), (50, 20, (20, 20)), (400, 350, (300, 300))],
)
def test_lotteryfl_always_reaches_its_density(every, until, expected):
    found = plain({"a": 100}, density=0.1, rounds=300, adjust_every=every, adjust_until=until)
    assert lotteryfl.schedule(found) == expected


def test_lotteryfl_rewinds_the_survivors_only_if_asked():
    sizes, options = {"w": 4}, {"density": 0.5, "rounds": 2, "adjust_every": 1, "adjust_until": 1, "row_floor": 0}
    first = state_of({"w": [1, 2, 3, 4], "bias": [7]})
    first = State(first.tensors, {"w": first.masks["w"]})
    for rewind, expected, bias in ((True, [1, 2, 0, 0], 7), (False, [40, 30, 0, 0], 9)):
        found = plain(sizes, rewind=rewind, **options)
        state = method("lotteryfl").begin(found, first, services())
        trained = {"w": np.array([40, 30, 20, 10], np.float32), "bias": np.array([9], np.float32)}
        state = State(trained, state.masks, kept=state.kept)
        made = method("lotteryfl").learn(found, outcome(1, state))
        assert made.tensors["w"].tolist() == expected
        assert made.tensors["bias"].tolist() == [bias]


def facts(name, density, **flags):
    return setting(configured(method=name, density=density, rounds=6, adjust_every=1, adjust_until=6, **flags), SPEC)


def fresh(found, seed=0):
    tensors = models.initial_state(found.spec, seed)
    return State(tensors, {name: np.ones(tensors[name].shape, np.bool_) for name in found.sizes})


densities = st.floats(0.06, 1.0)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", FIXED)
@given(density=densities, seed=st.integers(0, 99), floor=st.integers(0, 3))
@quick
def test_the_first_masks_keep_the_density_to_the_weight(name, density, seed, floor):
    found = facts(name, density, seed=seed, row_floor=floor)
    state = method(name).begin(found, fresh(found, seed), services())
    assert sum(int(m.sum()) for m in state.masks.values()) == masks.kept_total(density, list(found.sizes.values()))
    assert all(mask.any() for mask in state.masks.values())
    assert all(not state.tensors[n][~mask].any() for n, mask in state.masks.items())


def told(state, orders, generator):
    """What two clients could answer to orders: updates under their masks, and the mean of their gradients."""
    messages = {}
    for client, samples in enumerate((5, 7)):
        tensors = {}
        for name, mask in state.masks.items():
            live = mask if not orders.own_masks else masks.random_mask(mask.shape, int(mask.sum()), generator)
            tensors[name] = masked(generator.normal(size=mask.shape).astype(np.float32) * live, live)
        messages[client] = Message("update", {"samples": samples, "loss": 1.0}, tensors)
    gradients = {}
    for name, count in orders.top.items():
        dense = generator.normal(size=state.masks[name].shape).astype(np.float32)
        indices, values = masks.top_gradients(dense, state.masks[name], count)
        gradients[name] = Sparse(dense.shape, indices, values).dense()
    return messages, gradients


@pytest.mark.parametrize("name", ["rigl", "feddst", "prunefl"])
@given(density=densities, seed=st.integers(0, 99), floor=st.integers(0, 3))
@quick
def test_moving_weights_keeps_every_layers_count(name, density, seed, floor):
    found = facts(name, density, seed=seed, row_floor=floor)
    generator = np.random.default_rng(seed)
    state = method(name).begin(found, fresh(found, seed), services())
    first = {n: int(mask.sum()) for n, mask in state.masks.items()}
    for number in range(1, 7):
        trained = {n: (generator.normal(size=m.shape) * m).astype(np.float32) for n, m in state.masks.items()}
        state = State(state.tensors | trained, state.masks)
        orders = method(name).orders(found, state, number)
        messages, gradients = told(state, orders, generator)
        state = method(name).learn(found, Outcome(number, state, state, messages, gradients, orders))
        assert {n: int(mask.sum()) for n, mask in state.masks.items()} == first
        assert all(not state.tensors[n][~mask].any() for n, mask in state.masks.items())


@given(density=densities, seed=st.integers(0, 99), floor=st.integers(0, 3))
@quick
def test_lotteryfl_falls_to_the_density_and_never_grows(density, seed, floor):
    found = facts("lotteryfl", density, row_floor=floor)
    state = fresh(found, seed)
    seen = [state.masks]
    for number in range(1, 7):
        state = method("lotteryfl").learn(found, outcome(number, state))
        seen.append(state.masks)
    for before, after in itertools.pairwise(seen):
        assert all(not (after[n] & ~before[n]).any() for n in after)
    total = math.floor(density * sum(found.sizes.values()) + 1e-9)
    assert sum(int(m.sum()) for m in seen[-1].values()) == total
