"""ft_step: an operator at a time gives what ft_invoke gives, and what fails writes nothing."""

from __future__ import annotations

import subprocess

import pytest
from fedtiny_export.ftm.file import write_ftm
from networks import residual, samples, streamed

NETWORKS = {
    "residual": lambda: residual(3, 0.3),
    "streamed": lambda: streamed(1, 0.4),
    "wide": lambda: residual(4, 1.0, 0.3, (12, 10, 3), (7, 9)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_stepping_equals_invoking_and_errors_write_nothing(network, host_runtime, tmp_path):
    graph = NETWORKS[network]()
    ftm = write_ftm(graph, {})
    (tmp_path / "m.ftm").write_bytes(ftm.data)
    (tmp_path / "x").write_bytes(samples(graph, 5).tobytes())
    program = host_runtime.program(main="step.c")
    done = subprocess.run([program, tmp_path / "m.ftm", tmp_path / "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-1000:]}"
    handed_on = len(ftm.plan.streamed)
    assert int(done.stdout) == len(graph.nodes) - handed_on
    assert (handed_on > 0) == (network == "streamed")
