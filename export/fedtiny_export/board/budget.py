"""The memory report: what a model takes on a board and whether it fits, planned first, measured later.

One value, `Report`, is made here and checked when read back from `report.json`; render.py shows it as text and
HTML. Planned figures are never rewritten: measured ones are added beside them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import numpy as np

from ..errors import FedtinyError
from ..ftm import sparse
from ..ftm.abi import Kernel
from ..ftm.code_sizes import BoardSizes, CodeSizes, load_board_sizes, load_code_sizes, table_cpu
from ..ftm.cost import executed_macs, nominal_macs, planned_instructions
from ..ftm.depth import ways
from ..ftm.file import Ftm, kernels_for, lay_out
from ..ftm.optimize import break_even
from ..graph.evaluate import Accuracy
from ..graph.ir import WEIGHTED, Graph, Node
from ..quant.explain import LayerNoise
from ..untrusted import guarded
from .advice import forced, overs, ways_out
from .clients import Client
from .devices import Device, Memory, all_devices, next_board_up
from .ledger import BOARD, PLANNED, RUNTIME, TABLES, Row, merged, model_rows, planned_row

SCHEMA = 3
MEASURED_RUN = "measured-run"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the report; (name, region, source) is its key. A null value was not to be had."""

    name: str
    value: int | None
    unit: str
    limit: int | None
    region: str | None
    source: str

    @property
    def over(self) -> int:
        """By how much the limit is missed; 0 if it is kept."""
        return max(0, self.value - self.limit) if self.value is not None and self.limit is not None else 0


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the per-layer table. `sizes` holds the packed bytes in every encoding."""

    name: str
    op: str
    output: tuple[int, ...]
    weights: int
    nonzero: int
    encoding: str
    packed_bytes: int
    sizes: dict[str, int]
    macs: int
    macs_executed: int
    break_even: dict[str, float] | None = None  # densities below which pruning makes it smaller, and faster


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Counted on the int8 network before any reduction."""

    weights: int
    nonzero: int
    density: float
    macs: int
    macs_executed: int


