"""A small residual network as an export folder, for tests of projects and of measuring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fedtiny_export.board.devices import load_device
from fedtiny_export.board.project import Artifacts, Port, write_project
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import Graph
from fedtiny_export.tflite.write import write_tflite
from networks import residual, samples

LABELS = ("zero", "one's", "tw\\o", "trois\u00e9", "??four")
GRAPH = residual(seed=1, density=0.3)


def artifacts(graph: Graph = GRAPH, vectors: int = 6, labels: tuple[str, ...] = LABELS) -> Artifacts:
    ftm = write_ftm(graph, {})
    inputs = samples(graph, vectors)
    return Artifacts(
        ftm=ftm.data,
        tflite=write_tflite(graph),
        kernels=ftm.kernels,
        arena_bytes=ftm.plan.arena_bytes,
        input=port(graph, graph.input),
        output=port(graph, graph.output),
        labels=labels,
        normalization='inside: give "0..16"',
        golden_inputs=inputs.reshape(vectors, -1),
        golden_outputs=reference.run(graph, inputs).reshape(vectors, -1),
    )


def port(graph: Graph, name: str) -> Port:
    tensor = graph.tensors[name]
    assert tensor.quant is not None
    return Port(shape=tensor.image, scale=tensor.quant.scale, zero_point=tensor.quant.zero_point)


def write_export(folder: Path, board: str, made: Artifacts | None = None) -> Artifacts:
    """Write what measuring needs: a project, golden vectors and the model."""
    made = artifacts() if made is None else made
    folder.mkdir(parents=True, exist_ok=True)
    write_project(folder, load_device(board), made)
    inputs = made.golden_inputs.reshape(-1, *made.input.shape)
    np.savez(folder / "golden.npz", inputs=inputs, outputs=made.golden_outputs)
    (folder / "model.ftm").write_bytes(made.ftm)
    return made
