"""Partitions, the public holdout, and data files that are not what they should be."""

from __future__ import annotations

import io
import logging
import zipfile

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny_train import data
from fedtiny_train.config import DataOptions
from fedtiny_train.data import digits, npz, partition
from fedtiny_train.data.dataset import Dataset, limited
from fedtiny_train.seeds import rng


def test_digits_split_is_fixed_and_stratified():
    found = digits.read()
    assert (len(found.y_train), len(found.y_test)) == (1442, 355)
    assert np.bincount(found.y_test).min() >= 34
    assert found.shape == (1, 8, 8)
    assert found.x_train.max() == 16


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["iid", "dirichlet:0.1", "dirichlet:0.5", "dirichlet:100", "shards:2"]),
    st.integers(1, 60),
    st.integers(0, 5),
)
def test_every_sample_goes_to_exactly_one_client(spec, clients, seed):
    y = np.arange(300) % 10
    parts = partition.split(spec, y, clients, None, rng(seed, "partition"))
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    assert min(map(len, parts)) >= 1


def test_dirichlet_least_size_and_skew():
    y = np.repeat(np.arange(10), 140)
    parts = partition.split("dirichlet:0.5", y, 10, None, rng(0, "partition"))
    assert min(map(len, parts)) >= 10
    even = partition.split("dirichlet:10000", y, 10, None, rng(0, "partition"))
    assert max(np.bincount(y[p], minlength=10).max() for p in even) < 25
    assert max(np.bincount(y[p], minlength=10).max() for p in parts) > 50
    # FedML's rule of ten samples cannot hold for 200 clients of 300 samples; the capped one can.
    assert len(partition.split("dirichlet:0.5", y[:300], 200, None, rng(0, "partition"))) == 200


def test_dirichlet_by_hand():
    class Fixed:
        """A generator whose shares are known: half, a quarter, a quarter."""

        def permutation(self, x):
            return np.asarray(x)

        def dirichlet(self, alpha):
            assert alpha.tolist() == [0.5] * 3
            return np.array([0.5, 0.25, 0.25])

    y = np.array([0] * 24 + [1] * 24)
    parts = partition.by_dirichlet(y, 3, 0.5, Fixed())
    # Class 0: 12, 6, 6. An even share is 16, so all may take part in class 1 as well: 12, 6, 6.
    assert [np.bincount(y[p]).tolist() for p in parts] == [[12, 12], [6, 6], [6, 6]]
    y = np.array([0] * 40 + [1] * 8)
    parts = partition.by_dirichlet(y, 3, 0.5, Fixed())
    # Now the first client is full after class 0 (20 of 16): class 1 goes half and half to the others.
    assert [np.bincount(y[p], minlength=2).tolist() for p in parts] == [[20, 0], [10, 4], [10, 4]]


def test_shards_give_few_classes():
    y = np.repeat(np.arange(10), 20)
    parts = partition.split("shards:2", y, 10, None, rng(0, "partition"))
    assert all(len(np.unique(y[p])) <= 2 for p in parts)


def test_natural_clients_and_strays():
    owner = np.array([3, 3, 7, 7, 7, -1, -1])
    parts = partition.split("natural", np.zeros(7, int), 0, owner, rng(0, "partition"))
    assert [len(p) for p in parts] == [3, 4]
    assert set(parts[0]) >= {0, 1}
    with pytest.raises(FedtinyError, match="2 natural clients, not 5"):
        partition.split("natural", np.zeros(7, int), 5, owner, rng(0, "partition"))
    with pytest.raises(FedtinyError, match="needs client_train"):
        partition.split("natural", np.zeros(7, int), 2, None, rng(0, "partition"))


def test_public_samples_are_taken_from_the_clients():
    dataset = digits.read()
    federation = data.deal(dataset, DataOptions(public="holdout:30"), 0)
    assert np.bincount(federation.public.y).tolist() == [3] * 10
    assert sum(len(s.y) for s in federation.shards) == 1442 - 30
    private = {s.tobytes() for shard in federation.shards for s in shard.x}
    shared = sum(sample.tobytes() in private for sample in federation.public.x)
    assert shared == 0  # no two digits of the set are equal
    assert len(data.deal(dataset, DataOptions(public="none"), 0).public.y) == 0
    with pytest.raises(FedtinyError, match="more than half"):
        data.deal(dataset, DataOptions(public="holdout:1000"), 0)


