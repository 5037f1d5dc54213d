"""A firmware project with TensorFlow Lite Micro, for boards that have a maintained library of it; elsewhere C files.

What is written here has never been compiled by the board's own tools, and every README says so. The libraries are
pinned to versions that were read about, not invented; neither registry could be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..assets import asset_root
from ..board.devices import Device
from ..board.project import Port, contract_names, fill, label_rows, templates_in
from ..board.selftest import selftest_vectors
from ..errors import FedtinyError
from .files import operators, tflm_files

ALIGNMENT = 0x1000  # of an app partition's size
APP_OFFSET = 0x10000
FLASH_MEGABYTES = (2, 4, 8, 16, 32, 64, 128)  # sizes that ESP-IDF knows
STACK_BYTES = 8192  # where the board's table has none


@dataclass(frozen=True, slots=True)
class Library:
    """A library of TensorFlow Lite Micro: what a project is written for, and where its version was read."""

    name: str
    version: str
    layer: str  # folder of templates
    model_folder: str  # where a project keeps the model
    source: str
    dense_reason: str  # why fully connected layers are not written as such


ESPRESSIF = Library(
    name="espressif/esp-tflite-micro",
    version="1.3.7",
    layer="espidf",
    model_folder="components/fedtiny_model",
    source="1.3.7 is listed in Espressif's registry; issue 125 of espressif/esp-tflite-micro was built with it.",
    dense_reason="ESP-NN computes them wrong on an ESP32-S3 where the outputs are no multiple of 8 (espressif/esp-nn,"
    " issue 34)",
)
CHIRALE = Library(
    name="spaziochirale/Chirale_TensorFLowLite",
    version="2.0.0",
    layer="arduino",
    model_folder="lib/fedtiny_model",
    source="2.0.0 is the version in the library's own library.properties; not verified against the registry.",
    dense_reason="TensorFlow Lite Micro computed them wrong before its pull request 2673, which is younger than the"
    " library",
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What an export hands to such a firmware. Golden arrays hold one sample a row."""

    tflite: bytes
    arena_bytes: int | None
    input: Port
    output: Port
    labels: tuple[str, ...]
    normalization: str
    golden_inputs: NDArray[np.int8]
    golden_outputs: NDArray[np.int8]


def library_for(device: Device) -> Library | None:
    """The maintained library for a board, if there is one."""
    if device.platformio is None or device.emulator is not None:
        return None
    platform = device.platformio.platform.split("@")[0]
    if platform == "espressif32":
        return ESPRESSIF
    return CHIRALE if (platform, device.platformio.board) == ("nordicnrf52", "nano33ble") else None


def status_note(device: Device, *, decode: bool) -> str:
    """What the report says about the firmware: that it was not built, or why there is none."""
    library = None if decode else library_for(device)
    if library is not None:
        return f"exported, not built: no board's compiler has seen the project for {library.name} {library.version}"
    return f"{missing(device, decode=decode)}: no project is written; --runtime ft writes one, --project plain C files"


def missing(device: Device, *, decode: bool) -> str:
    """Why a board has no project."""
    library = library_for(device)
    if library is not None and decode:
        return f"{library.name} {library.version} is not known to have the operator DECODE"
    platform = "emulated boards" if device.platformio is None else device.platformio.platform.split("@")[0]
    return f"no maintained library of TensorFlow Lite Micro exists for {platform} ({device.id})"


def firmware_files(device: Device, contents: Contents, *, decode: bool) -> dict[PurePosixPath, bytes]:
    """Every file beside model and reports: a project, or C files where the board has no library."""
    library = None if decode else library_for(device)
    if library is None:
        return _plain_files(device, contents, decode)
    names = {**_names(device, library), **_model_names(contents), "dense": _dense_words(library, contents.tflite)}
    found = {path: fill(text, names) for path, text in _templates(library.layer, "project")}
    folder = PurePosixPath(library.model_folder)
    for name, content in tflm_files(contents.tflite, contents.arena_bytes).items():
        found[folder / name] = content
    for path, text in _templates("model"):
        if path.name not in {p.name for p in found}:
            found[folder / path] = fill(text, names)
    return found


def _plain_files(device: Device, contents: Contents, decode: bool) -> dict[PurePosixPath, bytes]:
    arena = "" if contents.arena_bytes is None else ", and the arena that it takes"
    names = {"board": device.id, "reason": missing(device, decode=decode), "arena_words": arena}
    found = {path: fill(text, names) for path, text in _templates("files")}
    files = tflm_files(contents.tflite, contents.arena_bytes)
    return {**found, **{PurePosixPath(name): content for name, content in files.items()}}


def _templates(*layers: str) -> Iterator[tuple[PurePosixPath, str | bytes]]:
    for layer in layers:
        yield from templates_in(asset_root() / "firmware" / "templates" / "tflm" / layer)


def _names(device: Device, library: Library) -> dict[str, str]:
    pio, code = device.platformio, device.region_for("code")
    assert pio is not None
    own_table = library is ESPRESSIF  # partitions.csv takes the place of a table that the board names
    options = [o for o in pio.options if not (own_table and o.startswith("board_build.partitions "))]
    app_bytes = code.size // ALIGNMENT * ALIGNMENT
    return {
        "exporter": __version__,
        "board": device.id,
        "platform": pio.platform,
        "pio_board": pio.board,
        "options": "".join(f"\n{option}" for option in options),
        "app_bytes": hex(app_bytes),
        "flash_megabytes": str(_flash_megabytes(device, APP_OFFSET + app_bytes)) if own_table else "",
        "megahertz": str(device.clock_hz // 1_000_000),
        "stack_bytes": str(device.reserve.stack_bytes or STACK_BYTES),
        "library": library.name,
        "library_version": library.version,
        "library_source": library.source,
        "model_folder": library.model_folder,
    }


def _dense_words(library: Library, model: bytes) -> str:
    """What the README says of fully connected layers; only other converters' models have any."""
    if "FULLY_CONNECTED" in operators(model):
        return (
            "This model has fully connected layers as its converter wrote them. With a scale for each channel\n"
            f"{library.dense_reason}: look at the self-test."
        )
    return (
        "Fully connected layers are written as convolutions, which give the same numbers: with a scale for each\n"
        f"channel {library.dense_reason}."
    )


def _flash_megabytes(device: Device, needed: int) -> int:
    for megabytes in FLASH_MEGABYTES:
        if needed <= megabytes << 20:
            return megabytes
    raise FedtinyError(f"{device.id}: an app of {needed:,} bytes is more than any flash that ESP-IDF knows")


def _model_names(contents: Contents) -> dict[str, str]:
    given, made = contents.golden_inputs, contents.golden_outputs
    count = selftest_vectors(given.shape[1], made.shape[1], given.shape[0])
    return {
        **contract_names(contents.input, contents.output, contents.normalization),
        "label_text": label_rows(contents.labels),
        "vectors": str(count),
        "vector_inputs": _rows(given[:count]),
        "vector_outputs": _rows(made[:count]),
    }


def _rows(vectors: NDArray[np.int8]) -> str:
    """The inside of a C array of arrays."""
    lines = []
    for vector in vectors.tolist():
        cells = [", ".join(map(str, vector[at : at + 24])) for at in range(0, len(vector), 24)]
        lines.append("    {" + ",\n     ".join(cells) + "},")
    return "\n".join(lines)
