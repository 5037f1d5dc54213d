"""Known data sets, read from files in the form their authors hand out."""

from __future__ import annotations

import cmath
import math
import pickle

import numpy as np
import pytest
import scipy.io
import tiny_sets
from fedtiny_export.errors import FedtinyError
from PIL import Image

from fedtiny_train import data, options
from fedtiny_train.data import cifar, idx, mfcc, pickled, speech_commands, svhn, wav
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.options import DataOptions


def load(name, folder):
    return data.load(DataOptions(data=name, data_dir=str(folder)))


def same(one, other):
    """Say whether two readings agree in every sample."""
    return data.fingerprint(one) == data.fingerprint(other) and one.class_names == other.class_names


def test_every_name_that_is_offered_has_a_reader():
    assert tuple(data.READERS) == options.DATASETS
    text = next(item.metadata["help"] for _, item in options.options() if item.name == "data")
    assert all(name in text for name in options.DATASETS)


def test_the_made_pickles_are_what_python_reads_too(tmp_path):
    folder = tiny_sets.cifar10(tmp_path)
    found = pickle.loads((folder / "data_batch_3").read_bytes(), encoding="bytes")
    assert found[b"labels"] == [3, 4, 5, 6]
    assert (found[b"data"] == tiny_sets.some(3, 4, 3072)).all()
    ours = pickled.read(folder / "data_batch_3")
    assert ours["labels"] == found[b"labels"]
    assert (ours["data"] == found[b"data"]).all()
    assert ours["filenames"] == [name.decode() for name in found[b"filenames"]]


def test_cifar10_pickles(tmp_path):
    tiny_sets.cifar10(tmp_path)
    found = load("cifar10", tmp_path)
    assert found.x_train.shape == (20, 32, 32, 3)
    assert found.shape == (3, 32, 32)
    assert found.y_train.tolist() == [(k + i) % 10 for k in range(1, 6) for i in range(4)]
    assert found.y_test.tolist() == [0, 1, 2, 3]
    raw = tiny_sets.some(2, 4, 3072)  # the second batch; its third image is the seventh of all
    for row, column, plane in [(0, 0, 0), (5, 31, 1), (31, 2, 2)]:
        assert found.x_train[6, row, column, plane] == raw[2, plane * 1024 + row * 32 + column]
    assert (found.class_names[3], found.class_names[9]) == ("cat", "truck")
    assert same(found, load("cifar10", tmp_path / "cifar-10-batches-py"))  # the folder itself may be named


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_that_somebody_wrote_again(tmp_path, protocol):
    folder = tiny_sets.cifar10(tmp_path)
    before = load("cifar10", tmp_path)
    for path in folder.iterdir():
        content = pickle.loads(path.read_bytes(), encoding="bytes" if protocol == 3 else "latin1")
        key = b"data" if protocol == 3 else "data"
        content[key] = np.asfortranarray(content[key]) if protocol == 4 else content[key]
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert same(load("cifar10", tmp_path), before)


def test_cifar10_binary_records_are_the_same_images(tmp_path):
    folder = tiny_sets.cifar10(tmp_path / "a")
    binary = tmp_path / "b" / "cifar-10-batches-bin"
    binary.mkdir(parents=True)
    for path in folder.iterdir():
        content = pickled.read(path)
        rows = np.concatenate([np.array(content["labels"], dtype=np.uint8)[:, None], content["data"]], axis=1)
        (binary / f"{path.name}.bin").write_bytes(rows.tobytes())
    assert same(load("cifar10", tmp_path / "a"), load("cifar10", tmp_path / "b"))
    (binary / "data_batch_2.bin").write_bytes(bytes(3073 * 2 + 1))
    with pytest.raises(FedtinyError, match=r"data_batch_2\.bin: 6,147 bytes are no whole number of 3073-byte records"):
        load("cifar10", tmp_path / "b")


