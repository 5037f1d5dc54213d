"""Bytes of flash before training: by hand, and against a real export."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fedtiny_export.errors import UsageError
from fedtiny_export.ftm.fitting import packed_bytes

from fedtiny_train import packing
from fedtiny_train.models import ModelSpec

SPEC = ModelSpec("resnet8", (3, 32, 32), 10, 8)


def test_packed_bytes_by_hand():
    whole = np.ones((100, 200), np.bool_)  # dense; 400 for biases, 400 for multipliers, 100 for shifts
    assert packed_bytes([whole]) == 20_000 + 900
    lonely = np.zeros((2, 20, 20, 1), np.bool_)
    lonely[0, 0, 0, 0] = True
    # by gaps: 0, value, 799 = 3 * 255 + 34: 6 bytes in 2 words; 8 + 8 + 2 for channels, in words
    assert packed_bytes([lonely]) == 8 + 20
    # as a dense layer it is dense: the code for those alone is shorter than that for gaps by more than 792 bytes
    assert packed_bytes([lonely.reshape(2, 400)]) == 800 + 20
    large = np.zeros((20, 400), np.bool_)
    large[0, 0] = True  # 0, value, 7999 = 31 * 255 + 94: 34 bytes in 9 words; 80 + 80 + 20 for channels
    assert packed_bytes([whole, large]) == 20_900 + 36 + 180  # a second kernel saves more than its code


def test_one_encoding_for_all_where_a_second_one_costs_more_code_than_it_saves():
    lonely = np.zeros((2, 400), np.bool_)
    lonely[0, 0] = True  # 8 bytes by gaps, but the code for them and for taps is longer than 800 bytes dense
    assert packed_bytes([np.ones((100, 200), np.bool_), lonely]) == 20_900 + 800 + 20


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
    with pytest.raises(
        UsageError, match=r"width 1 takes [\d,]+ bytes at the least; a flash budget of 500 is too small"
    ):
        packing.width_for(SPEC, 500, 0.2)


def test_a_network_that_fits_only_pruned_is_pruned() -> None:
    spec = ModelSpec("mobilenetv2", (3, 32, 32), 10, 32)
    assert packing.dense_width(spec, 65536) == 0
    wide = dataclasses.replace(spec, width=packing.width_for(spec, 65536, 0.15))
    assert 0 < packing.density_for(wide, 65536) < 1
    assert packing.model_bytes(wide, packing.density_for(wide, 65536)) <= 65536
