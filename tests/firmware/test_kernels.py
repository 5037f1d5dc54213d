"""The kernels as a processor runs them: its own inner loops give the reference's bytes, at the cost that is said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fedtiny_export.board.check import Measured
from fedtiny_export.board.devices import load_device
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.code_sizes import load_board_sizes
from fedtiny_export.ftm.file import Ftm, write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import Graph
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.tflite.read import read_tflite
from host_runtime import FLAGS, ROOT, SANITIZERS
from networks import (
    CONV_KERNELS,
    Builder,
    ad01,
    every_operator,
    every_vector,
    ic01,
    residual,
    samples,
    separable,
    streamed,
)
from projects import built_and_run

DEVICE = load_device("qemu-m4")
SHARED = Path(os.environ.get("FEDTINY_SHARED", ROOT.parent / "shared")) / "models"


def emulate(folder: Path, graph: Graph, forced: Kernel, count: int = 4) -> tuple[Ftm, Measured]:
    """Build a network with one encoding, run it, and compare with the reference."""
    wanted = {forced, Kernel.DEPTHWISE if forced is Kernel.CONV_DENSE else forced}
    ftm = write_ftm(graph, {kernel: 0 if kernel in wanted else 10**9 for kernel in Kernel})
    measured = built_and_run(folder, DEVICE, graph, ftm, count)
    assert measured is not None
    return ftm, measured


@pytest.fixture
def tools(need_tool) -> None:
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")


def test_the_quick_way_to_rescale_is_exact(tmp_path):
    program = tmp_path / "scale"
    include = [f"-I{ROOT / 'firmware/include'}", f"-I{ROOT / 'firmware/src'}"]
    source = ROOT / "tests/firmware/scale.c"
    subprocess.run(["gcc", *FLAGS, *SANITIZERS, *include, str(source), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:500] + done.stderr[:500]


def odd() -> Graph:
    """Widths that are no multiple of a block, channels that are no multiple of four, strides, and clamped outputs."""
    b = Builder((11, 13, 5), 3, 0.6)
    b.conv(7, stride=2)
    b.conv(6, 1, high=0.4)
    b.conv(9, 3, 1, (0, 0, 0, 0), low=None)
    b.dense(4)
    return b.int8()


NETWORKS = {
    "residual": lambda: residual(5, 0.3, 0.4, (12, 12, 4), (8, 12)),
    "streamed": lambda: streamed(6, 0.3, (21, 19, 3)),
    "odd": odd,
    "separable": lambda: separable(2, (17, 22, 3), 7),
    "several a channel": lambda: separable(3, (13, 12, 3), 6, times=3),
    "dense layers": every_vector,
}


@pytest.mark.parametrize("forced", CONV_KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_processor_s_own_loops_give_the_same_bytes(network, forced, tmp_path, tools):
    graph = NETWORKS[network]()
    outputs = reference.run(graph, samples(graph, 4))
    assert len(np.unique(outputs)) > 8
    _, measured = emulate(tmp_path, graph, forced)
    assert measured.golden_equal, measured.first_difference


def test_operators_without_weights_give_the_same_bytes(tmp_path, tools):
    graph = every_operator(1, 9)
    assert len(np.unique(reference.run(graph, samples(graph, 4)))) > 8
    _, measured = emulate(tmp_path, graph, Kernel.CONV_DENSE)
    assert measured.golden_equal, measured.first_difference


def test_mlperf_s_network_dense(tmp_path, tools):
    """TFLite Micro with CMSIS-NN takes 29.9 million instructions and an arena of 54,996 bytes."""
    ftm, measured = emulate(tmp_path, ic01(1.0), Kernel.CONV_DENSE, 1)
    found = {name: value for name, value, *_ in measured.figures}
    assert measured.golden_equal
    assert found["instructions"] < 13_400_000
    assert found["ram.arena"] == ftm.plan.arena_bytes < 28_672
    assert found["flash.code"] - load_board_sizes("qemu-m4").code < 12_288


@pytest.mark.parametrize(("seed", "density"), [(0, 1.0), (1, 0.3)])
def test_the_kernel_of_dense_layers_gives_the_same_bytes(seed, density, tmp_path, tools):
    graph = every_vector(seed, density)
    assert len(np.unique(reference.run(graph, samples(graph, 12)))) > 8
    _, measured = emulate(tmp_path, graph, Kernel.VECTOR, 12)
    assert measured.golden_equal, measured.first_difference


@pytest.mark.parametrize(
    ("density", "encoding", "most"),
    [(1.0, Kernel.VECTOR, 490_000), (0.1, Kernel.CONV_RICE, 840_000), (0.1, Kernel.CONV_GAP, 510_000)],
)
def test_mlperf_s_autoencoder(density, encoding, most, tmp_path, tools):
    """TFLite Micro with CMSIS-NN takes 582,865 instructions, 28,012 bytes of code and an arena of 2,580 bytes."""
    ftm, measured = emulate(tmp_path, ad01(density), encoding, 1)
    found = {name: value for name, value, *_ in measured.figures}
    assert measured.golden_equal
    assert found["instructions"] < most
    assert found["ram.arena"] == ftm.plan.arena_bytes == 768
    assert found["flash.code"] - load_board_sizes("qemu-m4").code < 6_800


@pytest.mark.parametrize(
    ("density", "encoding", "most"),
    [(0.1, Kernel.CONV_RICE, 5_400_000), (0.05, Kernel.CONV_RICE, 3_900_000), (0.01, Kernel.CONV_GAP, 2_600_000)],
)
def test_mlperf_s_network_sparse(density, encoding, most, tmp_path, tools):
    """In the encodings that the exporter chooses."""
    ftm, measured = emulate(tmp_path, ic01(density), encoding, 1)
    found = {name: value for name, value, *_ in measured.figures}
    assert measured.golden_equal
    assert found["instructions"] < most
    assert found["ram.arena"] == ftm.plan.arena_bytes < 28_000


if (SHARED / "vww01_mobilenetv1_int8.tflite").is_file():

    def test_the_published_visual_wake_words_network(tmp_path, tools):
        """TFLite Micro with CMSIS-NN takes 24.1 million instructions, 386,572 bytes of flash and 100,708 of arena."""
        graph = reduce_graph(read_tflite(SHARED / "vww01_mobilenetv1_int8.tflite"))
        ftm, measured = emulate(tmp_path, graph, Kernel.CONV_DENSE, 1)
        found = {name: value for name, value, *_ in measured.figures}
        assert measured.golden_equal
        assert found["instructions"] < 9_000_000
        assert found["ram.arena"] == ftm.plan.arena_bytes < 32_768
        assert found["flash.code"] + found["flash.data"] + found["flash.model"] < 53_248
