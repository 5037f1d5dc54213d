"""The value every reader returns: raw samples with labels, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError

MAX_CLASS_NAME = 100


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set as the user gave it; x is (N,H,W), (N,H,W,C) or (N,F), labels count from 0.

    `client_train` and `client_test` name the natural owner of each sample; a negative one has none.
    """

    name: str
    x_train: npt.NDArray[Any]
    y_train: npt.NDArray[np.int64]
    x_test: npt.NDArray[Any]
    y_test: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    client_train: npt.NDArray[np.int64] | None = None
    client_test: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _check_names(self.name, self.class_names)
        for part, x, y, owner in (
            ("train", self.x_train, self.y_train, self.client_train),
            ("test", self.x_test, self.y_test, self.client_test),
        ):
            _check_part(self.name, part, x, y, owner, len(self.class_names))
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise FedtinyError(
                f"{self.name}: x_train has samples of shape {self.x_train.shape[1:]}, "
                f"x_test of shape {self.x_test.shape[1:]}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample as the network takes it, channels first."""
        shape = self.x_train.shape[1:]
        if len(shape) == 2:
            return (1, *shape)
        return (shape[2], shape[0], shape[1]) if len(shape) == 3 else shape


def _check_names(name: str, class_names: tuple[str, ...]) -> None:
    # They are names of folders or come from a file, and end up in JSON, in HTML and in firmware.
    for label, one in enumerate(class_names):
        if not one or len(one) > MAX_CLASS_NAME or not one.isprintable():
            raise FedtinyError(
                f"{name}: class {label} is called {one[:MAX_CLASS_NAME]!r}; "
                f"a name must have 1 to {MAX_CLASS_NAME} printable characters"
            )


def _check_part(
    name: str,
    part: str,
    x: npt.NDArray[Any],
    y: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64] | None,
    classes: int,
) -> None:
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise FedtinyError(f"{name}: x_{part} has shape {x.shape}; it must be (N,H,W), (N,H,W,C) or (N,F)")
    if x.dtype.kind not in "iuf":
        raise FedtinyError(f"{name}: x_{part} holds {x.dtype}; it must hold integers or floats")
    # No integer type reaches beyond float32, and least and greatest need no copy of a set of gigabytes.
    limit = float(np.finfo(np.float32).max)
    if x.dtype.kind == "f" and not (float(x.min()) >= -limit and float(x.max()) <= limit):
        raise FedtinyError(f"{name}: x_{part} holds values that are not finite, or beyond float32")
    if y.shape != (len(x),):
        raise FedtinyError(f"{name}: y_{part} has shape {y.shape}; x_{part} has {len(x)} samples")
    if y.min() < 0 or y.max() >= classes:
        raise FedtinyError(
            f"{name}: y_{part} has labels from {y.min()} to {y.max()}; with {classes} classes "
            f"they must be 0 to {classes - 1}"
        )
    if owner is not None and owner.shape != y.shape:
        raise FedtinyError(f"{name}: client_{part} has shape {owner.shape}; y_{part} has {len(y)} labels")


def every_fifth(y: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which samples are test where nobody has split a set: every fifth of each class, in its order."""
    test = np.zeros(len(y), dtype=np.bool_)
    for label in np.unique(y):
        test[np.flatnonzero(y == label)[4::5]] = True
    return test


def limited(dataset: Dataset, train: int, test: int, generator: np.random.Generator) -> Dataset:
    """Return the set with fewer samples; 0 keeps them all.

    Training samples are drawn by `generator`, each class by its share to within one sample. The test samples
    are evenly spaced, so that they are the same for every seed.
    """
    for part, wanted, have in (("train", train, len(dataset.y_train)), ("test", test, len(dataset.y_test))):
        if wanted > have:
            raise FedtinyError(
                f"{part}_samples is {wanted}, but {dataset.name} has {have}; use at most {have}, or 0 for all"
            )
    if train:
        order = generator.permutation(len(dataset.y_train))
        order = order[np.argsort(dataset.y_train[order], kind="stable")]
        chosen = np.sort(order[evenly(len(order), train)])
        owner = None if dataset.client_train is None else dataset.client_train[chosen]
        dataset = replace(dataset, x_train=dataset.x_train[chosen], y_train=dataset.y_train[chosen], client_train=owner)
    if test:
        chosen = evenly(len(dataset.y_test), test)
        owner = None if dataset.client_test is None else dataset.client_test[chosen]
        dataset = replace(dataset, x_test=dataset.x_test[chosen], y_test=dataset.y_test[chosen], client_test=owner)
    return dataset


def evenly(have: int, wanted: int) -> npt.NDArray[np.int64]:
    """Return `wanted` evenly spaced indices below `have`, the first being 0."""
    return np.arange(wanted, dtype=np.int64) * have // wanted
