"""Allocation, masks, schedules and swaps: numbers worked out by hand, then what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny_train import masks


def test_allocation_by_hand():
    # 30 of 100+200+300 at one density: 5, 10, 15, exactly.
    assert masks.allocate([5, 10, 15], [100, 200, 300], 30) == [5, 10, 15]
    # Wishes of 4, 4, 2 scaled to 12: 4.8, 4.8, 2.4 -> 4, 4, 2 and the two left go to the largest remainders.
    assert masks.allocate([4, 4, 2], [100, 100, 100], 12) == [5, 5, 2]
    # A layer is never emptied and never overfilled; the others take up the difference.
    assert masks.allocate([0.01, 50], [10, 100], 10) == [1, 9]
    assert masks.allocate([50, 50], [10, 100], 60) == [10, 50]
    with pytest.raises(ValueError, match="2 weights cannot be split over 3 layers"):
        masks.allocate([1, 1, 1], [5, 5, 5], 2)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.data())
def test_allocation_always_adds_up(sizes, data):
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    shares = data.draw(st.lists(st.floats(0, 500), min_size=len(sizes), max_size=len(sizes)))
    counts = masks.allocate(shares, sizes, total)
    assert sum(counts) == total
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))


def test_kept_total_rounds_down_but_not_below_a_float():
    assert masks.kept_total(0.1, [77072]) == 7707
    assert masks.kept_total(0.29, [100]) == 29  # 0.29 * 100 is 28.999999999999996
    assert masks.kept_total(1.0, [3, 4]) == 7


def test_noisy_shares_stay_within_half_and_near_the_density():
    sizes = [1000, 5000, 20000]
    shares = masks.noisy_shares(0.05, sizes, np.random.default_rng(3))
    assert abs(sum(int(s) for s in shares) / sum(sizes) - 0.05) / 0.05 < 0.02
    ratios = [share / (0.05 * size) for share, size in zip(shares, sizes, strict=True)]
    assert all(0.5 <= ratio <= 1.5 for ratio in ratios)
    assert max(ratios) - min(ratios) > 0.01


def test_swap_count_is_the_cosine_of_the_paper():
    # a_t = 0.15 (1 + cos(pi t / (R_stop E))) n; n = 100, R_stop E = 40
    assert masks.swap_count(100, 0, 40) == 30
    assert masks.swap_count(100, 10, 40) == 26  # 0.15 * 1.70711 * 100 = 25.6
    assert masks.swap_count(100, 20, 40) == 15
    assert masks.swap_count(100, 40, 40) == 0
    assert masks.swap_count(100, 41, 40) == 0
    assert masks.swap_count(100, 0, 40, rate=0.1) == 10


def test_top_mask_by_hand():
    score = np.array([[5.0, 1.0, 1.0], [2.0, 0.5, 0.4]])
    assert masks.top_mask(score, 3).tolist() == [[True, True, False], [True, False, False]]
    # With a floor of one a row, the second row keeps its best before the rest goes to the highest scores.
    score = np.array([[5.0, 4.0, 3.0], [0.1, 0.2, 0.0]])
    assert masks.top_mask(score, 3).tolist() == [[True, True, True], [False, False, False]]
    assert masks.top_mask(score, 3, row_floor=1).tolist() == [[True, True, False], [False, True, False]]


def test_top_gradients_are_of_pruned_positions_only():
    gradient = np.array([[9.0, -3.0, 1.0], [-2.0, 0.5, 4.0]], dtype=np.float32)
    mask = np.array([[True, False, False], [False, False, True]])
    indices, values = masks.top_gradients(gradient, mask, 2)
    assert indices.tolist() == [1, 3]
    assert values.tolist() == [-3.0, -2.0]


def test_swap_by_hand():
    weights = np.array([0.1, -0.9, 0.0, 0.0, 0.5, 0.0], dtype=np.float32)
    mask = np.array([True, True, False, False, True, False])
    gradient = np.array([0.0, 0.0, 0.3, -0.7, 0.0, 0.0], dtype=np.float32)
    # One swap: 0.1 is the smallest live weight, position 3 has the largest gradient.
    assert masks.swap(weights, mask, gradient, 1).tolist() == [False, True, False, True, True, False]
    # Three asked for, but only two pruned positions have a gradient: position 5 is not grown blindly.
    assert masks.swap(weights, mask, gradient, 3).tolist() == [False, True, True, True, False, False]


def test_swap_keeps_the_floor_of_a_row():
    weights = np.array([[0.1, 0.2], [5.0, 6.0]], dtype=np.float32)
    mask = np.array([[True, True], [True, False]])
    gradient = np.array([[0.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    assert masks.swap(weights, mask, gradient, 1).tolist() == [[False, True], [True, True]]
    both = masks.swap(weights, mask, gradient, 1, row_floor=2)
    assert both.tolist() == [[True, True], [True, False]]  # all live weights are protected


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.data())
def test_swap_keeps_the_count_and_never_grows_what_it_prunes(seed, size, data):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(size, 3)).astype(np.float32)
    mask = masks.random_mask((size, 3), data.draw(st.integers(0, size * 3)), generator)
    indices, values = masks.top_gradients(weights[::-1].copy(), mask, data.draw(st.integers(0, size * 3)))
    gradient = np.zeros(size * 3, dtype=np.float32)
    gradient[indices] = values
    count = data.draw(st.integers(0, size * 3))
    after = masks.swap(weights * mask, mask, gradient.reshape(size, 3), count, data.draw(st.integers(0, 3)))
    assert after.sum() == mask.sum()
    grown, pruned = after & ~mask, mask & ~after
    assert grown.sum() == pruned.sum() <= count
    assert set(np.flatnonzero(grown)) <= set(indices)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 30), st.data())
def test_masks_keep_exactly_what_is_asked(seed, rows, columns, data):
    generator = np.random.default_rng(seed)
    count = data.draw(st.integers(0, rows * columns))
    score = np.abs(generator.normal(size=(rows, columns)))
    assert masks.random_mask((rows, columns), count, generator).sum() == count
    floor = data.draw(st.integers(0, 4))
    mask = masks.top_mask(score, count, floor)
    assert mask.sum() == count
    assert mask.sum(axis=1).min() >= min(floor, columns, count // rows)


def test_blocks_by_hand():
    score = np.array([[1.0, 5, 3, 2, 0, 0, 4, 4]])
    # pairs: 6, 5, 0, 8; the two best are the last and the first
    assert masks.top_mask(score, 4, block=2).tolist() == [[True, True, False, False, False, False, True, True]]
    # three weights: of the smaller of these two pairs its larger weight
    assert masks.top_mask(score, 3, block=2).tolist() == [[False, True, False, False, False, False, True, True]]
    odd = np.array([[1.0, 5, 3]])
    assert masks.top_mask(odd, 2, block=2).tolist() == [[False, True, True]]  # three channels make no pairs
    weights = np.array([[0.3, -0.4, 0, 0, 0.1, 0.2, 0, 0]], np.float32)
    gradient = np.array([[9.0, 9, 1, 1, 9, 9, -3, 0]], np.float32)
    after = masks.swap(weights, weights != 0, gradient, 2, block=2)
    assert after.tolist() == [[True, True, False, False, False, False, True, True]]
    indices, values = masks.top_gradients(gradient, weights != 0, 3, block=2)  # one pair goes into three
    assert (indices.tolist(), values.tolist()) == ([6, 7], [-3.0, 0.0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.integers(2, 4), st.data())
def test_blocks_stay_whole_but_for_one(seed, rows, columns, block, data):
    random = np.random.default_rng(seed)
    shape = (rows, columns * block, 2)
    weights = random.normal(size=shape).astype(np.float32)

    def whole(mask: np.ndarray) -> bool:
        kept = masks.folded(mask, block)
        return int(((kept > 0) & (kept < block)).sum()) <= 1

    count = data.draw(st.integers(1, weights.size))
    mask = masks.top_mask(np.abs(weights), count, block=block)
    assert mask.sum() == count
    assert whole(mask)
    drawn = masks.random_mask(shape, count, random, block)
    assert drawn.sum() == count
    assert whole(drawn)
    shrink, moved = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count))
    after = masks.swap(weights, mask, random.normal(size=shape).astype(np.float32), moved, 0, shrink, block)
    assert after.sum() == count - shrink
    assert whole(after)
    assert ((after & ~mask).sum()) <= moved
