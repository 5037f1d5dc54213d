"""What a network would take in flash and on a board, before it is trained: all that training asks of the exporter.

The values of its weights do not matter, only which of them are zero; ranges are made up, since no size depends on them.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..board.budget import Figure, plan_figures
from ..board.devices import load_device
from ..board.project import label_bytes
from ..board.selftest import selftest_bytes
from ..graph.passes import simplify
from ..onnx_in.read import read_onnx
from ..quant.quantize import quantize
from . import sparse
from .abi import Kernel
from .code_sizes import load_code_sizes
from .file import write_ftm

USUAL_BOARD = "qemu-m4"  # whose code sizes decide where no board is named
MADE_UP = (-8.0, 8.0)
SELFTEST_INPUTS = 16  # as many as an export has at most


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a network takes on a board, and the most it may take there beside everything else."""

    model: int
    model_room: int
    arena: int
    arena_room: int


def packed_bytes(masks: Iterable[NDArray[np.bool_]], board: str = USUAL_BOARD) -> int:
    """Return the bytes of int8 weights under these masks and of their layers' channel parameters.

    Weights take the encodings that make model and linked kernels together the smallest. A layer of C output channels
    has 4 C bytes of biases, 4 C of multipliers and C of shifts, each block in whole words.
    """
    layers = [mask.astype(np.int8) for mask in masks]
    able = [(layer, sparse.VECTORS if layer.ndim == 2 else sparse.CONVS) for layer in layers]
    chosen = sparse.choose(able, _kernel_bytes(board))
    streams = sum(sparse.sizes(layer)[kernel] for layer, kernel in zip(layers, chosen, strict=True))
    channels = [int(layer.shape[0]) for layer in layers]
    return streams + sum(9 * count + -count % 4 for count in channels)


@functools.cache  # asked for thousands of networks while a width is looked for
def _kernel_bytes(board: str) -> dict[Kernel | frozenset[Kernel], int]:
    code = load_code_sizes(load_device(board).cpu)
    return code.kernel_bytes() if code else {}


def need_of(onnx: bytes, board: str = USUAL_BOARD) -> Need:
    """Plan a network on a board as an export would, and return what its model and its arena need and have."""
    device = load_device(board)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(onnx)
        network = simplify(read_onnx(path))
    graph = quantize(network, dict.fromkeys(network.tensors, MADE_UP))
    ftm = write_ftm(graph, _kernel_bytes(board))
    result = graph.tensors[graph.output].elements
    tables = {
        "selftest": selftest_bytes(graph.tensors[graph.input].elements, result, SELFTEST_INPUTS),
        "labels": label_bytes(tuple(map(str, range(result)))),
    }
    figures = {figure.name: figure for figure in plan_figures(device, ftm, tables, None)}
    model, arena = len(ftm.data), ftm.plan.arena_bytes
    return Need(
        model,
        min(_room(figures, "flash.model", model), _room(figures, "flash.total", model)),
        arena,
        min(_room(figures, "ram.arena", arena), _room(figures, "ram.total", arena)),
    )


def _room(figures: dict[str, Figure], name: str, part: int) -> int:
    """Return how large a part of a figure may be, everything else in it staying."""
    figure = figures[name]
    if figure.value is None or figure.limit is None:
        return 1 << 40  # no board states a limit for it
    return part + figure.limit - figure.value
