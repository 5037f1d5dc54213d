"""Known data sets as their authors hand them out: where their files lie, and what to say when they do not.

Nothing is downloaded. A reader names its files and gets the folder that holds them, or one line that says what
was looked for and where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtiny_export.errors import FedtinyError
from fedtiny_export.untrusted import guarded


@dataclass(frozen=True, slots=True)
class Layout:
    """One form a set is handed out in: folders it may lie in, and what every such folder holds."""

    folders: tuple[str, ...]
    files: tuple[str, ...]


def find(name: str, root: Path, layouts: Sequence[Layout], page: str) -> tuple[Path, Layout]:
    """Return the folder of a known set and its form; `root` is the folder itself or the one above it.

    A folder counts by its first file. One that lacks another of its files is an error and not passed over:
    somebody stopped copying half way.
    """
    for layout in layouts:
        for folder in (*(root / part for part in layout.folders), root):
            if (folder / layout.files[0]).exists():
                return _complete(name, folder, layout, page), layout
    wanted = " or ".join(f"{part.folders[0]}/{_shown(part.files)}" for part in layouts)
    raise FedtinyError(f"{name} is not in data_dir {root}: it has no {wanted}; get it from {page}")


def _complete(name: str, folder: Path, layout: Layout, page: str) -> Path:
    for file in layout.files:
        if not (folder / file).exists():
            raise FedtinyError(f"{name} is not complete: {folder / file} does not exist; get it from {page}")
    return folder


def _shown(files: tuple[str, ...]) -> str:
    return files[0] if len(files) == 1 else "{" + ",".join(files) + "}"


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes."""
    check_size(path, limit)
    return guarded(path, "a readable file", path.read_bytes)


def check_size(path: Path, limit: int) -> None:
    """Refuse what is no regular file (a pipe would be waited for), or is larger than the set ever was."""
    if not path.is_file():
        raise FedtinyError(f"{path} is not a file")
    size = path.stat().st_size
    if size > limit:
        raise FedtinyError(f"{path} has {size:,} bytes; the official file has less than {limit:,}")
