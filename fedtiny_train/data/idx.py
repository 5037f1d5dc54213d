"""MNIST and Fashion-MNIST from idx files, packed with gzip as they are handed out, or unpacked.

An idx file is two zero bytes, a type (8 is an unsigned byte), the number of axes, the length of each as four
bytes with the highest first, and the values.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError
from fedtiny_export.untrusted import guarded

from fedtiny_train.data.dataset import Dataset
from fedtiny_train.data.official import Layout, check_size, find

MNIST_PAGE = "http://yann.lecun.com/exdb/mnist/"
FASHION_PAGE = "https://github.com/zalandoresearch/fashion-mnist"
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FILES = tuple(f"{part}-{what}" for part in ("train", "t10k") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
MAX_BYTES = 64 << 20  # the training images have 47,040,016 unpacked
UNSIGNED_BYTE = 8


def read_mnist(root: Path) -> Dataset:
    """Return MNIST: 60,000 images to train with, 10,000 to test on."""
    return _read("mnist", root, ("mnist", "MNIST/raw"), MNIST_PAGE, tuple(str(digit) for digit in range(10)))


def read_fashion_mnist(root: Path) -> Dataset:
    """Return Fashion-MNIST: 60,000 images to train with, 10,000 to test on."""
    return _read("fashion-mnist", root, ("fashion-mnist", "FashionMNIST/raw"), FASHION_PAGE, FASHION)


def _read(name: str, root: Path, folders: tuple[str, ...], page: str, classes: tuple[str, ...]) -> Dataset:
    packed = Layout(folders, tuple(f"{file}.gz" for file in FILES))
    folder, layout = find(name, root, (packed, Layout(folders, FILES)), page)
    x_train, y_train, x_test, y_test = (
        read_array(folder / file, axes) for file, axes in zip(layout.files, (3, 1, 3, 1), strict=True)
    )
    return Dataset(name, x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), classes)


def read_array(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Return the array of bytes that an idx file holds; it must have `axes` axes and not a byte more or less."""
    check_size(path, MAX_BYTES)

    def run() -> npt.NDArray[np.uint8]:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise FedtinyError(f"{path} unpacks to more than {MAX_BYTES:,} bytes; the official file has less")
        if content[:4] != bytes((0, 0, UNSIGNED_BYTE, axes)):
            raise ValueError(f"it does not begin as one of bytes with {axes} axes")
        start = 4 + 4 * axes
        shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
        if math.prod(shape) != len(content) - start:
            raise ValueError(f"shape {tuple(shape)} with {len(content) - start:,} bytes")
        return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)

    return guarded(path, "an idx file", run)
