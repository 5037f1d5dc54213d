"""Living and read channels, on networks small enough to see through."""

from __future__ import annotations

import numpy as np
from torch import nn

from fedtiny_train import models
from fedtiny_train.liveness import working


def conv(inputs, outputs, groups=1):
    return nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)


def masks_of(model, dead):
    found = {name: np.ones(tuple(w.shape), np.bool_) for name, w in models.prunable(model).items()}
    for name, *at in dead:
        found[name][tuple(at)] = False
    return found


def chain():
    return nn.Sequential(conv(1, 2), nn.ReLU(), conv(2, 2), nn.Flatten(), nn.Linear(2, 1))


def test_everything_works_in_a_dense_network():
    model = chain()
    masks = masks_of(model, [])
    assert all((part == masks[name]).all() for name, part in working(model, masks, 1).items())


def test_what_reads_a_dead_channel_does_not_work():
    masks = masks_of(model := chain(), [("0.weight", 1)])  # the second channel of the first layer is dead
    works = working(model, masks, 1)
    assert works["2.weight"][:, :, 0, 0].tolist() == [[True, False], [True, False]]
    assert works["0.weight"].reshape(-1).tolist() == [True, False]


def test_what_nobody_reads_does_not_work():
    masks = masks_of(model := chain(), [("4.weight", 0, 1)])  # the classifier leaves out the second channel
    works = working(model, masks, 1)
    assert works["2.weight"][:, :, 0, 0].tolist() == [[True, True], [False, False]]
    assert works["0.weight"].all()


def test_a_cut_network_does_nothing():
    masks = masks_of(model := chain(), [("2.weight", 0), ("2.weight", 1)])
    assert not any(part.any() for part in working(model, masks, 1).values())


def test_groups_and_flattened_places_keep_to_their_channels():
    model = nn.Sequential(conv(2, 2, groups=2), nn.Flatten(), nn.Linear(8, 1))  # 2x2 places a channel
    masks = masks_of(model, [("2.weight", 0, slice(4, 8))])
    works = working(model, masks, 2)
    assert works["0.weight"].reshape(-1).tolist() == [True, False]
    masks = masks_of(model, [("0.weight", 0)])
    assert working(model, masks, 2)["2.weight"].reshape(-1).tolist() == [False] * 4 + [True] * 4


def test_a_shortcut_keeps_a_channel_alive():
    spec = models.ModelSpec("resnet8", (1, 8, 8), 4, 2)
    model = models.build(spec)
    masks = {name: np.ones(tuple(w.shape), np.bool_) for name, w in models.prunable(model).items()}
    masks["stack1.conv2.weight"][:] = False  # the branch is dead, the shortcut is not
    works = working(model, masks, 1)
    assert not works["stack1.conv1.weight"].any()
    assert works["stem.conv.weight"].all()
    assert works["stack2.conv1.weight"].all()
