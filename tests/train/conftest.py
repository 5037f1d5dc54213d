"""Small runs that several tests look at, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtiny_train.cli import main
from fedtiny_train.client import prepare_torch

SMALL = ["--clients", "3", "--rounds", "3", "--width", "4", "--local-epochs", "1", "--public", "holdout:40"]
SMALL += ["--tune-epochs", "3", "--pool", "2", "--adjust-every", "1", "--adjust-until", "3"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    prepare_torch()


def train(*arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


def small(out: Path, *arguments: str) -> Path:
    """Make a small run that must succeed."""
    assert train(*SMALL, "--out", out, *arguments) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a run by its name, but for the one that holds clock times."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "timing.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("train") / "run")


@pytest.fixture(scope="session")
def tools():
    """Return the functions above, for tests that make runs of their own."""
    return train, small, contents, SMALL
