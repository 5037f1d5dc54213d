"""Device costs, every formula against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fedtiny_export.errors import FedtinyError
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedtiny_train import closing, cost, models, runfolder, storage, wire
from fedtiny_train.activations import forward_bytes, held, training_bytes
from fedtiny_train.cost import DeviceCost, Memory, Training
from fedtiny_train.methods import Orders
from fedtiny_train.models.layers import Add, Gate
from fedtiny_train.models.sparse import saved_bytes
from fedtiny_train.session import network_of
from fedtiny_train.storage import FORMS, Extent
from fedtiny_train.wire import Message

# 6 features, hidden layers of 8 and 4, 3 classes
MLP = models.ModelSpec("mlp", (6,), 3, 1)


def masks():
    """Half of fc1's 48 weights live, a quarter of fc2's 32, all of fc3's 12."""
    fc1, fc2 = np.zeros(48, np.bool_), np.zeros(32, np.bool_)
    fc1[::2] = fc2[::4] = True
    return {
        "fc1.weight": fc1.reshape(8, 6),
        "fc2.weight": fc2.reshape(4, 8),
        "fc3.weight": np.ones((3, 4), np.bool_),
    }


def of_round(orders=None, training=None, samples=(5,)):
    tensors = models.initial_state(MLP, 0)
    return cost.round_cost(network_of(MLP), tensors, masks(), orders or Orders(), training or Training(2, 2), samples)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("dense", 400),
        ("bitmap", 28 + 13),  # 100 bits
        ("coo", 28 + 7),  # 7 positions of 7 bits
        ("csr", 28 + 8),  # 7 columns of 4 bits, 10 row ends of 3 bits (0 to 7)
        ("pairs", 56),
    ],
)
def test_a_tensor_of_10_by_10_with_7_live(form, expected):
    assert FORMS[form](Extent(100, 10, 7)) == expected
    assert storage.cheapest(Extent(100, 10, 7)) == 35


def test_each_form_wins_somewhere():
    extents = {"dense": (100, 10, 100), "bitmap": (100, 10, 50), "coo": (100, 50, 2), "csr": (1 << 20, 8, 1000)}
    for form, parts in extents.items():
        assert storage.cheapest(Extent(*parts)) == FORMS[form](Extent(*parts)), form
        assert all(FORMS[other](Extent(*parts)) > FORMS[form](Extent(*parts)) for other in FORMS if other != form), form
    assert [storage.pairs_or_dense(Extent(100, 10, m)) for m in (49, 51)] == [392, 400]


@given(st.integers(1, 5000), st.integers(1, 64), st.data())
def test_positions_can_tell_all_weights_apart(columns, rows, data):
    size = columns * rows
    live = data.draw(st.integers(0, size))
    of = Extent(size, rows, live)
    coo_bits, csr_bits = 8 * (storage.coo(of) - 4 * live), 8 * (storage.csr(of) - 4 * live)
    assert 2.0 ** (coo_bits / max(1, live)) >= size or not live
    assert csr_bits >= live * (columns - 1).bit_length() + rows * live.bit_length()
    assert storage.cheapest(of) <= min(4 * size, 8 * live, 4 * live + -(-size // 8))


def test_an_empty_mask_needs_no_positions():
    assert storage.extent(np.zeros((3, 5), np.bool_)) == Extent(15, 3, 0)
    assert storage.cheapest(Extent(15, 3, 0)) == 0


def test_what_a_perceptron_holds():
    found = held(models.build(MLP), (6,))
    assert found.layers == (6, 8, 4)  # the scaled input and both rectified layers
    assert (found.whole, found.channels, found.classes, found.winners) == (12, 12, 3, 0)
    assert (found.signs, found.covered) == ((), (8, 4))
    assert found.peak == 16  # fc1's output and its normalised copy
    assert forward_bytes(found, 5) == 4 * 5 * 16
    # a batch of 2: inputs 4*2*18, norms and classes 4*2*15, two numbers for each of 12 channels
    assert training_bytes(found, 2) == 144 + 120 + 96
    # half of 12, 16 and 8 inputs with 2 bytes of position each; 16 and 8 bits of signs
    assert training_bytes(found, 2, 0.5) == (6 + 8 + 4) * 6 + 120 + 96 + 2 + 1


def test_torch_keeps_what_the_formula_says():
    model = models.build(models.ModelSpec("mlp", (64,), 10, 4)).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.randn(7, 64))
    assert output.requires_grad
    saved = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)
    # torch has computed no class probabilities yet
    assert saved == training_bytes(held(model, (64,)), 7) - 4 * 7 * 10


