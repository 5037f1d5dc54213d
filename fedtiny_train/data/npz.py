"""A data set from a user's .npz file; nothing in it is ever unpickled.

Keys: x_train y_train x_test y_test, and optionally client_train client_test class_names.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError, nearest

from fedtiny_train.data.dataset import Dataset

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("client_train", "client_test", "class_names")


def read(path: Path) -> Dataset:
    """Read and check the file; every problem names the key it is about."""
    arrays = _arrays(path)
    for key in arrays:
        if key not in REQUIRED + OPTIONAL:
            raise FedtinyError(f"{path}: unknown key {key!r}{nearest(key, REQUIRED + OPTIONAL)}")
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise FedtinyError(f"{path}: {', '.join(missing)} missing; it must have {' '.join(REQUIRED)}")
    y_train, y_test = _integers(path, "y_train", arrays), _integers(path, "y_test", arrays)
    if not len(y_train) or not len(y_test):
        raise FedtinyError(f"{path}: the training and the test part must each have a sample")
    highest = int(max(y_train.max(), y_test.max()))
    names = _names(path, arrays, highest)
    return Dataset(
        path.name,
        arrays["x_train"],
        y_train,
        arrays["x_test"],
        y_test,
        names,
        _integers(path, "client_train", arrays) if "client_train" in arrays else None,
        _integers(path, "client_test", arrays) if "client_test" in arrays else None,
    )


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise FedtinyError(f"{path} is a single array, not a .npz archive; save with numpy.savez")
        with archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickle" in reason:
            reason = "it holds Python objects, which are never loaded; save plain arrays"
        raise FedtinyError(f"{path} cannot be read as .npz: {reason}") from None


def _integers(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise FedtinyError(f"{path}: {key} is {array.dtype} of shape {array.shape}; it must be a list of integers")
    return array.astype(np.int64)


def _names(path: Path, arrays: dict[str, npt.NDArray[Any]], highest: int) -> tuple[str, ...]:
    if "class_names" not in arrays:
        return tuple(str(label) for label in range(highest + 1))
    array = arrays["class_names"]
    if array.dtype.kind != "U" or array.ndim != 1:
        raise FedtinyError(f"{path}: class_names is {array.dtype}; it must be a list of strings")
    return tuple(str(name) for name in array)
