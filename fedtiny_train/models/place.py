"""Which device computes: one for the whole process, chosen before its first network is built.

On a GPU the networks and the samples lie there; masks, states and everything random stay in the machine's memory, so
that batches are the same everywhere. Results of a GPU are repeatable on that GPU, and are other bytes than a CPU's.
"""

from __future__ import annotations

import os

import torch
from fedtiny_export.errors import ToolMissingError, UsageError
from torch import Tensor

from fedtiny_train.options import RunOptions

_PLACE = [torch.device("cpu")]


def chosen(options: RunOptions) -> str:
    """Return cpu or cuda: as asked, or a GPU if torch sees one and the run is not spread over processes."""
    spread = options.workers > 1 or options.engine != "local"
    if options.device == "cuda" and spread:
        raise UsageError("device cuda computes in this process alone; leave out --workers and --engine")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ToolMissingError(
            f"device cuda needs a GPU, and torch {torch.__version__} sees none; "
            "use --device cpu, or install the package torch for CUDA"
        )
    return "cuda" if options.device != "cpu" and not spread and torch.cuda.is_available() else "cpu"


def use(name: str) -> None:
    """Compute on a device from now on."""
    if name == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or its products are not repeatable
    _PLACE[0] = torch.device(name)


def here() -> torch.device:
    """Return the device that computes."""
    return _PLACE[0]


def moved(x: Tensor) -> Tensor:
    """Return a tensor on the device that computes; on a CPU it is the same one."""
    return x.to(_PLACE[0])