def test_cifar100_has_its_fine_labels(tmp_path):
    folder = tiny_sets.cifar100(tmp_path)
    found = load("cifar100", tmp_path)
    assert found.y_train.tolist() == [99, 98, 97, 96, 95]
    assert found.y_test.tolist() == [98, 97, 96, 95, 94]
    assert found.class_names[7] == "fine 7"
    (folder / "meta").unlink()
    assert load("cifar100", tmp_path).class_names[7] == "7"
    binary = tmp_path / "b" / "cifar-100-binary"
    binary.mkdir(parents=True)
    for name in ("train", "test"):
        content = pickled.read(folder / name)
        labels = np.array([content["coarse_labels"], content["fine_labels"]], dtype=np.uint8).T
        (binary / f"{name}.bin").write_bytes(np.concatenate([labels, content["data"]], axis=1).tobytes())
    (binary / "fine_label_names.txt").write_text("\n".join(f"name{i}" for i in range(100)))
    read = load("cifar100", tmp_path / "b")
    assert data.fingerprint(read) == data.fingerprint(found)
    assert read.class_names[42] == "name42"


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path, compressed):
    folder = tiny_sets.svhn(tmp_path, compressed)
    found = load("svhn", tmp_path)
    assert found.y_train.tolist() == [0, 1, 9, 0, 5]  # 10 is the digit 0
    again = scipy.io.loadmat(folder / "test_32x32.mat")["X"]
    assert found.x_test.shape == (5, 32, 32, 3)
    for n, row, column, plane in [(0, 0, 0, 0), (4, 1, 30, 2), (2, 31, 3, 1)]:
        assert found.x_test[n, row, column, plane] == again[row, column, plane, n]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "it has no variable y"),
        ({"X": np.full((32, 32, 3, 2), 0.5), "y": np.ones((2, 1))}, "X is float64 of shape"),
        ({"X": np.zeros((32, 32, 4, 2), np.uint8), "y": np.ones((2, 1))}, r"X is uint8 of shape \(32, 32, 4, 2\)"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((3, 1))}, "beside 3 labels"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [1]])}, "labels from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [11]])}, "labels from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1j], [1]])}, "y is no array of real numbers"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": "12"}, "y is no array of real numbers"),
        ({"X": np.array([[{}]], dtype=object), "y": np.ones((2, 1))}, "X is no array of real numbers"),
    ],
)
def test_svhn_files_that_hold_something_else(tmp_path, arrays, reason):
    folder = tiny_sets.svhn(tmp_path)
    scipy.io.savemat(folder / "train_32x32.mat", arrays)
    with pytest.raises(FedtinyError, match=reason) as caught:
        load("svhn", tmp_path)
    assert "train_32x32.mat: " in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_sets(tmp_path, name, packed):
    tiny_sets.mnist(tmp_path / name, packed)
    found = load(name, tmp_path)
    assert found.shape == (1, 6, 5)
    assert (found.x_train == tiny_sets.some(0, 12, 6, 5)).all()
    assert (found.x_test == tiny_sets.some(1, 4, 6, 5)).all()
    assert found.y_train.tolist() == [*range(10), 0, 1]
    assert found.class_names[9] == ("9" if name == "mnist" else "Ankle boot")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar10", "has no cifar-10-batches-py/{data_batch_1,data_batch_2,"),
        ("cifar10", " or cifar-10-batches-bin/{data_batch_1.bin,"),
        ("cifar10", "get it from https://www.cs.toronto.edu/~kriz/cifar.html"),
        ("cifar100", "has no cifar-100-python/{train,test} or cifar-100-binary/{train.bin,test.bin}; get it from"),
        ("svhn", "has no svhn/{train_32x32.mat,test_32x32.mat}; get it from http://ufldl"),
        ("cinic10", "has no CINIC-10/{train,test}; get it from https://github.com/BayesWatch/cinic-10"),
        ("speech-commands", "has no speech_commands_v0.02/{testing_list.txt,validation_list.txt,_background_noise_,"),
        ("mnist", "has no mnist/{train-images-idx3-ubyte.gz,train-labels-idx1-ubyte.gz,t10k-"),
        ("fashion-mnist", "get it from https://github.com/zalandoresearch/fashion-mnist"),
    ],
)
def test_a_set_that_is_not_there_is_one_line(tmp_path, name, said):
    with pytest.raises(FedtinyError) as caught:
        load(name, tmp_path)
    assert str(caught.value).startswith(f"{name} is not in data_dir {tmp_path}: it has no ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_that_lacks_a_file_is_not_complete(tmp_path):
    folder = tiny_sets.cifar10(tmp_path)
    (folder / "data_batch_4").unlink()
    with pytest.raises(FedtinyError, match=r"cifar10 is not complete: .*data_batch_4 does not exist; get it from"):
        load("cifar10", tmp_path)
    (folder / "data_batch_4").mkdir()
    with pytest.raises(FedtinyError, match="data_batch_4 is not a file"):
        load("cifar10", tmp_path)


def test_labels_that_no_class_has(tmp_path):
    folder = tiny_sets.cifar10(tmp_path)
    content = {b"labels": [10, 0], b"data": tiny_sets.some(0, 2, 3072)}
    (folder / "test_batch").write_bytes(tiny_sets.pickle_of_python_2(content))
    with pytest.raises(FedtinyError, match="test_batch: it must hold labels from 0 to 9"):
        cifar.read_cifar10(tmp_path)
    tiny_sets.mnist(tmp_path / "mnist", packed=False)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(tiny_sets.idx(np.array([0, 1, 2, 10])))
    with pytest.raises(FedtinyError, match="y_test has labels from 0 to 10; with 10 classes"):
        idx.read_mnist(tmp_path)


def test_files_larger_than_the_set_ever_was_are_not_read(tmp_path, monkeypatch):
    tiny_sets.svhn(tmp_path)
    monkeypatch.setattr(svhn, "MAX_FILE_BYTES", 1000)
    with pytest.raises(FedtinyError, match=r"train_32x32\.mat has [0-9,]+ bytes; the official file has less than 1,00"):
        svhn.read(tmp_path)


def test_what_a_reader_returns_is_checked_like_any_other_set(tmp_path):
    tiny_sets.mnist(tmp_path / "mnist")
    found = load("mnist", tmp_path)
    assert isinstance(found, Dataset)
    federation = data.deal(found, DataOptions(clients=3, partition="iid", public="none"), 0)
    assert sum(len(shard.y) for shard in federation.shards) == 12
    assert federation.shards[0].x.dtype == np.float32


def test_a_folder_of_images_with_every_fifth_as_test(tmp_path):
    folder = tiny_sets.pictures(tmp_path / "pets", ("dog", "cat"), 6)
    found = data.load(DataOptions(data="pets", data_dir=str(tmp_path)))
    assert (found.name, found.class_names, found.shape) == ("pets", ("cat", "dog"), (3, 5, 6))
    assert found.y_train.tolist() == [0] * 5 + [1] * 5
    # cat is the second class that was made: its fifth image was made from 104, dog's from 4
    assert (found.x_test == np.stack([tiny_sets.some(n, 5, 6, 3) for n in (104, 4)])).all()
    assert (found.x_train[4] == tiny_sets.some(105, 5, 6, 3)).all()
    assert same(found, data.load(DataOptions(data=str(folder))))


def test_a_folder_of_images_with_both_parts(tmp_path):
    tiny_sets.pictures(tmp_path / "d" / "train", ("a", "b", "c"), 2)
    tiny_sets.pictures(tmp_path / "d" / "test", ("b", "c"), 1)
    (tmp_path / "d" / "valid").mkdir()  # anything beside the two is passed over
    (tmp_path / "d" / "test" / "b" / ".hidden").write_text("x")
    found = data.load(DataOptions(data=str(tmp_path / "d")))
    assert found.y_train.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.y_test.tolist() == [1, 2]
    assert (found.x_test[1] == tiny_sets.some(100, 5, 6, 3)).all()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".JPEG"])
