"""Known data sets in the file formats their authors use, with a few samples each."""

from __future__ import annotations

import gzip
import io
import wave
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

CLASSES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPOKEN = ("bed", "down", "go", "happy", "left", "no", "off", "on", "right", "stop", "tree", "up", "yes")


def some(seed: int, *shape: int) -> np.ndarray:
    """Return bytes that no two axes' exchange leaves alike."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pickle_of_python_2(content: dict[bytes, object]) -> bytes:
    """Return the pickle that Python 2 wrote of texts, lists of small numbers or texts, and an array of bytes."""
    out = io.BytesIO()
    count = 0

    def emit(code: bytes, memo: bool = True) -> None:
        nonlocal count
        out.write(code)
        if memo:
            out.write(b"q" + bytes([count]) if count < 256 else b"r" + count.to_bytes(4, "little"))
            count += 1

    def text(value: bytes) -> None:
        emit(b"U" + bytes([len(value)]) + value)

    def array(value: np.ndarray) -> None:
        emit(b"cnumpy.core.multiarray\n_reconstruct\n")
        emit(b"cnumpy\nndarray\n")
        emit(b"K\x00\x85")
        text(b"b")
        emit(b"\x87")
        emit(b"R")
        rows, columns = (size.to_bytes(2, "little") for size in value.shape)
        emit(b"(K\x01M" + rows + b"M" + columns + b"\x86")
        emit(b"cnumpy\ndtype\n")
        text(b"u1")
        emit(b"K\x00K\x01\x87")
        emit(b"R")
        emit(b"(K\x03", False)
        text(b"|")
        emit(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89", False)
        emit(b"T" + value.nbytes.to_bytes(4, "little") + value.tobytes())
        emit(b"tb", False)

    emit(b"\x80\x02}")
    emit(b"(", False)
    for key, value in content.items():
        text(key)
        if isinstance(value, bytes):
            text(value)
        elif isinstance(value, list):
            emit(b"]")
            emit(b"(", False)
            for one in value:
                text(one) if isinstance(one, bytes) else emit(b"K" + bytes([one]), False)
            emit(b"e", False)
        else:
            array(value)
    emit(b"u.", False)
    return out.getvalue()


def cifar10(root: Path, rows: int = 4) -> Path:
    """Write `cifar-10-batches-py`: batch k has the labels k, k+1, ..., the test batch 0, 1, ..."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for k, name in enumerate(["test_batch", *(f"data_batch_{k}" for k in range(1, 6))]):
        content = {
            b"batch_label": b"a batch",
            b"labels": [(k + i) % 10 for i in range(rows)],
            b"data": some(k, rows, 3072),
            b"filenames": [b"image_%d.png" % i for i in range(rows)],
        }
        (folder / name).write_bytes(pickle_of_python_2(content))
    return folder


def cifar100(root: Path, rows: int = 5) -> Path:
    """Write `cifar-100-python` with the names of the classes."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for k, name in enumerate(["train", "test"]):
        content = {
            b"fine_labels": [99 - k - i for i in range(rows)],
            b"coarse_labels": list(range(rows)),
            b"data": some(k, rows, 3072),
        }
        (folder / name).write_bytes(pickle_of_python_2(content))
    names = {b"fine_label_names": [b"fine %d" % i for i in range(100)], b"coarse_label_names": [b"coarse"] * 20}
    (folder / "meta").write_bytes(pickle_of_python_2(names))
    return folder


def svhn(root: Path, compressed: bool = True, labels: tuple[int, ...] = (10, 1, 9, 10, 5)) -> Path:
    """Write SVHN's two files, with a variable too many before the others."""
    folder = root / "svhn"
    folder.mkdir(parents=True)
    for k, name in enumerate(["train_32x32.mat", "test_32x32.mat"]):
        y = np.array(labels, dtype=np.uint8)[:, None]
        arrays = {"about": "a text", "X": some(k, 32, 32, 3, len(y)), "y": y}
        scipy.io.savemat(folder / name, arrays, do_compression=compressed)
    return folder


def pictures(root: Path, classes: tuple[str, ...], count: int, suffix: str = ".png", mode: str = "RGB") -> Path:
    """Write `count` images of 6 x 5 pixels a class; image i of class c is made from the number 100 c + i."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = some(100 * c + i, 5, 6, 3) if mode == "RGB" else some(100 * c + i, 5, 6)
            Image.fromarray(pixels).save(root / name / f"{i:03}{suffix}")
    return root


def cinic10(root: Path, count: int = 2) -> Path:
    """Write CINIC-10's folders; the images of test have other numbers than those of train."""
    for part, more in (("train", count), ("valid", count), ("test", 1)):
        pictures(root / "CINIC-10" / part, CLASSES10, more)
    return root / "CINIC-10"


def wave_file(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> None:
    """Write a sound file of 16-bit samples."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def speech_commands(root: Path) -> Path:
    """Write Speech Commands: 5 speakers say 13 words; speaker 3 is for validation, speaker 4 for testing.

    Speaker s saying word w is the constant 100 w + s, for a second less 10 w samples; noise counts up.
    """
    folder = root / "speech_commands_v0.02"
    for w, word in enumerate(SPOKEN):
        (folder / word).mkdir(parents=True)
        for s in range(5):
            wave_file(folder / word / f"{s:08x}_nohash_0.wav", np.full(16_000 - 10 * w, 100 * w + s))
    (folder / "_background_noise_").mkdir()
    for k, name in enumerate(["pink.wav", "tap.wav"]):
        wave_file(folder / "_background_noise_" / name, 15_000 * k + np.arange(100_000) // 100)
    for s, name in ((3, "validation_list.txt"), (4, "testing_list.txt")):
        (folder / name).write_text("".join(f"{word}/{s:08x}_nohash_0.wav\n" for word in SPOKEN))
    return folder


def idx(array: np.ndarray) -> bytes:
    """Return an idx file of bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def mnist(folder: Path, packed: bool = True) -> Path:
    """Write the four idx files: 12 images to train with, 4 to test on, of 6 x 5 pixels."""
    folder.mkdir(parents=True)
    for k, (part, count) in enumerate([("train", 12), ("t10k", 4)]):
        for what, array in (
            ("images-idx3-ubyte", some(k, count, 6, 5)),
            ("labels-idx1-ubyte", np.arange(count) % 10),
        ):
            if packed:
                (folder / f"{part}-{what}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / f"{part}-{what}").write_bytes(idx(array))
    return folder
