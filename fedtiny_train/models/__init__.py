"""Networks by name, one a file, and what the rest of the trainer needs to know of one.

A network is described by a small frozen value that crosses process borders; the module itself never does.
Its state is a dictionary of numpy arrays by state_dict name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from fedtiny_export.errors import UsageError
from torch import Tensor, nn

from fedtiny_train.models.mlp import Mlp
from fedtiny_train.models.resnet8 import ResNet8
from fedtiny_train.seeds import rng

Array = npt.NDArray[np.float32]
Arrays = dict[str, Array]
Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network: its name, the shape of one input (channels first), the classes and the width."""

    name: str
    shape: tuple[int, ...]
    classes: int
    width: int


def choose(name: str, shape: tuple[int, ...], classes: int, width: int) -> ModelSpec:
    """Return the network of a name for inputs of a shape; `auto` takes the one that fits."""
    if name == "auto":
        name = "resnet8" if len(shape) == 3 else "mlp"
    wanted = 3 if name == "resnet8" else 1
    if len(shape) != wanted:
        takes = "images (N,H,W) or (N,H,W,C)" if wanted == 3 else "feature vectors (N,F)"
        raise UsageError(f"model {name} takes {takes}; this data has samples of shape {shape}")
    return ModelSpec(name, shape, classes, width)


def build(spec: ModelSpec) -> nn.Module:
    """Return a fresh module; its values are arbitrary until `load` sets them."""
    if spec.name == "resnet8":
        channels, height, width = spec.shape
        return ResNet8((channels, height, width), spec.classes, spec.width)
    return Mlp(spec.shape[0], spec.classes, spec.width)


@functools.lru_cache(maxsize=4)
def shared(spec: ModelSpec) -> nn.Module:
    """Return this process's one module of a spec. Whoever uses it loads a state first."""
    return build(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def norms(model: nn.Module) -> dict[str, Norm]:
    """Return the batch-norm layers by name, from input to output."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that density counts, by name: those of convolutions and linear layers."""
    return {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def first_convolution(model: nn.Module) -> str | None:
    """Return the name of the first prunable weight if it is a convolution's."""
    name, weight = next(iter(prunable(model).items()))
    return name if weight.dim() == 4 else None


def blocks(model: nn.Module) -> list[tuple[str, ...]]:
    """Group the prunable weights by residual stack, from input to output.

    The classifier joins the last group. A network without stacks has one group a layer.
    """
    groups: dict[str, list[str]] = {}
    for name in prunable(model):
        top = name.split(".")[0]
        groups.setdefault(top, []).append(name)
    ordered = [tuple(names) for names in groups.values()]
    if any(len(names) > 1 for names in ordered):
        ordered[-2:] = [ordered[-2] + ordered[-1]]
    return ordered


def layout(x: Tensor) -> Tensor:
    """Return a batch in the memory layout that convolutions are fastest in."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def read(model: nn.Module) -> Arrays:
    """Copy the state out of a module. The step counters of batch norm are no part of it."""
    return {
        name: np.array(value.detach().numpy(), order="C")
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def load(model: nn.Module, state: Mapping[str, Array]) -> None:
    """Copy a state into a module."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in state:
                value.copy_(torch.from_numpy(np.asarray(state[name], order="C")))


def initial_state(spec: ModelSpec, seed: int) -> Arrays:
    """Draw the first weights: He's normal for convolutions and hidden layers, smaller for the classifier."""
    model = build(spec)
    state = read(model)
    weights = list(prunable(model).items())
    for index, (name, weight) in enumerate(weights):
        fan_in = math.prod(weight.shape[1:])
        gain = 1.0 if index == len(weights) - 1 else 2.0
        draw = rng(seed, "initial", index).normal(0.0, math.sqrt(gain / fan_in), tuple(weight.shape))
        state[name] = draw.astype(np.float32)
        bias = name.removesuffix("weight") + "bias"
        if bias in state:
            state[bias] = np.zeros_like(state[bias])
    return state