def test_what_a_residual_network_holds():
    found = held(models.build(models.ModelSpec("resnet8", (1, 8, 8), 10, 1)), (1, 8, 8))
    # the second and third stack's input is read by two convolutions, and counted once; the last is the classifier's
    assert found.layers == (64, 64, 64, 64, 32, 32, 16, 4)
    assert found.whole == 3 * 64 + 2 * 32 + 2 * 16
    assert found.channels == 3 * 1 + 2 * 2 + 2 * 4
    assert found.signs == (16,)  # the last rectifier feeds the mean, which keeps nothing
    assert found.covered == (64, 64, 64, 32, 32, 16)
    assert found.peak == 3 * 64  # the block's input waits while its second convolution and batch norm compute


def test_pooling_keeps_who_won():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    found = held(net, (1, 4, 4))
    assert (found.layers, found.signs, found.covered, found.winners) == ((16, 8), (32,), (), 8)
    assert training_bytes(found, 3) == 4 * 3 * 24 + 4 * 3 * 3 + 12 + 3 * 8  # 96 bits are 12 bytes


def test_dropout_keeps_a_bit_a_value():
    found = held(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(9, 1)), (9,))
    assert (found.layers, found.signs) == ((9,), (9,))
    assert training_bytes(found, 1) == 4 * 9 + 2 + 4


def test_a_gate_keeps_what_it_weighs():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate, self.flat = nn.Conv2d(2, 3, 1, bias=False), Gate(2, 3, 1), nn.Flatten()

        def forward(self, x):
            return self.flat(self.gate(x, self.conv(x)))

    found = held(Gated(), (2, 4, 4))
    assert (found.layers, found.whole) == ((32,), 48 + 2 + 3)  # the convolution's output, 2 means and 3 strengths


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("norm", ["batch", "scaled"])
def test_the_layers_of_activation_pruning_keep_what_the_formula_says(norm, drop):
    """By how much a batch of 4 keeps more than one of 2, since torch keeps copies of normalised weights as well."""
    model = models.build(models.ModelSpec("mlp", (64,), 10, 4, norm, drop))
    found = held(model, (64,))
    measured = saved_bytes(model, torch.randn(4, 64)) - saved_bytes(model, torch.randn(2, 64))
    # torch has computed no class probabilities yet
    assert measured == training_bytes(found, 4, drop) - training_bytes(found, 2, drop) - 2 * 4 * 10


def test_wide_positions_take_4_bytes():
    found = held(nn.Sequential(nn.Flatten(), nn.Linear(1 << 15, 1)), (1 << 15,))
    assert training_bytes(found, 1, 0.75) == (1 << 13) * 6 + 4
    assert training_bytes(found, 2, 0.75) == (1 << 14) * 8 + 8


def test_work_of_a_round():
    forward = 2 * (24 + 8 + 12)
    assert of_round().flops == 3 * forward * 10  # 5 samples, 2 epochs
    # the last of 5 samples joins the batch before: 3 samples
    assert of_round(Orders({"fc2.weight": 3})).flops == 3 * forward * 10 + 2 * 24 * 3
    assert of_round(Orders({"fc2.weight": 24}, {"squares": 1.0})).flops == 3 * forward * 10 + 2 * 24 * 10
    assert of_round(Orders({}, {"swap/fc1.weight": 5.0, "swap_epoch": 1.0})).flops == 3 * forward * 10 + 2 * 24 * 3
    assert of_round(Orders({}, {"extrude/fc1.weight": 5.0})).flops == 3 * forward * 10


