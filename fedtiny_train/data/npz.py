"""A data set from a user's .npz file; nothing in it is ever unpickled.

Keys: x_train y_train x_test y_test, and optionally client_train client_test class_names.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError, nearest
from fedtiny_export.untrusted import guarded, read_arrays

from fedtiny_train.data.dataset import Dataset

logger = logging.getLogger(__name__)
REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("client_train", "client_test", "class_names")
FREE_BYTES, MAX_EXPANSION = 256 << 20, 100


def read(path: Path) -> Dataset:
    """Read and check the file; every problem names the key it is about."""
    found = arrays(path)
    for key in found:
        if key not in REQUIRED + OPTIONAL:
            raise FedtinyError(f"{path}: unknown key {key!r}{nearest(key, REQUIRED + OPTIONAL)}")
    missing = [key for key in REQUIRED if key not in found]
    if missing:
        raise FedtinyError(f"{path}: {', '.join(missing)} missing; it must have {' '.join(REQUIRED)}")
    y_train, y_test = integers(path, "y_train", found), integers(path, "y_test", found)
    if not len(y_train) or not len(y_test):
        raise FedtinyError(f"{path}: the training and the test part must each have a sample")
    names = _names(path, found, y_train, y_test)
    made = Dataset(
        path.name,
        found["x_train"],
        y_train,
        found["x_test"],
        y_test,
        names,
        integers(path, "client_train", found) if "client_train" in found else None,
        integers(path, "client_test", found) if "client_test" in found else None,
    )
    absent = np.setdiff1d(np.arange(len(names)), y_train)
    if len(absent):
        logger.warning(
            f"warning: {path}: {len(absent)} of {len(names)} classes have no training sample; the first is {absent[0]}"
        )
    return made


def arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file by name; refuse one that is small and unpacks to gigabytes."""

    def check() -> None:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size):
            raise FedtinyError(f"{path}: it unpacks to {unpacked:,} bytes, over {MAX_EXPANSION} times its own size")

    guarded(path, "a usable .npz file", check)
    return read_arrays(path)


def integers(path: Path, key: str, found: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Return one of a file's arrays, which must be a list of whole numbers."""
    array = found[key]
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise FedtinyError(f"{path}: {key} is {array.dtype} of shape {array.shape}; it must be a list of integers")
    return array.astype(np.int64)


def _names(path: Path, found: dict[str, npt.NDArray[Any]], *labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Return the classes' names; there may be no more classes than training samples, `labels[0]` being theirs."""
    limit = f"the limit is one class a training sample: {len(labels[0]):,}"
    if "class_names" not in found:
        highest = max(int(part.max()) for part in labels)
        if highest >= len(labels[0]):
            raise FedtinyError(f"{path}: label {highest} makes {highest + 1:,} classes; {limit}; count labels from 0")
        return tuple(str(label) for label in range(highest + 1))
    array = found["class_names"]
    if array.dtype.kind != "U" or array.ndim != 1:
        raise FedtinyError(f"{path}: class_names is {array.dtype}; it must be a list of strings")
    if len(array) > len(labels[0]):
        raise FedtinyError(f"{path}: class_names has {len(array):,} classes; {limit}")
    return tuple(str(name) for name in array)
