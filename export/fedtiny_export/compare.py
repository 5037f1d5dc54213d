"""What fedtiny-check does after measuring: planned beside measured, deviations over their tolerance, two reports.

Building, running and reading the ELF is check.py's; this module judges what it found and renews the report.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .atomic import write_atomically
from .budget import PLANNED, Figure, Report, read_report
from .check import FigureTuple, Measured, measure, read_log
from .devices import load_device
from .emulator import require_tools
from .errors import FedtinyError, UsageError
from .export import write_report

# Shares by which a measured figure may differ from the planned one. Code size depends on the compiler's version;
# model and arena are decided by the export and have to be exact. Instructions are planned by a fitted model.
TOLERANCE = {
    "flash.model": 0.0,
    "flash.total": 0.02,
    "ram.arena": 0.0,
    "ram.total": 0.02,
}


@dataclass(frozen=True, slots=True)
class Checked:
    """A renewed report and everything that is wrong with the device."""

    report: Report
    problems: tuple[str, ...]


def load_report(folder: Path) -> Report:
    """Read an export folder's report."""
    path = folder / "report.json"
    try:
        return read_report(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise FedtinyError(f"{path}: {error}: is {folder} a folder that fedtiny-export wrote?") from None


def check_folder(
    folder: Path,
    *,
    inputs: Path | None,
    outputs: Path | None,
    log: Path | None,
    use_pio: bool,
    require_run: bool,
) -> Checked:
    """Measure an export and compare with its plan; write the renewed report and any outputs asked for."""
    report = load_report(folder)
    device = load_device(report.board)
    if log is not None:
        measured_log = read_log(_log_text(log), _model_bytes(folder))
        return _finish(folder, report, measured_log, f"a device, as {log.name} has it")
    if outputs is not None and outputs.suffix != ".npy":
        raise UsageError(f"--outputs {outputs}: the name must end in .npy")
    if require_run or inputs is not None:
        require_tools(device)
    measured = measure(folder, device, _read_inputs(inputs), use_pio=use_pio)
    if measured is None:
        return Checked(report, ())
    if outputs is not None and measured.outputs is not None:
        _write_outputs(outputs, measured.outputs)
    return _finish(folder, report, measured, f"{device.id} in its emulator")


def _finish(folder: Path, report: Report, measured: Measured, where: str) -> Checked:
    problems = [] if measured.golden_equal else [f"golden outputs differ: {measured.first_difference}"]
    golden = "equal, byte for byte" if measured.golden_equal else f"DIFFERENT: {measured.first_difference}"
    figures = [_figure(report, found) for found in measured.figures]
    run = {"run on": where, "golden": golden, **{f"note {i}": text for i, text in enumerate(measured.notes, 1)}}
    renewed = report.with_measured(figures, run)
    write_report(folder, renewed)
    return Checked(renewed, (*problems, *_deviations(renewed)))


def _figure(report: Report, found: FigureTuple) -> Figure:
    """Put the plan's limit to a measured figure."""
    name, value, unit, region, source = found
    planned = report.figure(name, PLANNED)
    return Figure(name, value, unit, planned.limit if planned else None, region, source)


def _deviations(report: Report) -> list[str]:
    problems = []
    for figure in report.figures:
        planned = report.figure(figure.name, PLANNED)
        if figure.source == PLANNED or figure.name not in TOLERANCE or planned is None:
            continue
        if figure.value is None or planned.value is None:
            continue
        allowed = TOLERANCE[figure.name]
        if abs(figure.value - planned.value) > allowed * planned.value:
            problems.append(
                f"{figure.name} was planned as {planned.value:,} and measured as {figure.value:,} ({figure.source}); "
                f"{100 * allowed:g} % is allowed"
            )
    return problems


def _log_text(path: Path) -> str:
    try:
        return path.read_bytes()[: 1 << 20].decode("utf-8", "replace")
    except OSError as error:
        raise FedtinyError(f"{path}: {error.strerror}") from None


def _model_bytes(folder: Path) -> bytes:
    try:
        return (folder / "model.ftm").read_bytes()
    except OSError as error:
        raise FedtinyError(f"{folder / 'model.ftm'}: {error.strerror}") from None


def _read_inputs(path: Path | None) -> NDArray[np.int8] | None:
    if path is None:
        return None
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FedtinyError(f"{path}: not a usable .npy file: {error}") from None
    if not isinstance(loaded, np.ndarray) or loaded.dtype != np.int8 or loaded.ndim < 2 or loaded.shape[0] < 1:
        raise FedtinyError(f"{path}: needs an int8 array of at least one sample, first axis: sample")
    return loaded


def _write_outputs(path: Path, values: NDArray[np.int8]) -> None:
    data = io.BytesIO()
    np.save(data, values)
    write_atomically(path, data.getvalue())


def diff_text(first: Path, second: Path, *, as_json: bool) -> str:
    """Compare the figures of two exports by name, region and source."""
    reports = [load_report(path) for path in (first, second)]
    keys = sorted({(f.name, f.region or "", f.source) for report in reports for f in report.figures})
    rows: list[tuple[tuple[str, str, str], int | None, int | None]] = []
    for key in keys:
        found = [[f.value for f in r.figures if (f.name, f.region or "", f.source) == key] for r in reports]
        rows.append((key, *(values[0] if values else None for values in found)))  # type: ignore[arg-type]
    if as_json:
        return json.dumps([_diff_row(*row) for row in rows], indent=1) + "\n"
    lines = [f"{'figure':<14} {'source':<13} {'A':>12} {'B':>12} {'change':>10}"]
    for (name, _, source), a, b in rows:
        cells = ["" if value is None else f"{value:,}" for value in (a, b)]
        change = "" if a is None or b is None else f"{b - a:+,}"
        lines.append(f"{name:<14} {source:<13} {cells[0]:>12} {cells[1]:>12} {change:>10}")
    return "\n".join(lines) + "\n"


def _diff_row(key: tuple[str, str, str], a: int | None, b: int | None) -> dict[str, str | int | None]:
    change = b - a if a is not None and b is not None else None
    return {"name": key[0], "region": key[1], "source": key[2], "a": a, "b": b, "change": change}