@pytest.mark.parametrize(("samples", "batch", "largest"), [(5, 2, 3), (6, 2, 2), (1, 2, 1), (2, 4, 2), (64, 32, 32)])
def test_the_largest_batch_is_that_of_the_clients(samples, batch, largest):
    from fedtiny_train.client import batches

    assert cost.largest_batch(samples, batch) == largest
    assert max(map(len, batches(samples, batch, np.random.default_rng(0)))) == largest


def test_memory_of_a_round():
    found = of_round(training=Training(2, 2, momentum=True))
    # fc1 102 and fc2 36 as bitmaps, fc3 and its bias dense, norms, 2 scalars of the input
    assert found.memory.parameters == 102 + 36 + 48 + 12 + 64 + 64 + 32 + 32 + 8
    assert found.memory.gradients == found.memory.momentum == 102 + 36 + 48 + 12 + 64 + 32
    assert found.memory.buffer == 0
    assert found.memory.activations == 4 * 3 * (18 + 15) + 96
    assert found.memory.total == 398 + 294 + 294 + 492
    assert of_round().memory.momentum == 0
    assert of_round(training=Training(2, 2, dropped=0.5)).memory.activations == (9 + 12 + 6) * 6 + 180 + 96 + 3 + 2


def test_memory_as_the_paper_counts():
    # 8 bytes a live weight or 4 a weight; two copies and the buffer; no activations, no momentum
    expected = (192 + 64 + 48 + 12 + 64 + 64 + 32 + 32 + 8) + (192 + 64 + 48 + 12 + 64 + 32)
    assert of_round(training=Training(2, 2, momentum=True)).paper == expected
    assert of_round(Orders({"fc2.weight": 3})).paper == expected + 24


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        (Orders({"fc2.weight": 3, "fc1.weight": 4}), 7 * 8),
        (Orders({"fc2.weight": 24}, {"squares": 1.0}), 32 * 4),  # a dense sum, however many are sent
        (Orders({}, {"swap/fc1.weight": 5.0, "swap_epoch": 1.0}), 5 * 8),
        (Orders({"fc2.weight": 3}, {"extrude/fc2.weight": 3.0, "extrude_lr": 0.1}), 3 * 8 + 3 * 4),
    ],
)
def test_buffers(orders, expected):
    assert of_round(orders).memory.buffer == expected


def test_the_worst_device_counts():
    assert of_round(samples=(5, 9, 2)) == of_round(samples=(9,))
    # 9 samples do the most work, but only the 3 of 5 in a batch of 2 need the most memory; 8 have batches of 2
    both = of_round(samples=(5, 8))
    assert (both.flops, both.memory) == (of_round(samples=(8,)).flops, of_round(samples=(5,)).memory)
    a, b = DeviceCost(3.0, Memory(1, 2, 3, 4, 5), 7), DeviceCost(2.0, Memory(16), 9)
    assert cost.worst([a, b]) == DeviceCost(3.0, Memory(16), 9)
    assert cost.worst([]) == DeviceCost()


def pool():
    """Two candidates on the device at once: one as above, one whose fc1 has 12 weights."""
    tensors, thin = models.initial_state(MLP, 0), masks()
    thin["fc1.weight"] = np.arange(48).reshape(8, 6) % 4 == 0
    both = {
        f"{i}/{name}": wire.masked(array, one.get(name))
        for i, one in enumerate((masks(), thin))
        for name, array in tensors.items()
    }
    return Message("adapt", {"pool": 2, "passes": 10}, both)


def test_selection_holds_the_whole_pool_and_runs_forward():
    request, network = pool(), network_of(MLP)
    adapting = cost.request_cost(network, request, None, 4, [1, 6])
    one = 2 * (24 + 8 + 12) + 2 * (12 + 8 + 12)
    assert adapting.flops == 10 * 6 * one
    # the thin fc1: 48 bytes of values and 6 of bitmap
    assert adapting.memory == Memory(parameters=398 + 398 - 102 + 54, activations=4 * 4 * 16)
    scoring = cost.request_cost(network, Message("score"), request, 4, [1, 6])
    assert (scoring.flops, scoring.memory) == (6 * one, adapting.memory)
    assert cost.request_cost(network, Message("describe"), None, 4, [6]) == DeviceCost()


