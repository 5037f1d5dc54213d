"""A network as a project of its own, built and run on an emulated board, for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fedtiny_export.board.check import Measured, measure
from fedtiny_export.board.devices import Device
from fedtiny_export.board.project import write_project
from fedtiny_export.export import make_artifacts
from fedtiny_export.ftm.file import Ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import Graph
from networks import samples


def built_and_run(folder: Path, device: Device, graph: Graph, ftm: Ftm, vectors: int) -> Measured | None:
    """Write the project with golden vectors of the reference, build it, run it; None where the board cannot be run."""
    inputs = samples(graph, vectors)
    outputs = reference.run(graph, inputs)
    np.savez(folder / "golden.npz", inputs=inputs, outputs=outputs)
    (folder / "model.ftm").write_bytes(ftm.data)
    labels = tuple(str(index) for index in range(outputs[0].size))
    write_project(folder, device, make_artifacts(graph, ftm, b"", inputs, outputs, labels))
    return measure(folder, device, None)
