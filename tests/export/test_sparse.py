"""Weight encodings: nothing is lost, sizes are known without packing, and the chooser is never beaten."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fedtiny_export.ftm import sparse
from fedtiny_export.ftm.abi import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CONV_KERNELS


@st.composite
def layers(draw) -> np.ndarray:
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 700)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]))
    weights = random.integers(-127, 128, shape, np.int8)
    return np.where(random.random(shape) < density, weights, 0).astype(np.int8)


@pytest.mark.parametrize("encoding", sparse.ENCODINGS, ids=lambda e: e.kernel.name)
@given(layers())
def test_unpacking_gives_every_weight_back(encoding, layer):
    packed = encoding.pack(layer.reshape(-1))
    assert len(packed) % 4 == 0
    assert np.array_equal(encoding.unpack(packed, layer.size), layer.reshape(-1))


@given(layers())
def test_sizes_are_those_of_the_packed_streams(layer):
    for encoding in sparse.ENCODINGS:
        assert sparse.sizes(layer)[encoding.kernel] == len(encoding.pack(layer.reshape(-1)))


@given(layers())
def test_max_taps_is_the_fullest_channel(layer):
    assert sparse.pack(layer, Kernel.CONV_GAP).max_taps == max(int(np.count_nonzero(row)) for row in layer)
    assert sparse.pack(layer, Kernel.CONV_DENSE).max_taps == 0


@settings(max_examples=30)
@given(st.lists(layers(), min_size=1, max_size=4), st.lists(st.integers(0, 600), min_size=4, max_size=4))
def test_the_chooser_equals_brute_force(model, costs):
    code = dict(zip(CONV_KERNELS, costs, strict=True))
    sizes = [sparse.sizes(layer) for layer in model]
    layers = [(layer, sparse.CONVS) for layer in model]

    def total(picked):
        return sum(s[k] for s, k in zip(sizes, picked, strict=True)) + sum(code[k] for k in set(picked))

    best = min(total(picked) for picked in itertools.product(CONV_KERNELS, repeat=len(model)))
    assert total(sparse.choose(layers, code)) == best


def test_a_layer_gets_a_kernel_that_can_read_it_whatever_another_costs():
    dense, empty = np.ones((4, 9), np.int8), np.zeros((4, 9), np.int8)
    free = dict.fromkeys(Kernel, 0) | {Kernel.CONV_GAP: 500, Kernel.CONV_RICE: 500}
    layers = [(dense, (*sparse.SPARSE, Kernel.DEPTHWISE)), (dense, sparse.CONVS), (dense, sparse.SPARSE)]
    assert sparse.choose(layers, free) == [Kernel.DEPTHWISE, Kernel.CONV_DENSE, Kernel.CONV_BITMAP]
    assert sparse.choose([(empty, (Kernel.DEPTHWISE,))], {Kernel.DEPTHWISE: 10**9}) == [Kernel.DEPTHWISE]
    # 36 bytes in place of 44 are not worth 500 of code where the bitmap is linked anyway
    assert sparse.choose([layers[0], layers[2]], {Kernel.DEPTHWISE: 500}) == [Kernel.CONV_BITMAP] * 2


def test_code_that_kernels_share_is_counted_once():
    layer = np.eye(8, 40, dtype=np.int8)  # 320 bytes where dense
    sparse_code = {frozenset(sparse.SPARSE): 320, Kernel.CONV_GAP: 20, Kernel.CONV_BITMAP: 0}
    assert sparse.linked_bytes(sparse_code, {Kernel.CONV_GAP, Kernel.CONV_BITMAP}) == 340
    assert sparse.linked_bytes(sparse_code, {Kernel.CONV_DENSE}) == 0
    assert sparse.choose([(layer, sparse.CONVS)], sparse_code) == [Kernel.CONV_DENSE]
    assert Kernel.CONV_DENSE not in sparse.choose([(layer, sparse.CONVS)] * 2, sparse_code)


def test_the_documented_example_of_a_gap_stream():
    layer = np.zeros(600, np.int8)
    layer[[0, 3, 300]] = [5, -1, 7]
    stream = sparse.pack_gap(layer)
    # 0 zeros, 5; 2 zeros, -1; 255 and 41 zeros, 7; 255 and 44 zeros to the end
    assert list(stream) == [0, 5, 2, 255, 255, 41, 7, 255, 44, 0, 0, 0]


def test_the_documented_example_of_a_rice_stream():
    layer = np.zeros(20, np.int8)
    layer[[0, 3, 12]] = [5, -1, 7]
    stream = sparse.pack_rice(layer)
    # two low bits; gaps 0, 2, 8 and 7 are 1 00, 1 01, 001 00 and 01 11, each but the last before a value
    assert list(stream) == [0x02, 0x29, 0xE8, 0x3F, 0x39, 0x70, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("density", "most"), [(0.1, 1.65), (0.01, 2.2)])
def test_what_a_rice_coded_weight_takes(density, most):
    random = np.random.default_rng(0)
    layer = np.where(random.random(36_864) < density, random.integers(1, 128, 36_864), 0).astype(np.int8)
    assert len(sparse.pack_rice(layer)) <= most * np.count_nonzero(layer)
