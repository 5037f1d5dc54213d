"""Bytes of flash before training: by hand, and against a real export."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fedtiny_export.errors import UsageError

from fedtiny_train import packing
from fedtiny_train.models import ModelSpec

SPEC = ModelSpec("resnet8", (3, 32, 32), 10, 8)


def test_packed_bytes_by_hand():
    # 12 weights dense (a bitmap has 4 + 12); 3 channels: 12 for biases, 12 for multipliers, 4 for 3 shifts
    assert packing.packed_bytes({"w": np.ones((3, 4), np.bool_)}) == 12 + 28
    lonely = np.zeros((2, 40), np.bool_)
    lonely[0, 0] = True  # by gaps: 0, value, 79, and a word is 4; a bitmap would have 12 + 4
    assert packing.packed_bytes({"w": lonely}) == 4 + (8 + 8 + 4)
    assert packing.packed_bytes({"w": lonely, "v": np.ones((3, 4), np.bool_)}) == 24 + 40


@pytest.mark.parametrize("budget", [4096, 8192, 16384])
def test_a_budget_is_filled_and_not_exceeded(budget):
    width = packing.dense_width(SPEC, budget)
    fitting, wider = (dataclasses.replace(SPEC, width=w) for w in (width, width + 1))
    assert packing.model_bytes(fitting, 1.0) <= budget < packing.model_bytes(wider, 1.0)
    density = packing.density_for(wider, budget)
    assert 0.9 * budget < packing.model_bytes(wider, density) <= budget


def test_the_width_of_a_budget_leaves_the_density_wished_for():
    width = packing.width_for(SPEC, 8192, 0.2)
    near = {w: packing.density_for(dataclasses.replace(SPEC, width=w), 8192) for w in (width - 1, width, width + 1)}
    assert near[width - 1] > near[width] > near[width + 1]
    assert min(near, key=lambda w: abs(np.log(near[w] / 0.2))) == width
    assert packing.width_for(SPEC, 8192, 1.0) == packing.dense_width(SPEC, 8192)
    with pytest.raises(UsageError, match=r"resnet8 of width 1 takes [\d,]+ bytes; a flash budget of 500 is too small"):
        packing.width_for(SPEC, 500, 0.2)
