"""SVHN, cropped digits (format 2), from the two MATLAB files its authors hand out. The extra set is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError

from fedtiny_train.data import matlab
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.data.official import Layout, find

PAGE = "http://ufldl.stanford.edu/housenumbers/"
MATLAB = Layout(("svhn", "SVHN"), ("train_32x32.mat", "test_32x32.mat"))
MAX_FILE_BYTES = 250_000_000  # the training file has about 182 million
MAX_ARRAY_BYTES = 300_000_000  # and 73,257 images of 3,072 bytes once unpacked


def read(root: Path) -> Dataset:
    """Return SVHN: 73,257 images to train with, 26,032 to test on."""
    folder, layout = find("svhn", root, (MATLAB,), PAGE)
    train, test = (_part(folder / name) for name in layout.files)
    return Dataset("svhn", *train, *test, tuple(str(digit) for digit in range(10)))


def _part(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    found = matlab.read(path, ("X", "y"), MAX_FILE_BYTES, MAX_ARRAY_BYTES)
    x, y = found["X"], found["y"].reshape(-1)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or len(y) != x.shape[3]:
        raise FedtinyError(
            f"{path}: X is {x.dtype} of shape {x.shape} beside {len(y)} labels; it must be 32 x 32 x 3 bytes for each"
        )
    if not np.isin(y, np.arange(1, 11)).all():
        raise FedtinyError(f"{path}: y must hold labels from 1 to 10, 10 being the digit 0")
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), y.astype(np.int64) % 10
