"""CINIC-10 as its authors hand it out: folders train, valid and test of 90,000 images each. valid is left out."""

from __future__ import annotations

from pathlib import Path

from fedtiny_export.errors import FedtinyError

from fedtiny_train.data import images
from fedtiny_train.data.cifar import NAMES10
from fedtiny_train.data.dataset import Dataset
from fedtiny_train.data.official import Layout, find

PAGE = "https://github.com/BayesWatch/cinic-10"
FOLDERS = Layout(("CINIC-10", "cinic-10", "cinic10"), ("train", "test"))


def read(root: Path) -> Dataset:
    """Return CINIC-10: 90,000 images to train with, 90,000 to test on."""
    folder, _ = find("cinic10", root, (FOLDERS,), PAGE)
    for part in FOLDERS.files:
        names = tuple(path.name for path in images.class_folders(folder / part))
        if names != NAMES10:
            raise FedtinyError(
                f"{folder / part} has the folders {', '.join(names)[:200]}; those of cinic10 are {', '.join(NAMES10)}"
            )
    return images.read_parts("cinic10", folder / "train", folder / "test")
