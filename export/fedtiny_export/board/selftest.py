"""The self-test's vectors as C: inputs, the outputs they must give, and what every step must leave in the arena."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ftm.file import steps
from ..ftm.plan import Plan
from ..graph import reference

SELFTEST_LIMIT_BYTES = 4096  # flash that the self-test's vectors may take, once there is one vector
SELFTEST_VECTORS = 4
NAME_CHARACTERS = 60
NOT_COMPARED = 0  # the hash of a step that leaves a part of its output only


@dataclass(frozen=True, slots=True)
class Step:
    """What one `ft_step` must leave behind: a hash of its output for each vector. `name` is its operators'."""

    name: str
    hashes: tuple[int, ...]


def selftest_vectors(input_bytes: int, output_bytes: int, available: int) -> int:
    """How many golden vectors go into the firmware."""
    each = 4 * (words(input_bytes) + words(output_bytes))
    return max(1, min(SELFTEST_VECTORS, available, SELFTEST_LIMIT_BYTES // each))


def selftest_bytes(input_bytes: int, output_bytes: int, available: int) -> int:
    """Flash that the self-test's vectors take."""
    each = 4 * (words(input_bytes) + words(output_bytes))
    return each * selftest_vectors(input_bytes, output_bytes, available)


def golden_steps(plan: Plan, inputs: NDArray[np.int8]) -> tuple[Step, ...]:
    """Hash what each step of a model leaves in the arena; operators that hand rows to one another are one step."""
    graph = plan.graph
    values = reference.run_all(graph, inputs.reshape(-1, *graph.tensors[graph.input].shape))
    found: list[Step] = []
    chain: list[str] = []
    for node in graph.nodes:
        chain += [node.name] if steps(node) else []
        if node.name in plan.streamed or not chain:
            continue
        name = _plain(" > ".join(chain))
        found += [Step(name, (NOT_COMPARED,) * len(inputs))] * (steps(node) - 1)
        found.append(Step(name, tuple(fnv1a(row.tobytes()) for row in values[node.output])))
        chain = []
    return tuple(found)


def fnv1a(data: bytes) -> int:
    """The 32-bit FNV-1a hash, which ft_layers.c computes too."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def _plain(name: str) -> str:
    """A name that any serial log and C string can hold."""
    return re.sub(r"[^A-Za-z0-9_.:/>+ -]", "_", name)[:NAME_CHARACTERS] or "_"


def golden_names(inputs: NDArray[np.int8], outputs: NDArray[np.int8], made: Sequence[Step]) -> dict[str, str]:
    """What the templates of the self-test name."""
    count = selftest_vectors(inputs.shape[1], outputs.shape[1], inputs.shape[0])
    listed = made or (Step("_", (NOT_COMPARED,) * count),)
    table = np.array([[step.hashes[vector] for step in listed] for vector in range(count)], "<u4")
    return {
        "vectors": str(count),
        "vector_input_words": str(words(inputs.shape[1])),
        "vector_output_words": str(words(outputs.shape[1])),
        "golden_inputs": c_words(_padded_rows(inputs[:count])),
        "golden_outputs": c_words(_padded_rows(outputs[:count])),
        "steps": str(len(listed)),
        "golden_steps": c_words(table.tobytes()),
        "step_names": _c_names(step.name for step in listed),
    }


def words(size: int) -> int:
    """Whole words that hold so many bytes."""
    return (size + 3) // 4


def _padded_rows(rows: NDArray[np.int8]) -> bytes:
    return b"".join(row.tobytes() + bytes(-row.size % 4) for row in rows)


def c_words(data: bytes) -> str:
    """Bytes as the inside of a C array of words."""
    found = [f"0x{word:08X}u" for word in np.frombuffer(data, "<u4").tolist()]
    return "\n".join("    " + ", ".join(found[at : at + 8]) + "," for at in range(0, len(found), 8))


def _c_names(names: Iterable[str]) -> str:
    return "\n".join(f'    "{name}",' for name in names)
