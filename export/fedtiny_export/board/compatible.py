"""Whether a firmware that is in the field would take a new model, said before anything is sent there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FedtinyError
from ..ftm import abi
from ..ftm.abi import Kernel
from ..untrusted import guarded


@dataclass(frozen=True, slots=True)
class Contract:
    """What a firmware was made for, as its model file says."""

    kernels: frozenset[Kernel]
    arena_bytes: int
    input: dict[str, Any]
    output: dict[str, Any]


def contract_of(data: bytes) -> Contract:
    """Read the contract off a .ftm file."""
    header = abi.HEADER.unpack(data, 0)
    if header["magic"] != abi.MAGIC or header["version"] != abi.VERSION:
        raise ValueError("no .ftm file of this version")
    ends = [abi.TENSOR.unpack(data, header["tensors"] + header[end] * abi.TENSOR.size) for end in ("input", "output")]
    kernels = frozenset(kernel for kernel in Kernel if header["kernels"] >> kernel & 1)
    return Contract(kernels, header["arena_bytes"], ends[0], ends[1])


def check_compatible(folder: Path, model: bytes) -> tuple[str, ...]:
    """Refuse a model that the firmware of an export would refuse; return what its owner has to know."""
    path = folder / "model.ftm"
    old = guarded(path, f"a model of format version {abi.VERSION}", lambda: contract_of(path.read_bytes()))
    new = contract_of(model)
    fault = next(_faults(old, new), None)
    if fault is not None:
        raise FedtinyError(f"the model cannot replace that of {folder}: it {fault}")
    scales = [end["scale"] for end in (old.output, new.output)]
    points = [end["zero_point"] for end in (old.output, new.output)]
    said = [f"can replace the model of {folder}, {len(model):,} bytes"]
    if scales[0] != scales[1] or points[0] != points[1]:
        said.append("its outputs have another scale: ft_model_dequantize of that firmware is wrong for them")
    return tuple(said)


def _faults(old: Contract, new: Contract) -> Iterator[str]:
    missing = sorted(kernel.name.lower() for kernel in new.kernels - old.kernels)
    if missing:
        yield f"needs kernels that the firmware lacks: {', '.join(missing)}"
    if new.arena_bytes > old.arena_bytes:
        yield f"needs {new.arena_bytes:,} bytes of arena; the firmware has {old.arena_bytes:,}"
    if _shape(new.input) != _shape(old.input):
        yield f"takes {_shape(new.input)}; the firmware gives {_shape(old.input)}"
    if _shape(new.output) != _shape(old.output):
        yield f"gives {_shape(new.output)}; the firmware takes {_shape(old.output)}"
    if any(new.input[key] != old.input[key] for key in ("scale", "zero_point")):
        yield "takes inputs of another scale than the firmware's ft_model_quantize gives"


def _shape(end: dict[str, Any]) -> str:
    return f"{end['height']}x{end['width']}x{end['channels']}"
