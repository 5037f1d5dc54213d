"""The commands as tests call them: in this process, with the exit code they end with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from fedtiny_export.cli import export_main


def call(command: Callable[[Sequence[str]], None], *arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        command([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def export(*arguments: object) -> int:
    return call(export_main, *arguments)
