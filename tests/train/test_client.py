"""What a device computes: its steps are those of SGD, whatever they cost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedtiny_train.client import LocalSpec, descend
from fedtiny_train.models import ModelSpec, build
from fedtiny_train.models.layers import parts


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 1e-4), (0.0, 0.0), (0.5, 0.1)])
def test_steps_are_those_of_torchs_sgd(momentum, decay):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.Linear(3, 3))
    theirs = copy.deepcopy(ours)
    optimiser = torch.optim.SGD(theirs.parameters(), 0.1, momentum, weight_decay=decay)
    parameters, local = list(ours.parameters()), LocalSpec(None, 0, 1, 1, momentum, decay, "fp32")
    velocity = [None] * len(parameters)
    begun = [p.detach().clone() for p in parameters]
    for _ in range(5):
        x = torch.randn(4, 5)
        for network in (ours, theirs):
            network.zero_grad()
            network[:3](x).square().sum().mul(0.01).backward()  # the last layer takes no part, and stays
        optimiser.step()
        with torch.no_grad():
            descend(parameters, velocity, 0.1, local)
    # one pass over the values rounds otherwise than several do
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(parameters, theirs.parameters(), strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(parameters, begun, strict=True)]
    assert moved == [True] * 4 + [False] * 2


def test_a_networks_modules_are_walked_once():
    model = build(ModelSpec("mlp", (16,), 4, 8))
    assert parts(model) == tuple(model.named_modules())
    assert parts(model) is parts(model)
    assert parts(build(ModelSpec("mlp", (16,), 4, 8))) != parts(model)
