"""The memory report of a model that TensorFlow Lite Micro runs: what is known without its code.

The model and the arena's activations are planned, and the arena is measured on this machine where that is possible;
the interpreter's code is not known here and said so.
"""

from __future__ import annotations

import numpy as np

from ..board.budget import (
    MEASURED_RUN,
    SCHEMA,
    ArenaBuffer,
    Figure,
    Layer,
    Report,
    accuracy_fields,
    model_facts,
    other_boards,
)
from ..board.devices import Device
from ..board.ledger import PLANNED, planned_row
from ..ftm.cost import nominal_macs
from ..ftm.plan import activation_plan
from ..graph.evaluate import Accuracy
from ..graph.ir import WEIGHTED, Graph, Node
from .decode import decoded_bytes, encode
from .project import status_note

NOTES = (
    "TensorFlow Lite Micro's code is not counted: it comes on top of flash.model",
    "ram.arena is planned for activations only: the interpreter keeps its own records in the arena beside them",
)
MEASURED_NOTE = "ram.arena was measured on a 64-bit machine: an upper bound, since 32-bit pointers take less"
DECODED_NOTE = "weights are decoded into the arena while their layer runs; only TensorFlow Lite Micro runs this file"


def make_tflm_report(
    device: Device,
    whole: Graph,
    graph: Graph,
    model_bytes: int,
    source: str,
    accuracy: Accuracy | None,
    *,
    decode: bool = False,
    measured: int | None = None,
) -> Report:
    """Plan what can be planned; `whole` is the network before reduction, `measured` the arena on this machine."""
    held = decoded_bytes(graph) if decode else {}
    plan = activation_plan(graph, held)
    layers = tuple(_layer(graph, node, node.name in held) for node in graph.nodes)
    figures = _figures(device, model_bytes, plan.arena_bytes)
    fits = all(figure.over == 0 for figure in figures)
    if measured is not None:
        figures += (Figure("ram.arena", measured, "B", None, device.region_for("arena").name, MEASURED_RUN),)
    return Report(
        schema=SCHEMA,
        board=device.id,
        board_name=device.name,
        runtime="tflm-decode" if decode else "tflm",
        source=source,
        fits=fits,
        accuracy=accuracy_fields(accuracy),
        model=model_facts(whole, layers),
        figures=figures,
        layers=layers,
        ledger=(planned_row("flash.model", "model.tflite", "file", model_bytes),),
        arena=tuple(
            ArenaBuffer(b.name, offset, b.size, b.first, b.last, b.scratch)
            for b, offset in zip(plan.buffers, plan.offsets, strict=True)
        ),
        arena_lower_bound=plan.lower_bound,
        advice=_advice(device, figures, model_bytes, plan.arena_bytes),
        notes=(
            *(*NOTES, status_note(device, decode=decode)),
            *((MEASURED_NOTE,) if measured is not None else ()),
            *((DECODED_NOTE,) if decode else ()),
        ),
    )


def _layer(graph: Graph, node: Node, coded: bool) -> Layer:
    output, macs = graph.tensors[node.output].shape, nominal_macs(graph, node)
    if node.op not in WEIGHTED:
        return Layer(node.name, node.op.value, output, 0, 0, "", 0, {}, 0, 0)
    weight = node.constants["weight"]
    size, kept = int(weight.size), int(np.count_nonzero(weight))
    sizes = {"dense": size, "decode": sum(map(len, encode(weight)))}
    name = "decode" if coded else "dense"
    return Layer(node.name, node.op.value, output, size, kept, name, sizes[name], sizes, macs, macs)


def _figures(device: Device, model_bytes: int, arena_bytes: int) -> tuple[Figure, ...]:
    model, arena, code = device.region_for("model"), device.region_for("arena"), device.region_for("code")
    stack, reserve = device.region_for("stack"), device.reserve
    flash = model_bytes + (reserve.sdk_flash_bytes or 0)
    kept = reserve.stack_bytes or 0
    ram = arena_bytes + (reserve.sdk_ram_bytes or 0) + (kept if stack == arena else 0)
    return (
        Figure("flash.code", None, "B", None, code.name, PLANNED),
        Figure("flash.model", model_bytes, "B", model.size, model.name, PLANNED),
        Figure("flash.total", flash, "B", code.size, code.name, PLANNED),
        Figure("ram.arena", arena_bytes, "B", arena.size, arena.name, PLANNED),
        Figure("ram.static", reserve.sdk_ram_bytes, "B", None, arena.name, PLANNED),
        Figure("ram.stack", None, "B", reserve.stack_bytes, stack.name, PLANNED),
        Figure("ram.stack_reserved", kept, "B", None, stack.name, PLANNED),
        Figure("ram.total", ram, "B", arena.size, arena.name, PLANNED),
        Figure("instructions", None, "instructions", None, None, PLANNED),
    )


def _advice(device: Device, figures: tuple[Figure, ...], model_bytes: int, arena_bytes: int) -> tuple[str, ...]:
    lines = [
        f"{figure.name} needs {figure.value:,} bytes; {figure.region} of {device.id} has {figure.limit:,}: "
        f"{figure.over:,} bytes too many"
        for figure in figures
        if figure.over and figure.value is not None and figure.limit is not None
    ]
    if not lines:
        return ()
    return (*lines, other_boards(device, lambda other: _figures(other, model_bytes, arena_bytes)))
