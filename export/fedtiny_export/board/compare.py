"""What fedtiny-check does after measuring: planned beside measured, deviations over their tolerance, two reports.

Building, running and reading the ELF is check.py's; this module judges what it found and renews the report.
"""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_atomically
from ..errors import FedtinyError, OverBudgetError, ToolMissingError, UsageError
from ..export import write_report
from ..untrusted import guarded, read_array, read_text
from .budget import Figure, Report, read_report
from .check import FigureTuple, Measured, measure, measure_oversized, read_log
from .devices import OWN_BOARD, Device, all_devices, load_device_file
from .emulator import require_tools
from .ledger import PLANNED
from .listen import listen
from .project import PLAIN, changed_user_files, kind_of

# Shares by which a measured figure may differ from the planned one. Code size depends on the compiler's version;
# model and arena are decided by the export and have to be exact. Instructions are planned by a fitted model.
TOLERANCE = {
    "flash.model": 0.0,
    "flash.total": 0.02,
    "ram.arena": 0.0,
    "ram.total": 0.02,
}
WITH_OWN_CODE = ("flash.total", "ram.total")  # planned for the generated main; the user's own may take more
LOG_BYTES = 1 << 20  # how much of a log's end is read


@dataclass(frozen=True, slots=True)
class Serial:
    """A port to listen to, and for how long."""

    port: str
    baud: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Checked:
    """A renewed report and everything that is wrong with the device."""

    report: Report
    problems: tuple[str, ...]


def load_report(folder: Path) -> Report:
    """Read an export folder's report."""
    path = folder / "report.json"
    if not path.is_file():
        raise FedtinyError(f"{path}: there is no such file: is {folder} a folder that fedtiny-export wrote?")
    return read_report(read_text(path), str(path))


def check_folder(
    folder: Path,
    *,
    inputs: Path | None,
    outputs: Path | None,
    log: Path | None,
    serial: Serial | None = None,
    use_pio: bool,
    require_run: bool,
) -> Checked:
    """Measure an export and compare with its plan; write the renewed report and any outputs asked for."""
    report = load_report(folder)
    if report.runtime != "ft":
        raise FedtinyError(f"{folder} is for the runtime {report.runtime}, whose firmware cannot be checked here")
    device = _device(folder, report)
    model_path = folder / "model.ftm"
    model = guarded(model_path, "a readable model", model_path.read_bytes)
    if log is not None or serial is not None:
        text, said = (_log_text(log), f"as {log.name} has it") if log else _heard(serial)
        return _finish(folder, report, read_log(text, model), f"a device, {said}", ())
    if outputs is not None and outputs.suffix != ".npy":
        raise UsageError(f"--outputs {outputs}: the name must end in .npy")
    plain = kind_of(folder) == PLAIN
    if plain and (require_run or inputs is not None or use_pio):
        raise ToolMissingError(f"{folder} is built by tools of your own: use the board, with --serial or --log")
    if plain:
        return Checked(report, ())
    if require_run or inputs is not None:
        require_tools(device)
    given = None if inputs is None else read_array(inputs)
    try:
        measured = measure(folder, device, given, use_pio=use_pio, planned=report.ledger)
    except OverBudgetError as error:
        return _oversized(folder, device, report, error)
    if measured is None:
        return Checked(report, ())
    if outputs is not None and measured.outputs is not None:
        _write_outputs(outputs, measured.outputs)
    checked = _finish(folder, report, measured, f"{device.id} in its emulator", changed_user_files(folder, device))
    if zlib.crc32(model) == measured.model_crc32:
        return checked
    return Checked(checked.report, (f"{folder}: the firmware holds another model than model.ftm", *checked.problems))


def _device(folder: Path, report: Report) -> Device:
    """The report's board; what a file says names no other file and is no fault of the command line."""
    if (folder / OWN_BOARD).is_file():
        return load_device_file(folder / OWN_BOARD, report.board)
    found = next((device for device in all_devices() if device.id == report.board), None)
    if found is None:
        raise FedtinyError(f"{folder / 'report.json'}: unknown board {report.board!r}; fedtiny-devices lists them")
    return found


def _finish(folder: Path, report: Report, measured: Measured, where: str, changed: Sequence[str]) -> Checked:
    """Renew the report. Totals beyond their tolerance are no problem where the user `changed` files, but a note."""
    problems = [] if measured.golden_equal else [f"golden outputs differ: {measured.first_difference}"]
    golden = "equal, byte for byte" if measured.golden_equal else f"DIFFERENT: {measured.first_difference}"
    figures = [_figure(report, found) for found in measured.figures]
    notes = list(measured.notes)
    for name, text in _deviations(report, figures):
        if changed and name in WITH_OWN_CODE:
            notes.append(f"{text}; not counted as a fault, since you changed {', '.join(changed)[:200]}")
        else:
            problems.append(text)
    run = {"run on": where, "golden": golden, **{f"note {i}": text for i, text in enumerate(notes, 1)}}
    renewed = report.with_measured(figures, run, measured.ledger)
    write_report(folder, renewed)
    return Checked(renewed, tuple(problems))


def _oversized(folder: Path, device: Device, report: Report, error: OverBudgetError) -> Checked:
    """A report when it is needed most: what the firmware takes that does not link, by owner."""
    measured = measure_oversized(folder, device, report.ledger)
    figures = [_figure(report, found) for found in measured.figures]
    renewed = report.with_measured(
        figures, {"run on": "nothing: it does not link", "link": str(error)}, measured.ledger
    )
    write_report(folder, renewed)
    return Checked(renewed, (str(error),))


def _figure(report: Report, found: FigureTuple) -> Figure:
    """Put the plan's limit to a measured figure."""
    name, value, unit, region, source = found
    planned = report.figure(name, PLANNED)
    return Figure(name, value, unit, planned.limit if planned else None, region, source)


def _deviations(report: Report, figures: Iterable[Figure]) -> Iterator[tuple[str, str]]:
    """The name of every measured figure that is not as planned, and a line about it."""
    for figure in figures:
        planned = report.figure(figure.name, PLANNED)
        if figure.name not in TOLERANCE or planned is None or figure.value is None or planned.value is None:
            continue
        allowed = TOLERANCE[figure.name]
        if abs(figure.value - planned.value) > allowed * planned.value:
            yield (
                figure.name,
                f"{figure.name} was planned as {planned.value:,} and measured as {figure.value:,} ({figure.source}); "
                f"{100 * allowed:g} % is allowed",
            )


def _log_text(path: Path) -> str:
    """The end of a log, where the last report is; a log may be a pipe, so nothing is skipped unread."""

    def read() -> str:
        end = b""
        with path.open("rb") as file:
            while piece := file.read(LOG_BYTES):
                end = (end + piece)[-LOG_BYTES:]
        return end.decode("utf-8", "replace")

    return guarded(path, "a readable log", read)


def _heard(serial: Serial | None) -> tuple[str, str]:
    """What the device says on its port, and how the report shall name that."""
    assert serial is not None
    return listen(serial.port, serial.baud, serial.seconds, sys.stderr), "over its serial port"


def _write_outputs(path: Path, values: NDArray[np.int8]) -> None:
    data = io.BytesIO()
    np.save(data, values)
    write_atomically(path, data.getvalue())
