"""Measuring an export: build it, run it on its emulated board, read the ELF file and what the device says.

The result is figures and a byte-by-byte verdict on the golden outputs; compare.py puts them beside the plan.
Everything that comes out of a firmware or a log is checked before it is believed.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError, ToolMissingError
from ..untrusted import guarded, read_arrays
from .devices import Device
from .elf import Image, read_image
from .emulator import Firmware, Run, build, build_oversized, build_with_pio, require_tools, run
from .ledger import MEASURED_ELF, Row, measured_rows

MEASURED_RUN = "measured-run"
LOG_SCHEMA = 1
FIRST_FAULT = 100  # a firmware that faults ends with this plus the exception's number

# (name, value, unit, region, source)
FigureTuple = tuple[str, int | None, str, str | None, str]

_LOG_LINE = re.compile(r"FEDTINY (\{[^{}\r\n]{1,2000}\}) ([0-9a-f]{8})(?![0-9a-f])")
_REFUSAL = re.compile(r"the model was refused[ -~]{1,200}(?=\r?\n)")
_LOG_NUMBERS = (
    *("format", "model_bytes", "model_crc32", "arena_bytes", "stack_used", "stack_bytes", "microseconds"),
    *("vectors", "passed"),
)

MODELLED_CPU = "cortex-m4f"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured. `outputs` holds the results of the inputs asked for, one sample a row.

    `model_crc32` is that of the model inside the firmware, as the device says. `cycles` are modelled, not measured, for
    the first sample and the processor the model is of.
    """

    figures: tuple[FigureTuple, ...]
    golden_equal: bool
    first_difference: str | None
    outputs: NDArray[np.int8] | None
    model_crc32: int
    notes: tuple[str, ...] = ()
    ledger: tuple[Row, ...] = ()
    cycles: int | None = None


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and the outputs they must give, int8, one sample a row; `shape` is that of one input, channels last."""

    inputs: NDArray[np.int8]
    outputs: NDArray[np.int8]
    shape: tuple[int, ...]


def measure(
    folder: Path,
    device: Device,
    inputs: NDArray[np.int8] | None,
    *,
    use_pio: bool = False,
    planned: Sequence[Row] = (),
) -> Measured | None:
    """Build and run an export; None where the board has no emulator, or it or the compiler is not installed.

    `require_tools` of emulator.py says which package is missing. `planned`: the report's ledger.
    """
    golden = read_golden(folder / "golden.npz")
    given = _flat_inputs(inputs, golden)
    try:
        require_tools(device)
    except ToolMissingError:
        return None
    firmware = build_with_pio(folder, device) if use_pio else build(folder, device)
    image = read_image(firmware.elf, device)
    samples = golden.inputs if given is None else np.concatenate([golden.inputs, given])
    result = run(firmware, image, device, samples, golden.outputs.shape[1])
    log = _log_of_run(result)
    outputs = _outputs(result, samples.shape[0], golden.outputs.shape[1])
    difference = _first_difference(golden.outputs, outputs[: golden.outputs.shape[0]])
    difference = difference and difference + _named_layer(result.text)
    return Measured(
        figures=(*elf_figures(image, device), *_run_figures(result, log, device, samples.shape[0])),
        golden_equal=difference is None,
        first_difference=difference,
        outputs=None if given is None else outputs[golden.outputs.shape[0] :],
        model_crc32=log["model_crc32"],
        notes=() if result.uncounted is None else (result.uncounted,),
        ledger=_ledger(folder, image, firmware, planned),
        cycles=result.cycles[0] if result.cycles and device.cpu == MODELLED_CPU else None,
    )


def measure_oversized(folder: Path, device: Device, planned: Sequence[Row]) -> Measured:
    """Flash and RAM of a firmware that the board cannot hold, as they would be linked. Nothing is run."""
    firmware, roomy = build_oversized(folder, device)
    image = read_image(firmware.elf, roomy)
    model = zlib.crc32((folder / "model.ftm").read_bytes())
    return Measured(
        elf_figures(image, device), True, None, None, model, ledger=_ledger(folder, image, firmware, planned)
    )


def _ledger(folder: Path, image: Image, firmware: Firmware, planned: Sequence[Row]) -> tuple[Row, ...]:
    path = folder / "model.ftm"
    return measured_rows(image, firmware.map, guarded(path, "a readable model", path.read_bytes), planned)


def read_golden(path: Path) -> Golden:
    """Read an export's golden.npz."""
    arrays = read_arrays(path)
    for name in ("inputs", "outputs"):
        array = arrays.get(name)
        if array is None or array.dtype != np.int8 or array.ndim < 2 or array.size == 0:
            raise FedtinyError(f"{path}: {name} is no int8 array with one sample a row; export again")
    inputs, outputs = arrays["inputs"], arrays["outputs"]
    if inputs.shape[0] != outputs.shape[0]:
        raise FedtinyError(f"{path}: {inputs.shape[0]} inputs, but {outputs.shape[0]} outputs; export again")
    count, shape = inputs.shape[0], inputs.shape[1:]
    return Golden(inputs.reshape(count, -1), outputs.reshape(count, -1), shape)


