"""What every test may ask for."""

from __future__ import annotations

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
        message = f"{program} is not installed (Debian package {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)

    return need


@pytest.fixture(scope="session")
def host_runtime(need_tool):
    """The C runtime on this machine, under sanitizers."""
    need_tool("gcc", "gcc")
    import host_runtime as runtime

    return runtime