def test_grey_images_have_one_channel_unless_one_has_colours(tmp_path, suffix):
    folder = tiny_sets.pictures(tmp_path / "d", ("a", "b"), 5, suffix, mode="L")
    found = data.load(DataOptions(data=str(folder)))
    assert found.shape == (1, 5, 6)
    raw = np.stack([tiny_sets.some(4, 5, 6), tiny_sets.some(104, 5, 6)])
    if suffix in (".png", ".bmp"):  # JPEG is not exact
        assert (found.x_test == raw).all()
    red = np.zeros((5, 6, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(folder / "b" / "000.png")
    (folder / "b" / f"000{suffix}").unlink() if suffix != ".png" else None
    found = data.load(DataOptions(data=str(folder)))
    assert found.shape == (3, 5, 6)
    assert (found.x_train[4] == red).all()
    if suffix in (".png", ".bmp"):
        assert (found.x_test == raw[..., None]).all()


def test_cinic10_leaves_valid_out(tmp_path):
    folder = tiny_sets.cinic10(tmp_path)
    found = load("cinic10", tmp_path)
    assert (len(found.y_train), found.y_test.tolist()) == (20, list(range(10)))
    assert found.class_names == cifar.NAMES10
    (folder / "test" / "truck").rename(folder / "test" / "lorry")
    with pytest.raises(FedtinyError, match=r"test has the folders airplane, .*lorry, ship; those of cinic10 are"):
        load("cinic10", tmp_path)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 101, "\udcff", "a\x1b[31m"])