def good(**changes):
    arrays = {
        "x_train": np.zeros((8, 5), np.float32),
        "y_train": np.arange(8) % 2,
        "x_test": np.zeros((4, 5), np.float32),
        "y_test": np.arange(4) % 2,
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def test_a_good_file(tmp_path):
    np.savez(tmp_path / "d.npz", **good(class_names=np.array(["a", "b"]), client_train=np.arange(8) % 3 - 1))
    found = npz.read(tmp_path / "d.npz")
    assert found.class_names == ("a", "b")
    assert found.shape == (5,)
    np.savez(tmp_path / "i.npz", **good(x_train=np.zeros((8, 4, 6, 3), np.uint8), x_test=np.zeros((4, 4, 6, 3))))
    assert npz.read(tmp_path / "i.npz").shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"y_train": None}, "y_train missing"),
        ({"x_tarin": np.zeros(1)}, "unknown key 'x_tarin' .did you mean x_train"),
        ({"x_train": np.zeros((8, 5, 2, 2, 2))}, r"x_train has shape"),
        ({"x_train": np.full((8, 5), np.nan)}, "x_train holds values that are not finite"),
        ({"x_train": np.array([["a"] * 5] * 8)}, "x_train holds <U1"),
        ({"x_train": np.array([[{}] * 5] * 8)}, "Object arrays cannot be loaded"),
        ({"y_train": np.zeros(8)}, "y_train is float64"),
        ({"y_train": np.zeros(7, int)}, "y_train has shape .7,."),
        ({"y_train": np.array([0, 1, 2, -1] * 2)}, "labels from -1"),
        ({"class_names": np.array(["a"])}, "with 1 classes"),
        ({"class_names": np.array([1, 2])}, "class_names is int64"),
        ({"class_names": np.array([str(c) for c in range(9)])}, "class_names has 9 classes; the limit is .* sample: 8"),
        ({"y_train": np.arange(8) * 2}, "label 14 makes 15 classes; the limit is one class a training sample: 8"),
        ({"y_test": np.array([0, 1, 2_000_000_000, 1])}, "label 2000000000 makes 2,000,000,001 classes"),
        ({"x_test": np.zeros((4, 6))}, "x_test of shape .6,."),
        ({"client_train": np.zeros(3, int)}, "client_train has shape"),
        ({"y_test": np.zeros(0, int), "x_test": np.zeros((0, 5))}, "each have a sample"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path, changes, reason):
    np.savez(tmp_path / "d.npz", **good(**changes))
    with pytest.raises(FedtinyError, match=reason):
        npz.read(tmp_path / "d.npz")


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "array"])
def test_corrupt_files_are_refused(tmp_path, damage):
    path = tmp_path / "d.npz"
    np.savez(path, **good())
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "flip":
        raw[200] ^= 0xFF
        path.write_bytes(raw)
    elif damage == "text":
        path.write_text("hello")
    else:
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    with pytest.raises(FedtinyError, match=r"d\.npz"):
        npz.read(path)


def raw_npz(path, member, method=zipfile.ZIP_DEFLATED):
    """Write a good file, but with other bytes as its x_train."""
    arrays = good()
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{key}.npy", member if key == "x_train" and member else content.getvalue())


