"""FedTiny's own rules: the pool, the turns, the selection, and what its two switches do."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError, UsageError

from fedtiny_train import data, models, rounds
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.data import Shard
from fedtiny_train.masks import density_of, kept_total
from fedtiny_train.methods import Services, fedtiny, method, setting
from fedtiny_train.options import Config
from fedtiny_train.server import State
from fedtiny_train.session import Run, opened
from fedtiny_train.wire import Message

NO_SERVICES = Services(
    lambda request, check, kept=None: pytest.fail("no client is asked here"),
    lambda state: state,
    Shard(-1, np.empty((0, 1, 8, 8), np.float32), np.empty(0, np.int64)),
)


def configured(**flags) -> Config:
    return settle(apply_flags(Config(), flags))


def facts(width=16, **flags):
    return setting(configured(**flags), models.ModelSpec("resnet8", (1, 8, 8), 10, width))


def fresh(found) -> State:
    tensors = models.initial_state(found.spec, 0)
    return State(tensors, {name: np.ones(tensors[name].shape, np.bool_) for name in found.sizes})


@pytest.mark.parametrize(
    ("density", "pool", "size"), [(0.1, 0, 5), (0.05, 0, 5), (0.01, 0, 10), (0.001, 0, 100), (0.01, 3, 3)]
)
def test_pool_size(density, pool, size):
    assert fedtiny.pool_size(facts(width=64, density=density, pool=pool)) == size


@pytest.mark.parametrize(("rounds_", "expected"), [(300, (10, 100)), (60, (2, 20)), (3, (1, 1))])
def test_schedule_scales_with_the_rounds(rounds_, expected):
    assert fedtiny.schedule(facts(rounds=rounds_)) == expected


def test_blocks_are_taken_backward_and_cyclically():
    found = facts(rounds=300)
    state = fedtiny.begin(
        dataclasses.replace(found, config=configured(rounds=300, selection=False)), fresh(found), NO_SERVICES
    )
    turns = [sorted(dict(fedtiny.orders(found, state, r).top)) for r in (10, 20, 30, 40)]
    assert turns[0] == ["fc.weight", "stack3.conv1.weight", "stack3.conv2.weight", "stack3.shortcut.weight"]
    assert turns[1] == ["stack2.conv1.weight", "stack2.conv2.weight", "stack2.shortcut.weight"]
    assert turns[2] == ["stack1.conv1.weight", "stack1.conv2.weight"]
    assert turns[3] == turns[0]
    assert dict(fedtiny.orders(found, state, 15).top) == {}
    assert dict(fedtiny.orders(found, state, 110).top) == {}
    forward = facts(rounds=300, order="forward", granularity="layer")
    assert list(dict(fedtiny.orders(forward, state, 10).top)) == ["stack1.conv1.weight"]
    entire = facts(rounds=300, granularity="entire")
    assert sorted(dict(fedtiny.orders(entire, state, 10).top)) == sorted(
        n for n in found.sizes if n != "stem.conv.weight"
    )


def test_counts_follow_t_as_round_times_epochs():
    found = facts(rounds=300, local_epochs=5)
    state = fedtiny.begin(dataclasses.replace(found, config=configured(selection=False)), fresh(found), NO_SERVICES)
    live = int(state.masks["fc.weight"].sum())
    # t = 50 * 5 of R_stop E = 500: the cosine is zero, so 0.15 of the live weights. Round 50 is the second
    # block's turn, so the count is taken from the layer-wise setting, whose fifth turn is stack2.conv2.
    layer = facts(rounds=300, local_epochs=5, granularity="layer")
    name, count = next(iter(dict(fedtiny.orders(layer, state, 50).top).items()))
    assert count == int(np.ceil(0.15 * state.masks[name].sum() - 1e-9))
    assert dict(fedtiny.orders(found, state, 10).top)["fc.weight"] == int(
        np.ceil(0.15 * (1 + np.cos(np.pi / 10)) * live)
    )


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.37, 1.0])
def test_candidates_keep_the_density_to_the_weight_and_differ(density):
    found = facts(density=density)
    pool = fedtiny.candidates(found, fresh(found))
    total = kept_total(density, list(found.sizes.values()))
    assert {sum(int(m.sum()) for m in masks.values()) for masks in pool} == {total}
    assert all(masks["stem.conv.weight"].all() for masks in pool)
    assert all(mask.any() for masks in pool for mask in masks.values())
    if density < 1:
        assert len({tuple(int(m.sum()) for m in masks.values()) for masks in pool}) == len(pool)


def test_random_masks_prune_the_same_layers_to_the_same_total():
    ours, other = facts(density=0.05), facts(density=0.05, method="random")
    assert ours.maskable == other.maskable
    state = method("random").begin(other, fresh(other), NO_SERVICES)
    assert density_of(state.masks) == pytest.approx(0.05, abs=1 / 77072)
    assert sum(int(m.sum()) for m in state.masks.values()) == ours.budget + 144
    shares = [state.masks[name].mean() for name in other.maskable]
    assert max(shares) - min(shares) < 0.01


def test_a_density_that_empties_a_layer_is_refused():
    with pytest.raises(
        UsageError, match=r"left dense have 144 and each of 9 others needs one; use --density 0\.0020 or more"
    ):
        facts(density=0.001)
    assert facts(density=0.001, first_dense=False).budget == 77


def test_statistics_are_pooled_by_hand():
    def adapted(samples, mean, var):
        return Message(
            "adapted",
            {"samples": samples},
            {"0/bn.running_mean": np.array([mean]), "0/bn.running_var": np.array([var])},
        )

    messages = {0: adapted(1, 0.0, 1.0), 1: adapted(3, 4.0, 3.0), 2: Message("adapted", {"samples": 1})}
    found = fedtiny.pool_statistics(messages, ["0/bn.running_mean", "0/bn.running_var"])
    assert found["0/bn.running_mean"].tolist() == [3.0]
    assert found["0/bn.running_var"].tolist() == [5.5]
    assert fedtiny.pool_statistics({2: messages[2]}, ["0/bn.running_mean"]) == {}


def only(found, dense_name=None):
    """A sabotaged mask: one weight a layer, and one layer whole."""
    masks = {}
    for name, array in fresh(found).masks.items():
        masks[name] = np.zeros_like(array)
        masks[name].reshape(-1)[0] = True
        if name in {dense_name, *found.dense}:
            masks[name][...] = True
    return masks


@pytest.mark.parametrize(("density", "seed"), [(0.05, 0), (0.1, 1)])
def test_sabotaged_candidates_are_never_chosen(density, seed, monkeypatch):
    config = configured(density=density, seed=seed, pool=2, clients=5)
    sound = fedtiny.candidates

    def sabotaged(found, state):
        empty = {name: np.zeros_like(mask) for name, mask in state.masks.items()}
        one = state.masks | {"stack2.conv1.weight": np.zeros_like(state.masks["stack2.conv1.weight"])}
        bad = [empty, one, only(found), only(found, "fc.weight"), only(found, "stack3.conv2.weight")]
        return bad + sound(found, state)

    monkeypatch.setattr(fedtiny, "candidates", sabotaged)
    with opened(config, data.load(config.data)) as run:
        state, _ = rounds.set_up(run)
    # The empty mask and the one with an empty layer are no candidates; of the five left, two are sound.
    found = state.memory["selection"]
    assert len(found["losses"]) == 5
    assert found["chosen"] in (3, 4)
    assert density_of(state.masks) == pytest.approx(density, abs=1e-4)


def test_nothing_but_empty_candidates_is_an_error():
    found = facts()
    state = fresh(found)
    empty = state.with_masks({name: np.zeros_like(mask) for name, mask in state.masks.items()})
    with pytest.raises(FedtinyError, match="every candidate mask"):
        fedtiny.select(found, [empty], None)


@pytest.fixture(scope="module")
def short():
    """Three rounds with an adjustment in each, at five clients."""

    @functools.cache
    def train(**flags):
        config = configured(
            rounds=3,
            clients=3,
            seed=2,
            width=4,
            local_epochs=1,
            adjust_every=1,
            adjust_until=4,
            tune_epochs=2,
            pool=3,
            **flags,
        )
        with opened(config, data.load(config.data)) as run:
            state, line = rounds.set_up(run)
            found, lines = [state], [line]
            for number in range(1, 4):
                state, line = rounds.train_round(run, state, number)
                found.append(state)
                lines.append(line)
        return found, lines

    return train


def test_each_switch_changes_the_run(short):
    def final(**flags):
        states, _ = short(**flags)
        return {name: a.tobytes() for name, a in states[-1].tensors.items()}

    whole = final()
    # Seed 2 chooses another candidate than the first one, which is what is taken without selection.
    assert short()[0][0].memory["selection"]["chosen"] != 0
    for flags in (
        {"selection": False},
        {"progressive": False},
        {"order": "forward"},
        {"granularity": "entire"},
        {"scale_by_norm": True},
        {"warmup_rounds": 1},
    ):
        assert final(**flags) != whole, flags


def test_masks_move_and_keep_their_density(short):
    states, lines = short(density=0.2)
    total = kept_total(0.2, [m.size for m in states[0].masks.values()])
    for state, line in zip(states, lines, strict=True):
        assert sum(int(m.sum()) for m in state.masks.values()) == total
        assert line["density"] == density_of(state.masks)
        for name, mask in state.masks.items():
            assert not state.tensors[name][~mask].any()
    blocks = ["stack3.conv1.weight", "stack2.conv1.weight", "stack1.conv1.weight"]
    for before, after, moved in zip(states, states[1:], blocks, strict=False):
        grown = after.masks[moved] & ~before.masks[moved]
        assert grown.any()
        assert not after.tensors[moved][grown].any()  # grown weights start at zero
        still = [name for name in blocks if name != moved]
        assert all(np.array_equal(after.masks[name], before.masks[name]) for name in still)
    frozen, _ = short(density=0.2, progressive=False)
    assert all(np.array_equal(frozen[0].masks[n], frozen[-1].masks[n]) for n in frozen[0].masks)


def test_gradients_cost_bytes_only_where_asked_for(short):
    _, moving = short()
    _, still = short(progressive=False)
    assert moving[1]["bytes_up"] > still[1]["bytes_up"]
    assert moving[1]["flops_max"] > still[1]["flops_max"]
    assert moving[1]["memory_max"] > still[1]["memory_max"]


def test_learning_rate_is_a_cosine():
    config = configured(rounds=5, lr=1.0, lr_final=0.0)
    assert [round(rounds.learning_rate(config, r), 4) for r in range(1, 6)] == [1.0, 0.8536, 0.5, 0.1464, 0.0]


def test_participation_draws_anew_each_round():
    config = configured(clients=10, participation=0.3)
    with opened(config, data.load(config.data)) as run:
        assert isinstance(run, Run)
        drawn = [rounds.taking_part(run, number) for number in range(1, 20)]
    assert all(len(set(who)) == 3 and who == sorted(who) for who in drawn)
    assert len({tuple(who) for who in drawn}) > 5
