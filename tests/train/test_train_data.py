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
from fedtiny_train.data import digits, npz, partition, public
from fedtiny_train.data.dataset import Dataset, limited
from fedtiny_train.options import DataOptions
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


def test_a_file_that_unpacks_to_far_more_than_its_size(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, **good(x_train=np.zeros((8, 50_000)), x_test=np.zeros((4, 50_000))))
    npz.read(path)  # 4.8 megabytes do no harm
    monkeypatch.setattr(npz, "FREE_BYTES", 1 << 20)
    with pytest.raises(FedtinyError, match=r"d\.npz: it unpacks to 4,80[0-9,]+ bytes, over 100 times its own size"):
        npz.read(path)
    np.savez(path, **good(x_train=np.zeros((8, 50_000)), x_test=np.zeros((4, 50_000))))
    npz.read(path)  # as large, and not packed


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


@pytest.fixture
def brought(tmp_path):
    """Write public data beside a small set, from arrays made of that set; return the options that name both."""

    def write(make):
        np.savez(tmp_path / "d.npz", **good(x_train=np.eye(8, 5), x_test=np.eye(4, 5) * 2))
        np.savez(tmp_path / "p.npz", **make(npz.read(tmp_path / "d.npz")))
        return DataOptions(data="d.npz", data_dir=str(tmp_path), public="p.npz", clients=2, partition="iid")

    return write


def test_public_data_of_the_user(brought):
    options = brought(lambda d: {"x": np.full((3, 5), 7), "y": np.array([1, 0, 1])})
    dataset = data.load(options)
    federation = data.deal(dataset, options, 0)
    assert federation.public.x.dtype == np.float32
    assert federation.public.x.tolist() == [[7.0] * 5] * 3
    assert federation.public.y.tolist() == [1, 0, 1]
    assert sum(len(shard.y) for shard in federation.shards) == 8  # nothing was taken from the clients
    other = brought(lambda d: {"x": np.full((3, 5), 8), "y": np.array([1, 0, 1])})
    assert data.fingerprint(dataset) != data.fingerprint(data.load(other))  # so a resumed run can tell


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: {"x": d.x_test[:1], "y": d.y_test[:1]}, "1 of 1 public samples equal test samples of d.npz; remove"),
        (lambda d: {"x": np.vstack([d.x_train, d.x_test[1:].astype(int)]), "y": np.zeros(11, int)}, "3 of 11 public"),
        (lambda d: {"x": -d.x_test * 0, "y": d.y_test}, None),  # all zeros, which no test sample is
        (lambda d: {"x": d.x_train, "y": d.y_train}, None),
        (lambda d: {"x": np.zeros((2, 6)), "y": np.zeros(2, int)}, r"x_train has samples of shape \(5,\), x_public of"),
        (lambda d: {"x": np.ones((2, 5)), "y": np.array([0, 2])}, "y_public has labels from 0 to 2; with 2 classes"),
        (lambda d: {"x": np.ones((2, 5)), "y": np.zeros(3, int)}, "y_public has shape"),
        (lambda d: {"x": np.zeros((0, 5)), "y": np.zeros(0, int)}, "x_public has shape"),
        (lambda d: {"x": np.full((2, 5), np.inf), "y": np.zeros(2, int)}, "x_public holds values that are not finite"),
        (lambda d: {"x": np.ones((2, 5)), "y": np.zeros(2)}, "p.npz: y is float64 of shape"),
        (lambda d: {"x": np.ones((2, 5))}, "p.npz: y missing; public data has x and y"),
        (lambda d: {"x": np.ones((2, 5)), "y": np.zeros(2, int), "xs": np.ones(1)}, "unknown key 'xs' .did you mean x"),
        (lambda d: {"x": np.array([[{}] * 5] * 2), "y": np.zeros(2, int)}, "p.npz: not a usable .npz file: Object arr"),
    ],
)
def test_public_data_that_does_not_fit(brought, make, reason):
    options = brought(make)
    if reason is None:
        assert data.load(options).x_public is not None
        return
    with pytest.raises(FedtinyError, match=reason) as caught:
        data.load(options)
    assert "\n" not in str(caught.value)


def test_zeros_of_either_sign_are_one_sample():
    assert public.count_shared(np.array([[0.0, -0.0]]), np.array([[-0.0, 0.0]])) == 1
    assert public.count_shared(np.array([[1, 2], [1, 2], [2, 1]]), np.array([[1.0, 2.0]])) == 2


def test_a_public_file_that_is_not_there(brought, tmp_path):
    options = brought(lambda d: {"x": d.x_train, "y": d.y_train})
    (tmp_path / "p.npz").unlink()
    with pytest.raises(FedtinyError, match=r"public data file .*p\.npz does not exist"):
        data.load(options)


def test_natural_owners_of_test_samples_are_numbered_like_the_clients(tmp_path):
    y = np.arange(8) % 2
    owned = Dataset(
        "d",
        np.eye(8),
        y,
        np.eye(4, 8),
        y[:4],
        ("a", "b"),
        np.array([30, 30, 7, 7, 9, 9, -1, 30]),
        np.array([9, 30, 5, 7]),
    )
    natural = DataOptions(partition="natural", clients=0, public="none")
    assert data.deal(owned, natural, 0).test_client.tolist() == [1, 2, -1, 0]  # clients 7, 9 and 30 in this order
    two = DataOptions(partition="natural", clients=2, public="none")
    assert data.deal(owned, two, 0).test_client.tolist() == [1, -1, -1, 0]  # 30 does not take part
    # Clients that were dealt own nothing in the test set.
    assert data.deal(owned, DataOptions(partition="iid", clients=2, public="none"), 0).test_client is None


def test_samples_shared_by_none_are_dealt_out_at_random():
    owner = np.array([5] * 10 + [-1] * 40 + [2] * 10 + [-7] * 3)
    parts = [partition.split("natural", owner * 0, 0, owner, rng(seed, "partition")) for seed in (0, 1)]
    for one in parts:
        assert sorted(np.concatenate(one).tolist()) == list(range(63))
        assert set(range(50, 60)) <= set(one[0].tolist())
        assert set(range(10)) <= set(one[1].tolist())
        assert [len(part) for part in one] == [10 + 22, 10 + 21]
    assert parts[0][0].tolist() != parts[1][0].tolist()