def _flat_inputs(inputs: NDArray[np.int8] | None, golden: Golden) -> NDArray[np.int8] | None:
    if inputs is None:
        return None
    shapes = [golden.shape, golden.inputs.shape[1:]]
    if golden.shape[-1] == 1 and len(golden.shape) > 1:
        shapes.insert(1, golden.shape[:-1])
    if inputs.dtype != np.int8 or inputs.size == 0 or inputs.shape[1:] not in shapes:
        known = " or ".join(str(("n", *shape)).replace("'", "") for shape in dict.fromkeys(shapes))
        raise FedtinyError(f"inputs are {inputs.dtype} of shape {inputs.shape}; the model takes int8 of shape {known}")
    return inputs.reshape(inputs.shape[0], -1)


def elf_figures(image: Image, device: Device) -> tuple[FigureTuple, ...]:
    """Flash and RAM as linked. Every part is there, so that parts add up to totals."""
    flash, ram = device.region_for("code").name, device.region_for("arena").name
    static = image.ram["data"] + image.ram["bss"]
    values = [(f"flash.{part}", size, flash) for part, size in image.flash.items()]
    values += [("flash.total", image.flash_bytes, flash), ("ram.arena", image.ram["arena"], ram)]
    values += [("ram.static", static, ram), ("ram.stack_reserved", image.ram["stack"], ram)]
    values += [("ram.total", image.ram_bytes, ram)]
    return tuple((name, value, "B", region, MEASURED_ELF) for name, value, region in values)


def _run_figures(result: Run, log: Mapping[str, int], device: Device, samples: int) -> tuple[FigureTuple, ...]:
    count = None
    if result.counts is not None:
        if len(result.counts) != samples:
            raise FedtinyError(f"{len(result.counts)} inferences were counted; {samples} samples were run")
        count = result.counts[0]
    stack = ("ram.stack", log["stack_used"] or None, "B", device.region_for("stack").name, MEASURED_RUN)
    return stack, ("instructions", count, "instructions", None, MEASURED_RUN)


def _log_of_run(result: Run) -> Mapping[str, int]:
    """The report line of a run that went well; else an error that says how it ended."""
    if result.exit_code >= FIRST_FAULT or result.exit_code < 0:
        fault = re.search(r"FAULT [ -~]{0,200}", result.text)
        raise FedtinyError(f"the firmware crashed with code {result.exit_code}: {fault[0] if fault else 'no report'}")
    if result.exit_code not in (0, 2):
        said = [line for line in (result.text + result.complaint).splitlines() if line.strip()]
        raise FedtinyError(f"the firmware ended with code {result.exit_code}: {said[-1][:200] if said else 'no text'}")
    return _parse_log(result.text)


