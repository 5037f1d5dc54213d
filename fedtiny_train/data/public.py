"""Public data that the user brings along: a FILE.npz with `x` and `y` in the form of the data set itself.

The server trains on it before any client does, so it must hold none of the samples that accuracy is measured on.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError, nearest

from fedtiny_train.data import npz
from fedtiny_train.data.dataset import Dataset

KEYS = ("x", "y")


def added(dataset: Dataset, path: Path) -> Dataset:
    """Return the data set with the public samples of a file."""
    if not path.is_file():
        raise FedtinyError(f"public data file {path} does not exist")
    arrays = npz.arrays(path)
    for key in (*arrays, *KEYS):
        if key not in KEYS:
            raise FedtinyError(f"{path}: unknown key {key!r}{nearest(key, KEYS)}; public data has x and y")
        if key not in arrays:
            raise FedtinyError(f"{path}: {key} missing; public data has x and y")
    found = replace(dataset, x_public=arrays["x"], y_public=npz.integers(path, "y", arrays))
    shared = count_shared(arrays["x"], dataset.x_test)
    if shared:
        raise FedtinyError(
            f"{path}: {shared} of {len(arrays['x'])} public samples equal test samples of {dataset.name}; "
            "remove them, or accuracy would be measured on what was trained on"
        )
    return found


def count_shared(x: npt.NDArray[Any], others: npt.NDArray[Any]) -> int:
    """Return how many samples of `x` are also in `others`, both as the float32 that the network is given."""
    known = {_digest(sample) for sample in others}
    return sum(_digest(sample) in known for sample in x)


def _digest(sample: npt.NDArray[Any]) -> bytes:
    # Adding zero makes -0.0 and 0.0 the same bytes.
    return hashlib.blake2b((sample.astype(np.float32) + np.float32(0)).tobytes(), digest_size=16).digest()
