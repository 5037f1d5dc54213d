"""A data set from a user's .npz file; nothing in it is ever unpickled.

Keys: x_train y_train x_test y_test, and optionally client_train client_test class_names.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError, nearest
from fedtiny_export.untrusted import read_arrays

from fedtiny_train.data.dataset import Dataset

logger = logging.getLogger(__name__)
REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("client_train", "client_test", "class_names")


def read(path: Path) -> Dataset:
    """Read and check the file; every problem names the key it is about."""
    arrays = read_arrays(path)
    for key in arrays:
        if key not in REQUIRED + OPTIONAL:
            raise FedtinyError(f"{path}: unknown key {key!r}{nearest(key, REQUIRED + OPTIONAL)}")
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise FedtinyError(f"{path}: {', '.join(missing)} missing; it must have {' '.join(REQUIRED)}")
    y_train, y_test = _integers(path, "y_train", arrays), _integers(path, "y_test", arrays)
    if not len(y_train) or not len(y_test):
        raise FedtinyError(f"{path}: the training and the test part must each have a sample")
    names = _names(path, arrays, y_train, y_test)
    found = Dataset(
        path.name,
        arrays["x_train"],
        y_train,
        arrays["x_test"],
        y_test,
        names,
        _integers(path, "client_train", arrays) if "client_train" in arrays else None,
        _integers(path, "client_test", arrays) if "client_test" in arrays else None,
    )
    absent = np.setdiff1d(np.arange(len(names)), y_train)
    if len(absent):
        logger.warning(
            f"warning: {path}: {len(absent)} of {len(names)} classes have no training sample; the first is {absent[0]}"
        )
    return found


def _integers(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise FedtinyError(f"{path}: {key} is {array.dtype} of shape {array.shape}; it must be a list of integers")
    return array.astype(np.int64)


def _names(path: Path, arrays: dict[str, npt.NDArray[Any]], *labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Return the classes' names; there may be no more classes than training samples, `labels[0]` being theirs."""
    limit = f"the limit is one class a training sample: {len(labels[0]):,}"
    if "class_names" not in arrays:
        highest = max(int(part.max()) for part in labels)
        if highest >= len(labels[0]):
            raise FedtinyError(f"{path}: label {highest} makes {highest + 1:,} classes; {limit}; count labels from 0")
        return tuple(str(label) for label in range(highest + 1))
    array = arrays["class_names"]
    if array.dtype.kind != "U" or array.ndim != 1:
        raise FedtinyError(f"{path}: class_names is {array.dtype}; it must be a list of strings")
    if len(array) > len(labels[0]):
        raise FedtinyError(f"{path}: class_names has {len(array):,} classes; {limit}")
    return tuple(str(name) for name in array)