@pytest.mark.parametrize(
    "attack", ["method 99", "encrypted", "lzma garbage", "10^12 rows", "deep header", "open header"]
)
def test_hostile_files_are_refused_in_one_line(tmp_path, attack):
    path, member = tmp_path / "d.npz", None
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 5), }"
    if attack == "deep header":
        header = b"(" * 5000 + b")" * 5000
    if attack == "open header":
        header = b"(" * 5000
    if attack in ("10^12 rows", "deep header", "open header"):
        member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    raw_npz(path, member, zipfile.ZIP_LZMA if attack == "lzma garbage" else zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    local, central = raw.index(b"PK\x03\x04"), raw.index(b"PK\x01\x02")
    if attack == "method 99":
        raw[local + 8], raw[central + 10] = 99, 99
    elif attack == "encrypted":
        raw[local + 6] |= 1
        raw[central + 8] |= 1
    elif attack == "lzma garbage":
        at = local + 30 + len("x_train.npy")
        raw[at + 4 : at + 40] = b"\xff" * 36
    path.write_bytes(raw)
    with pytest.raises(FedtinyError, match=r"d\.npz: not a usable \.npz file") as caught:
        npz.read(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_classes_without_a_sample_are_said_in_one_line(tmp_path, caplog):
    path = tmp_path / "d.npz"
    np.savez(path, **good(y_train=np.array([0, 5] * 4)))
    with caplog.at_level(logging.WARNING):
        assert len(npz.read(path).class_names) == 6
    assert [r.getMessage() for r in caplog.records] == [
        f"warning: {path}: 4 of 6 classes have no training sample; the first is 1"
    ]
    caplog.clear()
    np.savez(path, **good())
    npz.read(path)
    assert not caplog.records


def test_names_that_are_not_there():
    with pytest.raises(UsageError, match="did you mean digits"):
        data.load(DataOptions(data="digts"))
    with pytest.raises(FedtinyError, match="does not exist"):
        data.load(DataOptions(data="nowhere.npz"))


def uneven(count=103):
    """60 of class 0, 30 of class 1, 13 of class 2, mixed; each sample holds its own number."""
    y = np.repeat([0, 1, 2], [60, 30, 13])[rng(9, "mix").permutation(count)]
    x = np.arange(count, dtype=np.float32)[:, None]
    return Dataset("uneven", x, y, x + 1000, y, ("a", "b", "c"), np.arange(count), np.arange(count) + 500)


def test_a_subset_keeps_the_classes_in_proportion_and_depends_on_the_seed():
    whole = uneven()
    part = limited(whole, 31, 0, rng(0, "subset"))
    counts = np.bincount(part.y_train)
    assert np.abs(counts - 31 * np.array([60, 30, 13]) / 103).max() <= 1
    assert counts.sum() == 31
    numbers = part.x_train[:, 0].astype(int)
    assert (np.diff(numbers) > 0).all()  # no sample twice, and in the order of the set
    assert (part.y_train == whole.y_train[numbers]).all()
    assert (part.client_train == numbers).all()
    assert part.x_test is whole.x_test
    other = limited(whole, 31, 0, rng(1, "subset")).x_train[:, 0]
    assert set(other) != set(part.x_train[:, 0])
    assert (limited(whole, 31, 0, rng(0, "subset")).x_train == part.x_train).all()


def test_the_test_subset_is_evenly_spaced_whatever_the_seed():
    part = limited(uneven(), 0, 4, rng(3, "subset"))
    assert part.x_test[:, 0].tolist() == [1000, 1025, 1051, 1077]  # 0, 103/4, 206/4, 309/4
    assert part.client_test.tolist() == [500, 525, 551, 577]
    assert len(part.y_train) == 103
    assert limited(uneven(), 103, 103, rng(0, "subset")).x_train.tolist() == uneven().x_train.tolist()


def test_a_subset_is_what_load_returns_and_never_more_than_there_is():
    small = data.load(DataOptions(train_samples=200, test_samples=50), 0)
    assert (len(small.y_train), len(small.y_test)) == (200, 50)
    assert data.fingerprint(small) == data.fingerprint(data.load(DataOptions(train_samples=200, test_samples=50), 0))
    assert data.fingerprint(small) != data.fingerprint(data.load(DataOptions(train_samples=200, test_samples=50), 1))
    with pytest.raises(FedtinyError, match="train_samples is 1443, but digits has 1442; use at most 1442, or 0"):
        data.load(DataOptions(train_samples=1443))
    with pytest.raises(FedtinyError, match="test_samples is 356, but digits has 355"):
        data.load(DataOptions(test_samples=356))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e39])
def test_a_value_beyond_float32_is_found_wherever_it_stands(value):
    x = np.zeros((6, 4))
    x[3, 2] = value
    with pytest.raises(FedtinyError, match="x_test holds values that are not finite, or beyond float32"):
        Dataset("d", np.zeros((6, 4), np.float16), np.zeros(6, np.int64), x, np.zeros(6, np.int64), ("a",))
