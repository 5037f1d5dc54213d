"""Listening to a real board: its serial port is read until it has said how it is."""

from __future__ import annotations

import time
from types import ModuleType
from typing import TextIO

from ..errors import FedtinyError, ToolMissingError
from .check import is_told

SECONDS = 60.0
PIECE_SECONDS = 0.2
KEPT_CHARACTERS = 1 << 20


def _pyserial() -> ModuleType:
    try:
        import serial
    except ImportError:
        raise ToolMissingError("pyserial is not installed: pip install 'fedtiny[serial]'") from None
    return serial  # type: ignore[no-any-return]


def listen(port: str, baud: int, seconds: float, echo: TextIO) -> str:
    """What a device says, up to its report or its refusal, or until time is up; shown on `echo` as it comes."""
    serial = _pyserial()
    try:
        device = serial.serial_for_url(port, baudrate=baud, timeout=PIECE_SECONDS)
    except (serial.SerialException, ValueError, OSError) as error:
        raise FedtinyError(f"{port} cannot be opened: {_reason(error)}") from None
    print(f"listening on {port} at {baud} baud; press the board's reset button if nothing comes", file=echo)
    text, until = "", time.monotonic() + seconds
    try:
        with device:
            while time.monotonic() < until and not is_told(text):
                piece = device.read(max(1, min(device.in_waiting, 4096))).decode("utf-8", "replace")
                text = (text + piece)[-KEPT_CHARACTERS:]
                echo.write("".join(c for c in piece if c in "\n\t" or c.isprintable()))
    except (serial.SerialException, OSError) as error:
        raise FedtinyError(f"{port} stopped: {_reason(error)}; is another program reading it?") from None
    if text and not text.endswith("\n"):
        print(file=echo)
    if not text:
        raise FedtinyError(f"{port} said nothing within {seconds:g} s: is it the right port, is the firmware flashed?")
    return text


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
