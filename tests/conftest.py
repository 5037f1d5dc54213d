"""What every test may ask for."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def need_tool() -> Callable[[str, str], None]:
    """Skip where a program is missing; with CI=true that is a failure, never a skip."""

    def need(program: str, package: str) -> None:
        if shutil.which(program) is not None:
            return
        _lack(f"{program} is not installed (Debian package {package})")

    return need


@pytest.fixture(scope="session")
def need_extra() -> Callable[[str, str], None]:
    """The same for Python packages that an extra brings."""

    def need(package: str, extra: str) -> None:
        if importlib.util.find_spec(package) is None:
            _lack(f"{package} is not installed (extra {extra})")

    return need


def _lack(message: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def host_runtime(need_tool):
    """The C runtime on this machine, under sanitizers."""
    need_tool("gcc", "gcc")
    import host_runtime as runtime

    return runtime