def test_a_saliency_is_a_dense_gradient():
    whole = {name: wire.masked(a, masks().get(name)) for name, a in models.initial_state(MLP, 0).items()}
    found = cost.request_cost(network_of(MLP), Message("saliency", {}, whole), None, 4, [6])
    assert found.flops == 6 * (2 * 88 + 2 * (48 + 32 + 12))
    assert found.memory == Memory(398, 4 * (48 + 32 + 12), activations=4 * 6 * 33 + 96)


def test_the_papers_network_and_density():
    """ResNet-18 at 1 %: FLOPs and megabytes that FedTiny's paper gives for itself and for PruneFL, to 1 %."""
    spec = models.ModelSpec("resnet18", (3, 32, 32), 10, 64)
    network, tensors = (
        network_of(spec),
        {n: np.zeros(t.shape, np.float32) for n, t in models.build(spec).named_parameters()},
    )
    live = {n: np.zeros(tensors[n].shape, np.bool_) for n in network.macs}
    for mask in live.values():
        mask.reshape(-1)[: round(mask.size / 100)] = True
    live["stem.conv.weight"][:] = True
    pruned = {name: mask.size - int(mask.sum()) for name, mask in live.items()}
    training, whole = Training(64, 5), 3 * 2 * sum(network.macs.values()) * 25_000
    assert whole == pytest.approx(8.33e13, rel=1e-3)
    tiny = cost.round_cost(network, tensors, live, Orders(pruned), training, [5000])
    prune = cost.round_cost(network, tensors, live, Orders(pruned, {"squares": 1.0}), training, [5000])
    assert tiny.flops / whole == pytest.approx(0.0140, rel=0.01)
    assert prune.flops / whole == pytest.approx(0.342, rel=0.01)
    assert prune.paper / 1e6 == pytest.approx(46.56, rel=0.01)


def test_a_tensor_that_a_batch_norm_keeps_is_kept_once():
    """A rectifier's output that a batch norm reads is kept whole: no signs beside it, and no layer prunes it."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ReLU())
    found = held(net, (2,))
    assert (found.layers, found.whole, found.signs, found.covered) == ((2, 3), 3, (4,), ())

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc, self.add = nn.BatchNorm1d(2), nn.Linear(2, 2), Add()

        def forward(self, x):
            return self.add(self.norm(x), self.fc(x))

    found = held(Shared(), (2,))
    assert (found.layers, found.whole) == ((), 2)


@pytest.mark.parametrize(
    "damage",
    [
        {"memory": {"parameters": 1}},
        {"memory": dict.fromkeys((*runfolder.MEMORY, "more"), 1)},
        {"memory": 3},
        {"memory_paper": "x"},
    ],
)
def test_a_resumed_line_must_say_its_memory(tmp_path, damage):
    figures = dict.fromkeys(runfolder.LINE_NUMBERS, 1.0)
    unknown = {f"accuracy_{which}": None for which in ("worst", "median", "best")}
    people = {"counted": True, "invited": [], "clients": [], "refused": []}
    line = {"round": 0, **figures, **unknown, "memory": dict.fromkeys(runfolder.MEMORY, 1), **people}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert runfolder.read_metrics(tmp_path, 0) == [line]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line | damage) + "\n")
    with pytest.raises(FedtinyError, match="not the metrics of a run"):
        runfolder.read_metrics(tmp_path, 0)


def test_the_summary_has_the_parts_of_the_greatest_total():
    lines = [
        {"flops_max": 3.0, "memory_max": 5, "memory": {"parameters": 5}, "memory_paper": 9},
        {"flops_max": 2.0, "memory_max": 6, "memory": {"parameters": 6}, "memory_paper": 4},
    ]
    expected = {"flops_max": 3.0, "memory_max": 6, "memory": {"parameters": 6}, "memory_paper": 9}
    assert closing.device_cost(lines) == expected
