"""`fedtiny-devices`: the board table, and one board with its regions and the sources of its numbers.

Reading and checking board files is devices.py's; ranking boards by how a model fits is fits.py's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

from .devices import Device, all_devices, load_device

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def devices_command(board: str | None, as_json: bool) -> int:
    """Print the board table, or one board, to stdout; the body of `fedtiny-devices`."""
    found = all_devices() if board is None else [load_device(board)]
    if as_json:
        values = [device.to_json() for device in found]
        print(json.dumps(values if board is None else values[0], indent=2))
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(found) if board is None else detail(found[0]))
    return 0


def table(devices: Iterable[Device]) -> Table:
    """One row a board: the flash for code and model, the RAM for the arena."""
    from rich.table import Table

    view = Table("board", "name", "cpu", "MHz", "flash KiB", "RAM KiB", "status", "PlatformIO", box=None)
    for device in devices:
        flash, ram = device.region_for("model"), device.region_for("arena")
        board = device.platformio.board if device.platformio else "-"
        numbers = (f"{device.clock_hz / 1e6:g}", _kib(flash.size), _kib(ram.size))
        view.add_row(device.id, device.name, device.cpu, *numbers, device.status, board)
    for column in view.columns[3:6]:
        column.justify = "right"
    return view


def detail(device: Device) -> RenderableType:
    """One board: its regions in bytes and KiB, what is reserved, and where the numbers come from."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    reserve = Table("reserved", "bytes", box=None)
    reserve.columns[1].justify = "right"
    for item in fields(device.reserve):
        value = getattr(device.reserve, item.name)
        reserve.add_row(item.name, "unknown" if value is None else f"{value:,}")
    sources = Table("", "where the numbers come from", box=None)
    for source in device.sources:
        sources.add_row("-", source)
    heading = Text("\n".join(_heading(device)))
    return Group(heading, Text(), _region_table(device), Text(), reserve, Text(), sources)


def _heading(device: Device) -> list[str]:
    lines = [
        f"{device.id}: {device.name}",
        f"{device.cpu} at {device.clock_hz / 1e6:g} MHz, status {device.status}",
    ]
    if device.platformio:
        pio = device.platformio
        lines.append(f"PlatformIO: platform {pio.platform}, board {pio.board}, framework {pio.framework}")
    if device.emulator:
        lines.append(f"emulator: {' '.join(device.emulator.command('firmware.elf'))}")
    return lines


def _region_table(device: Device) -> Table:
    from rich.table import Table

    view = Table("region", "kind", "start", "bytes", "KiB", "holds", "note", box=None)
    for region in device.memory:
        numbers = (f"0x{region.start:08X}", f"{region.size:,}", _kib(region.size))
        view.add_row(region.name, region.kind, *numbers, ", ".join(region.holds), region.note or "")
    for column in view.columns[3:5]:
        column.justify = "right"
    return view


def _kib(size: int) -> str:
    return f"{size / 1024:,.1f}".removesuffix(".0")
