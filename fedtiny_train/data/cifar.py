"""CIFAR-10 and CIFAR-100 in the two forms their authors hand out: Python pickles and binary records.

An image is 3,072 bytes: 32 x 32 of red, then of green, then of blue. CIFAR-100 is read with its 100 fine
labels. Pickles are not unpickled: `pickled` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError

from fedtiny_train.data import pickled
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.data.official import Layout, find, read_bytes

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIDE, PLANES = 32, 3
PIXELS = SIDE * SIDE * PLANES
NAMES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
PYTHON10 = Layout(("cifar-10-batches-py",), (*BATCHES, "test_batch"))
BINARY10 = Layout(("cifar-10-batches-bin",), tuple(f"{name}.bin" for name in PYTHON10.files))
PYTHON100 = Layout(("cifar-100-python",), ("train", "test"))
BINARY100 = Layout(("cifar-100-binary",), ("train.bin", "test.bin"))
MAX_BINARY_BYTES = 200_000_000  # CIFAR-100's training file has 153,700,000

Part = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def read_cifar10(root: Path) -> Dataset:
    """Return CIFAR-10 from the folder it lies in: 50,000 images to train with, 10,000 to test on."""
    folder, layout = find("cifar10", root, (PYTHON10, BINARY10), PAGE)
    parts = [_part(folder / name, layout is BINARY10, "labels", 10) for name in layout.files]
    x, y = (np.concatenate([part[i] for part in parts[:-1]]) for i in (0, 1))
    return Dataset("cifar10", x, y, *parts[-1], NAMES10)


def read_cifar100(root: Path) -> Dataset:
    """Return CIFAR-100 with its fine labels: 50,000 images to train with, 10,000 to test on."""
    folder, layout = find("cifar100", root, (PYTHON100, BINARY100), PAGE)
    train, test = (_part(folder / name, layout is BINARY100, "fine_labels", 100) for name in layout.files)
    return Dataset("cifar100", *train, *test, _names100(folder))


def _part(path: Path, binary: bool, labels: str, classes: int) -> Part:
    rows, y = _records(path, 1 if classes == 10 else 2) if binary else _pickle(path, labels)
    if not len(y) or min(y) < 0 or max(y) >= classes:
        raise FedtinyError(f"{path}: it must hold labels from 0 to {classes - 1}")
    images = rows.reshape(-1, PLANES, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(y, dtype=np.int64)


def _records(path: Path, label_bytes: int) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Split binary records: one label, or CIFAR-100's coarse and then its fine one, and the image."""
    content = np.frombuffer(read_bytes(path, MAX_BINARY_BYTES), dtype=np.uint8)
    if content.size % (label_bytes + PIXELS):
        raise FedtinyError(f"{path}: {content.size:,} bytes are no whole number of {label_bytes + PIXELS}-byte records")
    records = content.reshape(-1, label_bytes + PIXELS)
    return records[:, label_bytes:], records[:, label_bytes - 1].tolist()


def _pickle(path: Path, key: str) -> tuple[npt.NDArray[np.uint8], list[int]]:
    content: dict[str, Any] = pickled.read(path)
    rows, labels = content.get("data"), content.get(key)
    if type(rows) is not np.ndarray or rows.ndim != 2 or rows.shape[1] != PIXELS:
        raise FedtinyError(f"{path}: data must be an array of {PIXELS} bytes an image")
    if type(labels) is not list or len(labels) != len(rows) or not all(type(label) is int for label in labels):
        raise FedtinyError(f"{path}: {key} must be a list of {len(rows)} whole numbers, one an image")
    return rows, labels


def _names100(folder: Path) -> tuple[str, ...]:
    """Return the names of the fine classes if the file with them came along, or else their numbers."""
    names: Any = [str(label) for label in range(100)]
    if (folder / "meta").exists():
        names = pickled.read(folder / "meta").get("fine_label_names")
    elif (path := folder / "fine_label_names.txt").exists():
        names = read_bytes(path, 1 << 16).decode("utf-8", "replace").split()
    if type(names) is not list or len(names) != 100 or not all(type(name) is str for name in names):
        raise FedtinyError(f"{folder}: the file with the names of the classes must hold 100 texts")
    return tuple(names)