def _named_layer(text: str) -> str:
    """What a firmware with NAME_THE_LAYER adds to a difference."""
    found = re.search(r"self-test: the first layer that differs is ([ -~]{1,100})", text)
    return f"; the first layer that differs is {found[1].strip()}" if found else ""


def _outputs(result: Run, samples: int, size: int) -> NDArray[np.int8]:
    if len(result.outputs) != samples * size:
        raise FedtinyError(
            f"the firmware wrote {len(result.outputs):,} bytes; {samples:,} results of {size:,} are due: "
            "its main has to call ft_port_serve, as the generated one does"
        )
    return np.frombuffer(result.outputs, np.int8).reshape(samples, size).copy()


def _first_difference(expected: NDArray[np.int8], got: NDArray[np.int8]) -> str | None:
    different = np.argwhere(expected != got)
    if different.size == 0:
        return None
    row, column = (int(index) for index in different[0])
    return f"vector {row} byte {column} is {got[row, column]}, not {expected[row, column]}"


def read_log(text: str, model: bytes | None = None) -> Measured:
    """Figures from what a device printed: the last of its report lines. `model` is the .ftm it should run."""
    log = _parse_log(text)
    if model is not None and zlib.crc32(model) != log["model_crc32"]:
        raise FedtinyError("the device runs another model than this export's: flash it again, or give its own folder")
    numbers: list[tuple[str, int | None, str]] = [
        ("flash.model", log["model_bytes"], "B"),
        ("ram.arena", log["arena_bytes"], "B"),
        ("ram.stack", log["stack_used"] or None, "B"),
        ("latency", log["microseconds"] or None, "us"),
    ]
    figures = tuple((name, value, unit, None, MEASURED_RUN) for name, value, unit in numbers if value is not None)
    difference = None
    if not log["passed"]:
        where = [log[name] for name in ("vector", "byte", "got", "expected") if name in log]
        known = len(where) == 4
        difference = "vector {} byte {} is {}, not {}".format(*where) if known else "the device does not say where"
        difference += _named_layer(text)
    return Measured(figures, difference is None, difference, None, log["model_crc32"])


def is_told(text: str) -> bool:
    """Whether a device has said all that is needed: a whole report, or why there is none."""
    try:
        _parse_log(text)
    except DeviceRefusedError:
        return True
    except FedtinyError:
        return False
    return True


class DeviceRefusedError(FedtinyError):
    """The device has a firmware that works, and a model that it will not run."""


def _parse_log(text: str) -> Mapping[str, int]:
    """The last report line, its checksum and every field checked."""
    found = _LOG_LINE.findall(text)
    refusal = _REFUSAL.search(text, text.rfind("FEDTINY") + 1)
    if refusal:
        raise DeviceRefusedError(f"the device does not run: {refusal[0]}")
    if not found:
        damaged = "is damaged or cut off" if "FEDTINY" in text else "is not there; did the board print at 115200 baud?"
        raise FedtinyError(f"the device's report, a line FEDTINY {{...}}, {damaged}")
    line, checksum = found[-1]
    if zlib.crc32(line.encode("utf-8")) != int(checksum, 16):
        raise FedtinyError("the device's report has a wrong checksum: it was damaged on the way; try again")
    values = guarded(Path("the device's report"), "readable JSON", lambda: json.loads(line))
    if values.get("schema") != LOG_SCHEMA:
        raise FedtinyError(f"the device's report has schema {values.get('schema')!r}; this version reads {LOG_SCHEMA}")
    for name in _LOG_NUMBERS:
        if type(values.get(name)) is not int or not 0 <= values[name] < 1 << 32:
            raise FedtinyError(f"the device's report says {name} = {values.get(name)!r}: no number of 32 bits")
    return {name: value for name, value in values.items() if type(value) is int}
