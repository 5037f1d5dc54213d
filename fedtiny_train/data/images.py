"""A folder of `class/image.png`: PNG, JPEG and BMP through Pillow, all images of one size.

With subfolders `train` and `test` these are the two parts; without them every fifth image of each class is
test. Classes and images come in the order of their names. If all images are grey there is one channel, else
three; transparency is dropped.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError, ToolMissingError
from fedtiny_export.untrusted import guarded

from fedtiny_train.data.dataset import Dataset, every_fifth

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
FORMATS = ("PNG", "JPEG", "BMP")
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_PIXELS = 1 << 22
MAX_BYTES = 600_000_000  # CINIC-10, train and test, has 552,960,000


@dataclass(frozen=True, slots=True)
class _Listed:
    """Images by path, each with the number of its class."""

    paths: list[Path]
    labels: list[int]


def read(folder: Path) -> Dataset:
    """Return the images of a folder with `train` and `test`, or of one with a folder a class."""
    parts = [name for name in ("train", "test") if (folder / name).is_dir()]
    if len(parts) == 1:
        raise FedtinyError(f"{folder} has a folder {parts[0]}, but not both train and test; add the other")
    if parts:
        return read_parts(folder.resolve().name, folder / "train", folder / "test")
    classes = class_folders(folder)
    whole = _listed(classes, [path.name for path in classes])
    labels = np.array(whole.labels)
    test = every_fifth(labels)
    if not test.any():
        raise FedtinyError(f"{folder}: no class has five images, so none is test; add images, or train and test")
    train_paths, test_paths = ([whole.paths[i] for i in np.flatnonzero(part)] for part in (~test, test))
    names = tuple(path.name for path in classes)
    x_train, x_test = _decoded(train_paths, test_paths)
    return Dataset(folder.resolve().name, x_train, labels[~test], x_test, labels[test], names)


def read_parts(name: str, train: Path, test: Path) -> Dataset:
    """Return the images of two folders; the classes are those of the first."""
    classes = class_folders(train)
    names = [path.name for path in classes]
    first, second = _listed(classes, names), _listed(class_folders(test), names)
    x_train, x_test = _decoded(first.paths, second.paths)
    return Dataset(name, x_train, np.array(first.labels), x_test, np.array(second.labels), tuple(names))


def class_folders(folder: Path) -> list[Path]:
    """Return the folders of the classes by name; hidden entries are passed over."""
    entries = sorted(path for path in _entries(folder) if not path.name.startswith("."))
    loose = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if loose:
        raise FedtinyError(f"{loose[0]} lies in no class; the images of a class lie in a folder of its name")
    found = [path for path in entries if path.is_dir()]
    if not found:
        raise FedtinyError(f"{folder} has no folder in it; the images of a class lie in a folder of its name")
    return found


def _entries(folder: Path) -> list[Path]:
    return guarded(folder, "a readable folder", lambda: list(folder.iterdir()))


def _listed(folders: list[Path], names: list[str]) -> _Listed:
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        if folder.name not in names:
            raise FedtinyError(f"{folder} is a class that is not in train; known: {', '.join(names)[:200]}")
        inside = sorted(path for path in _entries(folder) if not path.name.startswith("."))
        for path in inside:
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise FedtinyError(f"{path} is no PNG, JPEG or BMP file; take it out of the folder")
        if not inside:
            raise FedtinyError(f"{folder} has no image; remove the folder, or add images of this class")
        paths += inside
        labels += [names.index(folder.name)] * len(inside)
    return _Listed(paths, labels)


def _decoded(*parts: list[Path]) -> list[npt.NDArray[np.uint8]]:
    """Return the images of each part; every header is read before the first image is unpacked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, which are about what is checked here
        size, mode = _common([path for part in parts for path in part])
        planes = (3,) if mode == "RGB" else ()
        found = [np.empty((len(part), size[1], size[0], *planes), dtype=np.uint8) for part in parts]
        for x, part in zip(found, parts, strict=True):
            for row, path in enumerate(part):
                x[row] = _opened(path, lambda image: _pixels(image, size, mode))
    return found


def _common(paths: list[Path]) -> tuple[tuple[int, int], str]:
    """Return the size that all images have, and the mode that can hold them all."""
    size, mode = (0, 0), "L"
    for path in paths:
        one, kind = _opened(path, lambda image: (image.size, image.mode))
        if kind not in GREY + COLOUR:
            raise FedtinyError(f"{path} has pixels of mode {kind}; images must have 8 bits a channel")
        if path is paths[0]:
            size = one
            _check_size(path, size, len(paths))
        if one != size:
            raise FedtinyError(
                f"{path} has {one[0]} x {one[1]} pixels, but {paths[0]} has {size[0]} x {size[1]}; "
                "all images must have one size: scale them first"
            )
        mode = "RGB" if kind in COLOUR else mode
    return size, mode


def _check_size(path: Path, size: tuple[int, int], count: int) -> None:
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS:
        raise FedtinyError(f"{path} has {size[0]} x {size[1]} pixels; the limit is {MAX_PIXELS:,}: scale the images")
    if 3 * pixels * count > MAX_BYTES:
        raise FedtinyError(
            f"{path.parent.parent}: {count:,} images of {size[0]} x {size[1]} pixels are more than {MAX_BYTES:,} "
            "bytes; scale the images, or use fewer"
        )


def _opened(path: Path, look: Any) -> Any:
    """Call `look` with an image; turn what a bad file makes Pillow raise into one line."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ToolMissingError("images are read with Pillow; pip install fedtiny[train]") from None

    def run() -> Any:
        try:
            with Image.open(path, formats=FORMATS) as image:
                return look(image)
        except UnidentifiedImageError:
            raise ValueError("it is no PNG, JPEG or BMP file") from None
        except (struct.error, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from None

    return guarded(path, "a readable image", run)


def _pixels(image: Image.Image, size: tuple[int, int], mode: str) -> npt.NDArray[np.uint8]:
    if image.size != size:
        raise ValueError("it changed while it was read")
    return np.asarray(image.convert(mode), dtype=np.uint8)
