"""`fedtiny-devices --fits`: one model planned on every board, and the boards ranked by how it fits.

The figures are budget.py's, planned before any compiler runs. The model is laid out once for each set of encodings.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..export import quantized, table_bytes
from ..ftm.abi import Kernel
from ..ftm.code_sizes import load_code_sizes, table_cpu
from ..ftm.file import Ftm, encodings, lay_out
from ..ftm.fitting import MADE_UP
from ..graph.ir import Graph
from ..graph.reduce import reduce_graph
from ..source import read_source
from .budget import Figure, board_sizes, plan_figures
from .compare import load_report
from .devices import Device, all_devices
from .ledger import PLANNED

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Network:
    """An int8 network as an export would write it, and what the project around it takes in flash."""

    name: str
    graph: Graph
    tables: Mapping[str, int]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes of a region: what a firmware takes, and what there is."""

    region: str
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model fits a board. `tightest` is the figure with the least room, which is below 0 where it does not fit.

    `room` is in bytes, `share` that of the figure's limit. `over` has every figure that misses its limit.
    `uncounted` says what the board's SDK takes that no source gives.
    """

    board: str
    name: str
    cpu: str
    status: str
    fits: bool
    model_bytes: int
    arena_bytes: int
    flash: Use
    ram: Use
    tightest: str
    region: str
    room: int
    share: float
    over: tuple[tuple[str, str, int], ...]
    uncounted: tuple[str, ...]


def read_network(given: Path, calibration: Path | None) -> Network:
    """Read a run or export folder, an ONNX or an int8 .tflite file."""
    if (given / "report.json").is_file():
        return _exported(given, calibration)
    beside = given.parent / "ranges.json" if given.suffix == ".onnx" else None
    if beside is not None and calibration is None and given.is_file() and not beside.is_file():
        return _without_ranges(given)
    source = read_source(given, calibration=calibration, evaluation=None)
    graph = reduce_graph(quantized(source))
    return Network(source.name, graph, table_bytes(source, graph))


def _exported(folder: Path, calibration: Path | None) -> Network:
    """What an export holds is int8 already; its report has the bytes of its tables."""
    report = load_report(folder)
    source = read_source(folder / "model.tflite", calibration=calibration, evaluation=None)
    graph = reduce_graph(source.graph)
    planned = {name: report.figure(f"flash.{name}", PLANNED) for name in ("selftest", "labels")}
    known = {name: figure.value for name, figure in planned.items() if figure is not None and figure.value is not None}
    return Network(report.source, graph, {**table_bytes(source, graph), **known})


def _without_ranges(model: Path) -> Network:
    """No size depends on ranges, but for what can be left out: nothing is."""
    source = read_source(model, calibration=None, evaluation=None, ranges=MADE_UP)
    graph = quantized(source)
    note = "no ranges and no --calibration: planned without leaving out any channel, as an export might"
    return Network(source.name, graph, table_bytes(source, graph), note)


def rank(network: Network, devices: Iterable[Device]) -> list[Fit]:
    """Plan the network on every board: those it fits first, the most room first, then the fewest bytes too many."""
    chosen: dict[str, tuple[Kernel, ...]] = {}
    made: dict[tuple[Kernel, ...], Ftm] = {}  # most processors come to the same encodings; planning an arena takes time
    fits = []
    for device in devices:
        cpu, sizes = table_cpu(device.cpu), load_code_sizes(device.cpu)
        if cpu not in chosen:
            chosen[cpu] = encodings(network.graph, sizes.kernel_bytes() if sizes else {})
        if chosen[cpu] not in made:
            made[chosen[cpu]] = lay_out(network.graph, chosen[cpu])
        fits.append(fit_of(device, made[chosen[cpu]], network.tables))
    return sorted(fits, key=lambda fit: (not fit.fits, -fit.share if fit.fits else -fit.room, fit.board))


def fit_of(device: Device, ftm: Ftm, tables: Mapping[str, int]) -> Fit:
    """How a model fits one board."""
    figures = plan_figures(device, ftm, tables, None)
    over = [(figure.name, figure.region or "", figure.over) for figure in figures if figure.over]
    # What is kept for the stack counts in ram.total; room inside it is no room for anything else.
    limited = [figure for figure in figures if figure.limit is not None and (figure.name != "ram.stack" or figure.over)]
    tightest = min(limited, key=lambda figure: (_room(figure) >= 0, _share(figure)))
    return Fit(
        board=device.id,
        name=device.name,
        cpu=device.cpu,
        status=device.status,
        fits=not over,
        model_bytes=len(ftm.data),
        arena_bytes=ftm.plan.arena_bytes,
        flash=_use(figures, "flash.total"),
        ram=_use(figures, "ram.total"),
        tightest=tightest.name,
        region=tightest.region or "",
        room=_room(tightest),
        share=_share(tightest),
        over=tuple(sorted(over, key=lambda row: -row[2])),
        uncounted=_uncounted(device),
    )


def _room(figure: Figure) -> int:
    return (figure.limit or 0) - (figure.value or 0)


def _share(figure: Figure) -> float:
    return _room(figure) / (figure.limit or 1)


def _use(figures: Iterable[Figure], name: str) -> Use:
    found = next(figure for figure in figures if figure.name == name)
    return Use(found.region or "", found.value or 0, found.limit or 0)


def _uncounted(device: Device) -> tuple[str, ...]:
    if board_sizes(device) is not None:
        return ()
    kinds = {"flash": device.reserve.sdk_flash_bytes, "ram": device.reserve.sdk_ram_bytes}
    return tuple(kind for kind, value in kinds.items() if value is None)


def fits_command(given: Path, calibration: Path | None, as_json: bool) -> int:
    """Print the ranking to stdout; the body of `fedtiny-devices --fits`."""
    network = read_network(given, calibration)
    ranked = rank(network, all_devices())
    if as_json:
        boards = [dataclasses.asdict(fit) for fit in ranked]
        print(json.dumps({"schema": SCHEMA, "model": network.name, "note": network.note, "boards": boards}, indent=1))
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(ranking(network.name, ranked))
    if network.note:
        print(network.note, file=sys.stderr)
    return 0


def ranking(model: str, ranked: Iterable[Fit]) -> RenderableType:
    """The ranking as a table, and what a star in it means."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    fits = list(ranked)
    view = Table("board", "flash", "of", "%", "RAM", "of", "%", "tightest", "left", "status", box=None)
    for column in (*view.columns[1:7], view.columns[8]):
        column.justify = "right"
    for fit in fits:
        cells = (*_cells(fit.flash, "flash" in fit.uncounted), *_cells(fit.ram, "ram" in fit.uncounted))
        view.add_row(fit.board, *cells, f"{fit.tightest} in {fit.region}", f"{fit.room:,}", fit.status)
    count = sum(fit.fits for fit in fits)
    said = f"{model} fits {count} of {len(fits)} boards; a negative number says by how many bytes it does not"
    star = "* without the SDK's part: no source gives it for this board"
    return Group(Text(said), Text(), view, Text(), Text(star))


def _cells(use: Use, partly: bool) -> tuple[str, str, str]:
    return f"{use.used:,}{'*' if partly else ' '}", f"{use.limit:,}", f"{100 * use.used / use.limit:.1f}"
