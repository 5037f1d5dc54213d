"""The one exception tree of fedtiny, with the exit code each error ends a command with.

    FedtinyError        1   something read from a file, a device or a client is not usable
      UsageError        2   the command line asks for something that does not exist
      OverBudgetError   3   a firmware does not link, because it does not fit the board's memory
      ToolMissingError  6   a compiler, emulator or optional package is not installed

Each message names the thing, the limit and the remedy in one line.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class FedtinyError(Exception):
    """What was read cannot be used."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(FedtinyError):
    """What was asked for does not exist."""

    exit_code = 2


class OverBudgetError(FedtinyError):
    """What was built does not fit the board."""

    exit_code = 3


class ToolMissingError(FedtinyError):
    """A program or package that this step needs is not installed."""

    exit_code = 6


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]}?)" if close else ""


def printable(text: str) -> str:
    """Text that may hold names from anybody's file as one line that tells a terminal nothing but characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body; turn every expected failure into one line on stderr and an exit code."""
    try:
        return command()
    except FedtinyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