@dataclass(frozen=True, slots=True)
class ArenaBuffer:
    """One bar of the arena's picture: bytes `offset`..`offset + size` from operator `first` to `last`."""

    name: str
    offset: int
    size: int
    first: int
    last: int
    scratch: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `report.json` holds."""

    schema: int
    board: str
    board_name: str
    runtime: str
    source: str
    fits: bool
    accuracy: dict[str, float | int | None]
    model: ModelFacts
    figures: tuple[Figure, ...]
    layers: tuple[Layer, ...]
    ledger: tuple[Row, ...]
    arena: tuple[ArenaBuffer, ...]
    arena_lower_bound: int
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    gates: tuple[str, ...] = ()
    run: dict[str, str] | None = None
    noise: tuple[LayerNoise, ...] = ()
    client: Client | None = None
    dense: dict[str, int | None] | None = None  # the planned figures with every weight stored, zeros and all

    def __post_init__(self) -> None:
        if set(self.accuracy) != {"int8", "float", "samples"}:
            raise TypeError("accuracy has other fields than it should")

    def figure(self, name: str, source: str) -> Figure | None:
        """The first figure of a name and source."""
        return next((f for f in self.figures if f.name == name and f.source == source), None)

    def to_json(self) -> str:
        """The text of `report.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def with_measured(self, figures: Iterable[Figure], run: dict[str, str], rows: Iterable[Row] = ()) -> Report:
        """Put measured figures and rows beside the planned ones; those of an earlier check give way."""
        kept = tuple(figure for figure in self.figures if figure.source == PLANNED)
        every = kept + tuple(figures)
        ledger = (*(row for row in self.ledger if row.source == PLANNED), *rows)
        return replace(self, figures=every, fits=all(f.over == 0 for f in every), run=run, ledger=ledger)


def read_report(text: str, where: str) -> Report:
    """Read the text of a `report.json` back, checking the type of every field."""
    data = guarded(Path(where), "a readable JSON file", lambda: json.loads(text))
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise FedtinyError(f"{where}: report schema {schema}; this version reads {SCHEMA}: export again")
    return guarded(Path(where), "a report of fedtiny-export", lambda: cast(Report, _typed(Report, data, "report")))


def _typed(kind: Any, value: Any, where: str) -> Any:
    """Build a value of an annotated type from JSON, or raise TypeError naming the place."""
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            raise TypeError(f"{where} has other fields than it should")
        return kind(**{name: _typed(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    if kind is Any:
        return value
    if origin is UnionType:
        fitting = [one for one in inner if type(value) is (get_origin(one) or one)]
        return _typed(fitting[0] if fitting else inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(_typed(one, item, where) for one, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(key): _typed(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is NoneType and value is None:
        return None
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is kind:
        return value
    raise TypeError(f"{where} is {str(value)[:40]!r}")


def make_report(
    device: Device,
    whole: Graph,
    graph: Graph,
    ftm: Ftm,
    source: str,
    accuracy: Accuracy | None,
    tables: Mapping[str, int],
) -> Report:
    """Plan every figure before any compiler runs.

    `whole` is the network before reduction. `tables`: bytes of the project's self-test vectors and labels.
    """
    sizes, board = load_code_sizes(device.cpu), board_sizes(device)
    layers = tuple(_layer(graph, node, ftm) for node in graph.nodes)
    figures = plan_figures(device, ftm, tables, planned_instructions(ftm.plan, ftm.packed, sizes))
    return Report(
        schema=SCHEMA,
        board=device.id,
        board_name=device.name,
        runtime="ft",
        source=source,
        fits=all(figure.over == 0 for figure in figures),
        accuracy=accuracy_fields(accuracy),
        model=model_facts(whole, layers),
        figures=figures,
        layers=layers,
        ledger=_planned_ledger(device, ftm, tables, figures),
        arena=tuple(
            ArenaBuffer(b.name, offset, b.size, b.first, b.last, b.scratch)
            for b, offset in zip(ftm.plan.buffers, ftm.plan.offsets, strict=True)
        ),
        arena_lower_bound=ftm.plan.lower_bound,
        advice=_advice(device, figures, ftm, tables),
        notes=_notes(device, sizes, board),
        dense=_dense_figures(device, graph, tables, sizes),
    )


def _dense_figures(
    device: Device, graph: Graph, tables: Mapping[str, int], sizes: CodeSizes | None
) -> dict[str, int | None]:
    """What the same network takes with dense int8 weights."""
    ftm = lay_out(graph, forced(graph, Kernel.CONV_DENSE))
    planned = plan_figures(device, ftm, tables, planned_instructions(ftm.plan, ftm.packed, sizes))
    return {figure.name: figure.value for figure in planned}


def _planned_ledger(device: Device, ftm: Ftm, tables: Mapping[str, int], figures: Sequence[Figure]) -> tuple[Row, ...]:
    """Rows that add up to every planned figure of flash and RAM that is known."""
    sizes, board = load_code_sizes(device.cpu), board_sizes(device)
    known = {figure.name: figure.value or 0 for figure in figures}
    rows = list(model_rows(ftm.ledger))
    if sizes is not None:
        rows += [
            planned_row("flash.code", RUNTIME, name, size) for name, size in sizes.runtime_parts(ftm.kernels).items()
        ]
        rows.append(planned_row("flash.code", BOARD, "start-up, main and report", board.code if board else 0))
    rows += [planned_row(f"flash.{name}", TABLES, name, size) for name, size in tables.items()]
    rows.append(planned_row("flash.sdk", "SDK", "as its source says", known.get("flash.sdk", 0)))
    rows.append(planned_row("ram.arena", "model", "activations and scratch", known["ram.arena"]))
    rows.append(planned_row("ram.static", BOARD, "variables", board.static if board else 0))
    rows.append(planned_row("ram.static", "SDK", "as its source says", device.reserve.sdk_ram_bytes or 0))
    rows.append(planned_row("ram.stack_reserved", BOARD, "stack", known["ram.stack_reserved"]))
    return merged(rows)


def accuracy_fields(accuracy: Accuracy | None) -> dict[str, float | int | None]:
    """What a report says about accuracy."""
    return {
        "int8": accuracy.int8 if accuracy else None,
        "float": accuracy.float32 if accuracy else None,
        "samples": accuracy.samples if accuracy else None,
    }


def model_facts(whole: Graph, layers: Sequence[Layer]) -> ModelFacts:
    """Weights as they were before any reduction, and the work that is left after it."""
    weights = [node.constants["weight"] for node in whole.nodes if node.op in WEIGHTED]
    count, nonzero = sum(int(w.size) for w in weights), sum(int(np.count_nonzero(w)) for w in weights)
    return ModelFacts(
        weights=count,
        nonzero=nonzero,
        density=nonzero / count if count else 1.0,
        macs=sum(nominal_macs(whole, node) for node in whole.nodes),
        macs_executed=sum(layer.macs_executed for layer in layers),
    )


def _layer(graph: Graph, node: Node, ftm: Ftm) -> Layer:
    output = graph.tensors[node.output].shape
    if node.op not in WEIGHTED:
        return Layer(node.name, node.op.value, output, 0, 0, "", 0, {}, 0, 0)
    weight, packed = np.asarray(node.constants["weight"], np.int8), ftm.packed[node.name]
    return Layer(
        name=node.name,
        op=node.op.value,
        output=output,
        weights=int(weight.size),
        nonzero=int(np.count_nonzero(weight)),
        encoding=_encoding_name(packed.kernel.name),
        packed_bytes=len(packed.data),
        sizes={_encoding_name(kernel.name): sparse.sizes(weight)[kernel] for kernel in kernels_for(graph, node)},
        macs=nominal_macs(graph, node),
        macs_executed=executed_macs(graph, node, packed.kernel),
        break_even=dataclasses.asdict(pays) if (pays := break_even(ftm.plan, node)) else None,
    )


def _encoding_name(kernel: str) -> str:
    # dense layers store every weight as convolutions do
    return "dense" if kernel == Kernel.VECTOR.name else kernel.removeprefix("CONV_").lower()


def plan_figures(device: Device, ftm: Ftm, tables: Mapping[str, int], instructions: int | None) -> tuple[Figure, ...]:
    """Flash and RAM by region. What the SDK takes is counted where the board table has a source for it."""
    sizes, board, model_bytes = load_code_sizes(device.cpu), board_sizes(device), len(ftm.data)
    code_in, model_in = device.region_for("code"), device.region_for("model")
    arena_in, stack_in = device.region_for("arena"), device.region_for("stack")
    reserve, arena = device.reserve, ftm.plan.arena_bytes
    code = sizes.runtime_bytes(ftm.kernels) + (board.code if board else 0) if sizes else None
    static = board.static if board else 0
    stack_used = sizes.stack_bytes(ways(ftm)) if sizes else None
    stack_kept = reserve.stack_bytes if reserve.stack_bytes is not None else (stack_used or 0)
    sdk_flash, sdk_ram = reserve.sdk_flash_bytes or 0, reserve.sdk_ram_bytes or 0
    flash_total = model_bytes + sum(tables.values()) + (code or 0) + sdk_flash
    ram_total = arena + static + sdk_ram + (stack_kept if stack_in == arena_in else 0)

    def planned(name: str, value: int | None, limit: int | None, region: Memory | None, unit: str = "B") -> Figure:
        return Figure(name, value, unit, limit, region.name if region else None, PLANNED)

    figures = [
        planned("flash.code", code, None, code_in),
        *(planned(f"flash.{name}", size, None, code_in) for name, size in tables.items()),
        planned("flash.model", model_bytes, model_in.size, model_in),
        planned("flash.sdk", reserve.sdk_flash_bytes, None, code_in),
        planned("flash.total", flash_total, code_in.size, code_in),
        planned("ram.arena", arena, arena_in.size, arena_in),
        planned("ram.static", static + sdk_ram, None, arena_in),
        planned("ram.stack", stack_used, reserve.stack_bytes, stack_in),
        planned("ram.stack_reserved", stack_kept, None, stack_in),
        planned("ram.total", ram_total, arena_in.size, arena_in),
        planned("instructions", instructions, None, None, "instructions"),
    ]
    return tuple(figure for figure in figures if figure.name != "flash.sdk" or figure.value is not None)


def board_sizes(device: Device) -> BoardSizes | None:
    """What start-up code and main take: an emulated board of the user's own has those of the one it is like."""
    known = load_board_sizes(device.id)
    if known is not None or device.emulator is None:
        return known
    kind = (table_cpu(device.cpu), device.emulator.toolchain)
    like = [d for d in all_devices() if d.emulator and (table_cpu(d.cpu), d.emulator.toolchain) == kind]
    return load_board_sizes(like[0].id) if like else None


def _notes(device: Device, sizes: CodeSizes | None, board: BoardSizes | None) -> tuple[str, ...]:
    notes = []
    if sizes is None:
        notes.append(f"no code size is known for {device.cpu}: flash.total counts the model only")
    elif sizes.stand_in:
        notes.append(f"code and stack were measured with {sizes.compiler}, a stand-in for {device.cpu}")
    if board is None:
        notes.append("start-up, the framework and your own code come on top of flash.code and ram.static")
        if device.reserve.sdk_flash_bytes is None:
            notes.append("no source gives the flash that this board's SDK takes: it is not counted")
        if device.reserve.sdk_ram_bytes is None:
            notes.append("no source gives the RAM that this board's SDK takes: it is not counted")
    notes.append("instructions are counted, not cycles or milliseconds")
    return tuple(notes)


def _advice(device: Device, figures: tuple[Figure, ...], ftm: Ftm, tables: Mapping[str, int]) -> tuple[str, ...]:
    """What is over its limit, by how much and where, and what would help, computed."""
    lines = overs(device, figures)
    if not lines:
        return ()
    lines += ways_out(device, figures, ftm, lambda other: plan_figures(device, other, tables, None))
    return (*lines, other_boards(device, lambda other: plan_figures(other, ftm, tables, None)))


def other_boards(device: Device, plan: Callable[[Device], Iterable[Figure]]) -> str:
    """The smallest board that would do, and how many others would."""
    others = [other for other in all_devices() if other.id != device.id]
    fitting = [other for other in others if all(figure.over == 0 for figure in plan(other))]
    up = next_board_up(device, fitting)
    if up is None:
        return f"boards it fits: {', '.join(other.id for other in fitting) or 'none of those known'}"
    room = f"{up.region_for('model').size:,} bytes of flash and {up.region_for('arena').size:,} of RAM"
    return f"the next board up: {up.id} ({up.name}, {room}); it fits {len(fitting)} boards: fedtiny-devices --fits"
