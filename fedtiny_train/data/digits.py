"""scikit-learn's bundled 8x8 digits: 1,797 images of 0 to 16, no download.

The test split is every fifth image of each class in the order of the set, so it is the same for every seed.
The set comes sorted by writer; both splits therefore hold all writers, as in most published use of it.
"""

from __future__ import annotations

import numpy as np
from fedtiny_export.errors import ToolMissingError

from fedtiny_train.data.dataset import Dataset, every_fifth


def read() -> Dataset:
    """Return the digits: 1,442 to train with, 355 to test on."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ToolMissingError("the digits come with scikit-learn; pip install fedtiny[train]") from None
    bunch = load_digits()
    y = bunch.target.astype(np.int64)
    test = every_fifth(y)
    names = tuple(str(label) for label in range(10))
    return Dataset("digits", bunch.images[~test], y[~test], bunch.images[test], y[test], names)