def test_names_of_classes_that_cannot_be_written(name):
    x, y = np.zeros((2, 3)), np.zeros(2, np.int64)
    with pytest.raises(FedtinyError, match=r"d: class 1 is called .* printable characters") as caught:
        Dataset("d", x, y, x, y, ("a", name))
    assert str(caught.value).isprintable()


def test_speech_commands(tmp_path):
    tiny_sets.speech_commands(tmp_path)
    found = load("speech-commands", tmp_path)
    assert found.shape == (1, 49, 10)
    assert found.class_names[10:] == ("silence", "unknown")
    # Three speakers train: 30 clips of ten words, so 3 of silence and 3 of the 9 clips of bed, happy and tree.
    assert np.bincount(found.y_train).tolist() == [3] * 12
    assert np.bincount(found.y_test).tolist() == [1] * 12
    words = found.y_train < 10
    assert found.client_train[words].reshape(10, 3).tolist() == [[0, 1, 2]] * 10
    assert found.client_train[found.y_train == 10].tolist() == [-1] * 3
    assert found.client_train[found.y_train == 11].tolist() == [0, 0, 0]  # the 1st, 4th and 7th of nine
    # Word 1 (down) by speaker 2 is the constant 102, ten samples short of a second.
    sound = np.zeros((1, 16_000), np.int16)
    sound[0, :15_990] = 102
    assert (found.x_train[2] == mfcc.mfcc(sound)[0]).all()
    federation = data.deal(found, DataOptions(partition="natural", clients=0, public="none"), 0)
    assert [len(shard.y) for shard in federation.shards] == [14, 11, 11]  # 10 words, a clip of silence, unknown: 0


