"""The value every reader returns: raw samples with labels, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError


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
    if not (np.abs(x.astype(np.float64)) <= np.finfo(np.float32).max).all():
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
