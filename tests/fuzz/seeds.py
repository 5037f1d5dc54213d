"""Models that the fuzzer starts from, small ones of every kind: python tests/fuzz/seeds.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fedtiny_export.ftm.abi import Kernel  # noqa: E402
from fedtiny_export.ftm.file import write_ftm  # noqa: E402
from fedtiny_export.graph.ir import Op  # noqa: E402
from networks import CONV_KERNELS, Builder, every_operator, residual, separable, streamed  # noqa: E402


def vector(density: float) -> Builder:
    """Dense layers only."""
    b = Builder((1, 1, 12), 2, density)
    b.dense(9, high=0.2)
    b.dense(4)
    return b


def averaged() -> Builder:
    """A strided convolution, an addition that clamps, and a mean."""
    b = Builder((5, 6, 3), 3, 0.5)
    first = b.conv(4, stride=2, high=0.3)
    b.conv(4, 1, low=None)
    b.add(Op.ADD, b.last, first, low=0.0, high=0.4)
    b.add(Op.MEAN)
    b.dense(3)
    return b


def seeds() -> dict[str, bytes]:
    """Every network with every encoding."""
    graphs = {
        "residual": residual(1, 0.3, 0.2, (6, 6, 2), (3, 4)),
        "streamed": streamed(1, 0.3, (14, 14, 2), 4),
        "swapped": streamed(2, 0.3, (14, 14, 2), 4),
        "vector": vector(0.4).int8(),
        "averaged": averaged().int8(),
        "separable": separable(0, (12, 12, 3), 4),
        "operators": every_operator(0, 6),
    }
    return {
        f"{name}-{kernel.name.lower()}": write_ftm(graph, {k: 0 if k is kernel else 1 << 30 for k in Kernel}).data
        for name, graph in graphs.items()
        for kernel in (*CONV_KERNELS, Kernel.VECTOR)
        if kernel is not Kernel.VECTOR or name == "vector"
    }


def write_seeds(folder: Path) -> None:
    """One file a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
