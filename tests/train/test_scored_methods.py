"""SNIP, SynFlow, FL-PQSU and the small dense network, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fedtiny_export.errors import FedtinyError, UsageError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedtiny_train import client, models, packing, wire
from fedtiny_train.client import LocalSpec
from fedtiny_train.config import apply_flags, settle
from fedtiny_train.data import Shard
from fedtiny_train.engine import Order
from fedtiny_train.methods import Orders, Services, Setting, fl_pqsu, method, scoring, setting, small, snip, synflow
from fedtiny_train.options import Config
from fedtiny_train.server import Answers, State, update_check
from fedtiny_train.wire import Message, Sparse

SPEC = models.ModelSpec("mlp", (2,), 3, 1)
GENERATOR = np.random.default_rng(5)
PUBLIC = Shard(-1, GENERATOR.normal(size=(12, 2)).astype(np.float32), np.arange(12) % 3)
NOBODY = Shard(-1, np.empty((0, 2), np.float32), np.empty(0, np.int64))


def services(public=PUBLIC, ask=lambda request, check, kept=None: pytest.fail("no client is asked here")):
    return Services(ask, lambda state: state, public)


def configured(**flags):
    return settle(apply_flags(Config(), flags))


def plain(sizes, **flags):
    return Setting(configured(**flags), SPEC, sizes, frozenset(), ())


def dense_state(tensors):
    arrays = {name: np.array(values, np.float32) for name, values in tensors.items()}
    return State(arrays, {name: np.ones(a.shape, np.bool_) for name, a in arrays.items()})


def network_state(seed=3):
    """A perceptron that has seen something: statistics and shifts are not those it was drawn with."""
    tensors, generator = models.initial_state(SPEC, seed), np.random.default_rng(seed)
    for name in tensors:
        if "running_mean" in name or name.endswith("bias"):
            tensors[name] = generator.normal(size=tensors[name].shape).astype(np.float32)
        elif "running_var" in name:
            tensors[name] = generator.uniform(0.5, 2, tensors[name].shape).astype(np.float32)
    sizes = {name: weight.numel() for name, weight in models.prunable(models.build(SPEC)).items()}
    return State(tensors, {name: np.ones(tensors[name].shape, np.bool_) for name in sizes})


def test_densities_fall_as_asked():
    found = plain({"w": 100}, density=0.1, score_steps=4)
    assert [scoring.density_after(found, i) for i in (1, 2, 3, 4)] == pytest.approx([0.775, 0.55, 0.325, 0.1])
    found = plain({"w": 100}, density=0.0625, score_steps=4, score_schedule="exponential")
    assert [scoring.density_after(found, i) for i in (1, 2, 3, 4)] == [0.5, 0.25, 0.125, 0.0625]


def test_a_competition_leaves_every_layer_its_best():
    scores = {"a": np.array([9.0, 8, 7]), "b": np.array([[1.0, 2.0]]), "c": np.array([6.0, 0.5])}
    assert scoring.global_counts(scores, 3) == {"a": 1, "b": 1, "c": 1}
    assert scoring.global_counts(scores, 4) == {"a": 2, "b": 1, "c": 1}
    assert scoring.global_counts(scores, 6) == {"a": 3, "b": 2, "c": 1}
    assert scoring.global_counts(scores, 7) == {"a": 3, "b": 2, "c": 2}


@pytest.mark.parametrize(("scope", "kept"), [("global", (3, 1)), ("layer", (2, 2))])
def test_scope_decides_who_competes(scope, kept):
    found = plain({"a": 4, "b": 4}, density=0.5, score_scope=scope, row_floor=0)
    scores = {"a": np.array([6.0, 7, 8, 9]), "b": np.array([1.0, 2, 3, 4])}
    made = scoring.masks_of(found, {}, scores, 4)
    assert np.flatnonzero(made["a"]).tolist() == [1, 2, 3][-kept[0] :]
    assert np.flatnonzero(made["b"]).tolist() == [2, 3][-kept[1] :]


def test_snip_scores_anew_and_a_pruned_weight_may_come_back(monkeypatch):
    found = plain({"w": 4}, density=0.25, score_steps=2, row_floor=0)
    seen = []

    def gradients(setting, state, services):
        seen.append(state.tensors["w"].tolist())
        return {"w": np.array([[1, -1, 1.2, 1], [0.1, 0.2, 3, -1]][len(seen) - 1], np.float32)}

    monkeypatch.setattr(snip, "gradients", gradients)
    made = method("snip").begin(found, dense_state({"w": [4, -3, 2, 1]}), services())
    # |w g| is 4 3 2.4 1, of which 62.5 % of 4 stay; then 0.4 0.6 6 1, of which one stays.
    assert seen == [[4, -3, 2, 1], [4, -3, 0, 0]]
    assert made.tensors["w"].tolist() == [0, 0, 2, 0]


def test_snips_score_is_what_the_loss_does_when_a_weight_is_scaled():
    state = network_state()
    half = {n: np.arange(m.size).reshape(m.shape) % 3 > 0 for n, m in state.masks.items()}
    state = state.with_masks(half)
    found = snip.gradients(setting(configured(density=0.5), SPEC), state, services())
    model = models.build(SPEC).double()
    x, y = torch.from_numpy(PUBLIC.x).double(), torch.from_numpy(PUBLIC.y)

    def loss(name, at, factor):
        changed = {n: a.astype(np.float64) for n, a in state.tensors.items()}
        changed[name].reshape(-1)[at] *= factor
        models.load(model, changed)
        model.eval()
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    for name, gradient in found.items():
        for at in np.flatnonzero(state.masks[name])[:6]:
            slope = (loss(name, at, 1 + 1e-6) - loss(name, at, 1 - 1e-6)) / 2e-6
            weight = state.tensors[name].reshape(-1)[at]
            # float32 against float64: single precision is what limits it
            assert weight * gradient.reshape(-1)[at] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_without_public_data_the_clients_are_asked():
    local = LocalSpec(SPEC, 0, 4, 1, 0.9, 0.0)
    shards = [
        Shard(k, GENERATOR.normal(size=(n, 2)).astype(np.float32), np.arange(n) % 3) for k, n in ((0, 10), (1, 30))
    ]
    answers = {}

    def ask(request, check, kept=None):
        for shard in shards:
            reply = wire.decode(client.answer(Order(shard.client, wire.encode(request)), shard, local).body)
            check(reply)
            answers[shard.client] = reply
        return Answers(answers, (), 0, 0, {})

    state = network_state()
    found = snip.gradients(setting(configured(density=0.5), SPEC), state, services(NOBODY, ask))
    assert [answers[k].numbers["samples"] for k in (0, 1)] == [1, 3]  # a tenth of their data
    for name, gradient in found.items():
        expected = (answers[0].array(name) + 3 * answers[1].array(name).astype(np.float64)) / 4
        assert gradient == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message("update", {"samples": 1}), "not a 'saliency'"),
        (Message("saliency", {"samples": 1}, {}), "w is missing"),
        (Message("saliency", {}, {"w": np.zeros(4)}), "samples is missing"),
        (Message("saliency", {"samples": 0}, {"w": np.zeros(4)}), "speaks for 0 samples"),
        (Message("saliency", {"samples": 1}, {"w": np.zeros(5)}), r"shape \(5,\), not \(4,\)"),
        (Message("saliency", {"samples": 1}, {"w": np.array([0, np.nan, 0, 0])}), "not finite"),
    ],
)
def test_bad_gradients_are_refused(message, reason):
    with pytest.raises(FedtinyError, match=reason):
        snip.saliency_check(dense_state({"w": [1, 2, 3, 4]}))(message)


def test_flow_by_hand():
    state = network_state()
    t = {name: np.abs(a.astype(np.float64)) for name, a in state.tensors.items()}
    first, second = (t[f"bn{i}.weight"] / np.sqrt(t[f"bn{i}.running_var"] + 1e-5) for i in (1, 2))
    a1 = first * t["fc1.weight"].sum(axis=1) + t["bn1.bias"]
    a2 = second * (t["fc2.weight"] @ a1) + t["bn2.bias"]
    out = t["fc3.weight"].sum(axis=0)  # dR/da2
    back = (out * second) @ t["fc2.weight"]  # dR/da1
    expected = {
        "fc1.weight": t["fc1.weight"] * (back * first)[:, None],
        "fc2.weight": t["fc2.weight"] * (out * second)[:, None] * a1,
        "fc3.weight": t["fc3.weight"] * a2,
    }
    before = {name: a.tobytes() for name, a in state.tensors.items()}
    found = synflow.flow(SPEC, state.tensors)
    assert {name: a.tobytes() for name, a in state.tensors.items()} == before
    assert list(found) == list(expected)
    for name, score in found.items():
        assert score == pytest.approx(expected[name], rel=1e-9), name


def test_synflow_never_brings_a_weight_back_and_keeps_signs():
    found = setting(configured(density=0.3, score_steps=5, score_scope="global", row_floor=0), SPEC)
    state = network_state()
    seen = []

    def watched(setting, masks, scores, total, real=scoring.masks_of):
        seen.append(real(setting, masks, scores, total))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "masks_of", watched)
        made = synflow.begin(found, state, services())
    assert len(seen) == 5
    for before, after in itertools.pairwise(seen):
        assert all(not (after[name] & ~before[name]).any() for name in after)
        assert sum(m.sum() for m in after.values()) < sum(m.sum() for m in before.values())
    for name, mask in made.masks.items():
        assert np.array_equal(made.tensors[name], state.tensors[name] * mask)


def test_filters_go_whole_and_the_last_one_is_trimmed():
    weights = np.array([[[1, 1], [1, 1]], [[5, 0], [3, 2]], [[0, -6], [0, 2]]], np.float32)  # norms 4, 10, 8
    assert fl_pqsu.filter_mask(weights, 4).tolist() == [[[False] * 2] * 2, [[True] * 2] * 2, [[False] * 2] * 2]
    six = fl_pqsu.filter_mask(weights, 6).reshape(3, 4)
    assert six.tolist() == [[False] * 4, [True] * 4, [False, True, False, True]]
    assert fl_pqsu.filter_mask(weights, 1).reshape(3, 4).tolist() == [
        [False] * 4,
        [True, False, False, False],
        [False] * 4,
    ]
    assert fl_pqsu.filter_mask(weights, 12).all()


def test_a_classifier_is_not_pruned_by_class():
    found = plain({"w": 6, "fc": 6}, density=0.5, row_floor=1)
    made = fl_pqsu.masks_of(found, dense_state({"w": [[3, 3], [1, 1], [2, 2]], "fc": [[3, 3], [1, 2], [2, 1]]}))
    assert made["w"].tolist() == [[True, True], [False, False], [True, False]]
    assert made["fc"].tolist() == [[True, False], [False, True], [True, False]]


def arrived(values, bits=8):
    return wire.decode(wire.encode(Message("m", {}, {"w": values}, bits))).tensors["w"]


def test_eight_bits_by_hand():
    assert arrived(np.array([0, 1, 2, 255], np.float32)).tolist() == [0, 1, 2, 255]  # the scale is 1
    # The scale is 2 / 255; 0.25 is 159.375 steps above -1, and goes to 159.
    assert arrived(np.array([-1, 0.25, 1], np.float32)).tolist() == pytest.approx([-1, 159 * 2 / 255 - 1, 1], rel=1e-6)
    assert arrived(np.full(5, 0.3, np.float32)).tolist() == [np.float32(0.3)] * 5
    two = Message("m", {}, {"w": np.array([0.1, 0.7], np.float32)})
    assert wire.encode(dataclasses.replace(two, bits=8)) == wire.encode(two)  # in full, which is shorter
    assert arrived(np.array([0.1, 0.7, 0.2])).tolist() == [0.1, 0.7, 0.2]  # only float32 is quantised
    sparse = arrived(Sparse((9,), np.array([1, 4, 5, 8]), np.array([-2, 0, 1, 508], np.float32)))
    assert sparse.indices.tolist() == [1, 4, 5, 8]
    assert sparse.values.tolist() == [-2, 0, 2, 508]  # a scale of 2: 1 is 1.5 steps up, and rounds to the even 2


def test_messages_of_eight_bits_are_four_times_shorter():
    values = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    full, short = (len(wire.encode(Message("m", {}, {"w": values}, bits))) for bits in (32, 8))
    assert full - short == 6400 * 4 - (6400 + 8)
    assert wire.decode(wire.encode(Message("m", {}, {"w": values}, 8))).bits == 8
    assert wire.decode(wire.encode(Message("m", {}, {"w": values}))).bits == 32


@given(hnp.arrays(np.float32, st.integers(3, 40), elements=st.floats(-(2.0**90), 2.0**90, width=32)))
def test_quantised_values_are_within_half_a_step(values):
    step = (float(values.max()) - float(values.min())) / 255
    size = float(np.abs(values).max())
    # Half a step, and what float32 makes of the scale (255 times over) and of the result.
    assert np.abs(arrived(values).astype(np.float64) - values).max() <= step / 2 + 2e-7 * size + 1e-40


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_arrives_as_that(bad):
    assert np.isnan(arrived(np.array([1, bad, 2, 3], np.float32))).all()


@given(st.data())
def test_a_damaged_quantised_message_is_refused_or_still_a_message(data):
    raw = bytearray(wire.encode(Message("m", {}, {"w": np.arange(9, dtype=np.float32)}, 8)))
    if data.draw(st.booleans()):
        with pytest.raises(wire.WireError):
            wire.decode(bytes(raw[: data.draw(st.integers(0, len(raw) - 1))]))
        return
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        wire.decode(bytes(raw))
    except wire.WireError:
        return


LOCAL = LocalSpec(SPEC, 0, 4, 1, 0.0, 0.0)


def asked(own=b"", bits=8):
    numbers = {"round": 1.0, "lr": 0.01} | Orders(may_skip=True).request()
    request = wire.encode(dataclasses.replace(network_state().message("train", numbers), bits=bits))
    reply = client.answer(Order(0, request, b"", own), dataclasses.replace(PUBLIC, client=0), LOCAL)
    return wire.decode(reply.body), reply


def noted(value):
    return wire.encode(Message("own", {}, {client.UPLOADED: np.asarray(value)}))


def test_a_client_uploads_only_what_is_better_than_its_last():
    update, first = asked()
    assert (update.kind, update.bits) == ("update", 8)
    loss = update.numbers["loss"]
    assert float(wire.decode(first.own).array(client.UPLOADED)) == loss
    for known in (noted(loss), noted(loss - 1)):
        skipped, reply = asked(known)
        assert (skipped.kind, dict(skipped.tensors)) == ("skipped", {})
        assert skipped.numbers["loss"] == loss
        assert len(reply.body) < 60 < len(first.body)
        assert reply.own == known
    again, reply = asked(noted(np.nextafter(loss, np.inf)))
    assert again.kind == "update"
    assert reply.own == first.own
    assert asked(bits=32)[0].bits == 32


@pytest.mark.parametrize("damaged", [[1.0, 2.0], np.nan])
def test_notes_that_hold_no_loss_are_refused(damaged):
    with pytest.raises(FedtinyError, match="client 0 noted of its last upload is no loss; start a new run"):
        asked(noted(damaged))


def test_a_skipped_upload_passes_only_where_it_is_allowed():
    state, skipped = network_state(), Message("skipped", {"samples": 3, "loss": 0.5})
    update_check(state, {}, may_skip=True)(skipped)
    with pytest.raises(FedtinyError, match="it is a 'skipped', not a 'update'"):
        update_check(state, {})(skipped)
    with pytest.raises(FedtinyError, match="loss is missing or not finite"):
        update_check(state, {}, may_skip=True)(Message("skipped", {"samples": 3, "loss": np.nan}))
    with pytest.raises(FedtinyError, match="w that was not asked for"):
        update_check(state, {}, may_skip=True)(dataclasses.replace(skipped, tensors={"w": np.ones(1)}))


@pytest.mark.parametrize(("density", "width"), [(0.1, 16), (0.03, 32), (0.5, 8), (1.0, 8)])
def test_the_small_network_is_the_widest_that_fits(density, width):
    asked_for = models.ModelSpec("resnet8", (1, 8, 8), 10, width)
    found = setting(configured(method="fedavg-small", density=density), asked_for)
    limit = packing.model_bytes(asked_for, density)
    assert packing.model_bytes(found.spec, 1.0) <= limit
    if density < 1:
        wider = dataclasses.replace(found.spec, width=found.spec.width + 1)
        assert packing.model_bytes(wider, 1.0) > limit
    else:
        assert found.spec == asked_for
    assert (found.budget, found.dense) == (sum(found.sizes.values()), frozenset())


def test_a_size_that_no_dense_network_has_is_refused(monkeypatch):
    monkeypatch.setattr(small, "dense_width", lambda spec, limit, most: 0)
    with pytest.raises(
        UsageError, match=r"packs to [\d,]+ bytes, and even its dense network of width 1 has [\d,]+; use"
    ):
        setting(configured(method="fedavg-small"), models.ModelSpec("resnet8", (1, 8, 8), 10, 8))