def test_silence_of_training_and_of_test_share_no_sample(tmp_path):
    folder = tiny_sets.speech_commands(tmp_path)
    sounds = {p: wav.read(p, 16_000, 1 << 20) for p in sorted((folder / "_background_noise_").iterdir())}
    train = speech_commands._silence(sounds, 5, is_test=False)
    assert [clip.start for clip in train] == [0, 21333, 42667, 0, 32000]  # 64,001 places for three, and for two
    test = speech_commands._silence(sounds, 3, is_test=True)
    assert [clip.start for clip in test] == [80_000, 82_000, 80_000]
    assert [clip.path.name for clip in test] == ["pink.wav"] * 2 + ["tap.wav"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: tiny_sets.wave_file(d / "up/x_nohash_1.wav", np.zeros(9), rate=8000), "8000 Hz, 16 bits; it must"),
        (lambda d: tiny_sets.wave_file(d / "up/x_nohash_1.wav", np.zeros(8), channels=2), "2 channels"),
        (lambda d: tiny_sets.wave_file(d / "up/x_nohash_1.wav", np.zeros(0)), "it ends before its samples do"),
        (lambda d: tiny_sets.wave_file(d / "up/x_nohash_1.wav", np.zeros(99_000)), "131,072"),
        (lambda d: (d / "up/x.wav").write_bytes(b""), "names no speaker; its name must be SPEAKER_nohash_NUMBER.wav"),
        (lambda d: (d / "up/x_nohash_1.wav").mkdir(), "x_nohash_1.wav is not a file"),
        (lambda d: [p.unlink() for p in (d / "no").iterdir()], "no has no training clip"),
        (lambda d: (d / "testing_list.txt").write_text("up/00000004_nohash_0.wav"), "down has no test clip"),
        (lambda d: [p.unlink() for p in (d / "_background_noise_").iterdir()], "_background_noise_ has 0 .wav files"),
        (lambda d: tiny_sets.wave_file(d / "_background_noise_/a.wav", np.zeros(79_999)), "at least 5 seconds"),
        (lambda d: (d / "on").rename(d / "onn"), "on does not exist"),
    ],
)
def test_speech_commands_that_are_not_as_handed_out(tmp_path, change, said):
    folder = tiny_sets.speech_commands(tmp_path)
    change(folder)
    with pytest.raises(FedtinyError) as caught:
        load("speech-commands", tmp_path)
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def chirp():
    t = np.arange(16_000)
    return np.round(12_000 * np.sin(2 * np.pi * (200 * t / 16_000 + 1500 * (t / 16_000) ** 2))).astype(np.int16)


def test_coefficients_equal_those_of_tensorflow():
    """Computed once with tf.signal 2.21 in float32: stft, linear_to_mel_weight_matrix, mfccs_from_log_mel_...

    Its single precision is what the tolerance is for: a band between two harmonics holds almost nothing.
    """
    found = mfcc.mfcc(chirp()[None])[0]
    known = [
        [-37.8965, 18.7268, 9.4903, 0.2933, -3.0962, -4.2743, -4.8330, -4.0085, -2.7798, -1.5550],
        [-47.6221, -9.5084, -10.3172, 10.6105, -1.8884, -5.6572, 5.8486, -0.0626, -3.4930, 3.3441],
        [-54.6269, -13.8739, 8.1910, -5.1544, 2.5456, 0.8040, -2.3997, 3.7494, -4.2321, 3.8138],
    ]
    assert np.abs(found[[0, 24, 48]] - known).max() < 0.01


def test_coefficients_of_one_frame_by_the_formulas():
    """The sums written out, without a fast transform, for the third frame."""
    sound = chirp()[640 : 640 + 640] / 32768
    window = [math.sin(math.pi * n / 640) ** 2 for n in range(640)]
    lines = []
    for k in range(513):
        turn = [cmath.exp(-2j * math.pi * k * n / 1024) for n in range(640)]
        lines.append(abs(sum(s * w * t for s, w, t in zip(sound, window, turn, strict=True))))
    high, low = (1127 * math.log(1 + hertz / 700) for hertz in (4000, 20))
    logs = []
    for band in range(40):
        left, middle, right = (low + (high - low) * (band + i) / 41 for i in range(3))
        energy = 0.0
        for k in range(1, 513):
            place = 1127 * math.log(1 + k * 15.625 / 700)
            if left < place < right:
                up, down = (place - left) / (middle - left), (right - place) / (right - middle)
                energy += lines[k] * min(up, down)
        logs.append(math.log(energy + 1e-6))
    for k in range(10):
        known = math.sqrt(2 / 40) * sum(v * math.cos(math.pi * k * (n + 0.5) / 40) for n, v in enumerate(logs))
        assert mfcc.mfcc(chirp()[None])[0, 2, k] == pytest.approx(known, rel=1e-5, abs=1e-5)


def test_a_clip_of_nothing_is_the_logarithm_of_the_floor():
    found = mfcc.mfcc(np.zeros((1, 16_000), np.int16))
    assert found.shape == (1, 49, 10)
    assert found[0, :, 0] == pytest.approx(math.sqrt(2 / 40) * 40 * math.log(1e-6), rel=1e-6)
    assert np.abs(found[0, :, 1:]).max() < 1e-4  # the same everywhere, so no cosine but the constant
