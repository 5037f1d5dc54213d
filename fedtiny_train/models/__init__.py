"""Networks by name, one a file, and what the rest of the trainer needs to know of one.

A network is described by a small frozen value that crosses process borders; the module itself never does.
Its state is a dictionary of numpy arrays by state_dict name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from fedtiny_export.errors import UsageError
from torch import Tensor, fx, nn

from fedtiny_train.masks import Mask
from fedtiny_train.models.cnn import cnn
from fedtiny_train.models.dscnn import dscnn
from fedtiny_train.models.gating import OWN, gate_state, gated, gates
from fedtiny_train.models.layers import parts
from fedtiny_train.models.mlp import Mlp
from fedtiny_train.models.mobilenetv1 import mobilenetv1
from fedtiny_train.models.mobilenetv2 import mobilenetv2
from fedtiny_train.models.norms import RunningNorm1d, RunningNorm2d
from fedtiny_train.models.place import here, moved
from fedtiny_train.models.resnet8 import ResNet8
from fedtiny_train.models.resnet18 import resnet18
from fedtiny_train.models.sparse import saved_bytes
from fedtiny_train.models.styles import bake, restyle, set_masks
from fedtiny_train.models.user import user_network
from fedtiny_train.models.vgg11 import vgg11
from fedtiny_train.options import WIDTHS, ModelOptions
from fedtiny_train.seeds import rng

__all__ = ["OWN", "gate_state", "gates", "saved_bytes", "set_masks"]

Array = npt.NDArray[np.float32]
Arrays = dict[str, Array]
Norm = nn.BatchNorm1d | nn.BatchNorm2d
_KNOWN: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()
DEEP = 5  # a plain network with as many layers is adjusted by pairs
NETWORKS: Mapping[str, Callable[[tuple[int, ...], int, int], nn.Module]] = {
    "resnet8": ResNet8,
    "mlp": Mlp,
    "resnet18": resnet18,
    "vgg11": vgg11,
    "mobilenetv1": mobilenetv1,
    "mobilenetv2": mobilenetv2,
    "dscnn": dscnn,
    "cnn": cnn,
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network: its name, the shape of one input (channels first), the classes, the width and the style.

    `gates` is the share of channels that win in each sample, 0 without gates; `personal` ones stay with a device.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    width: int
    norm: str = "batch"
    activation_pruning: float = 0.0
    gates: float = 0.0
    personal: bool = False


def choose(options: ModelOptions, shape: tuple[int, ...], classes: int) -> ModelSpec:
    """Return the network for inputs of a shape; `auto` takes the one that fits, width 0 is the network's own."""
    name = options.model
    if ":" in name:
        return ModelSpec(name, shape, classes, 0, options.norm, options.activation_pruning)
    if name == "auto":
        name = "resnet8" if len(shape) == 3 else "mlp"
    wanted = 1 if name == "mlp" else 3
    if len(shape) != wanted:
        takes = "images (N,H,W) or (N,H,W,C)" if wanted == 3 else "feature vectors (N,F)"
        raise UsageError(f"model {name} takes {takes}; this data has samples of shape {shape}")
    width = options.width or WIDTHS[name]
    return ModelSpec(name, shape, classes, width, options.norm, options.activation_pruning)


def build(spec: ModelSpec) -> nn.Module:
    """Return a fresh module; its values are arbitrary until `load` sets them."""
    if ":" in spec.name:
        model = user_network(spec.name, spec.shape, spec.classes)
    else:
        model = NETWORKS[spec.name](spec.shape, spec.classes, spec.width)
    model = restyle(model, spec.norm, spec.activation_pruning)
    return gated(model, spec.gates, spec.personal) if spec.gates else model


def exported(spec: ModelSpec) -> ModelSpec:
    """Return the network that is left once training is over: gates are frozen into it."""
    return replace(spec, gates=0.0, personal=False)


@functools.lru_cache(maxsize=4)
def shared(spec: ModelSpec) -> nn.Module:
    """Return this process's one module of a spec. Whoever uses it loads a state and masks first.

    Its weights lie in memory channels last, in which convolutions are about 1.3 times as fast.
    """
    return build(spec).to(here(), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def norms(model: nn.Module) -> dict[str, Norm]:
    """Return the batch-norm layers by name, from input to output."""
    return {name: m for name, m in parts(model) if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}


def needs_two_samples(model: nn.Module) -> bool:
    """Return whether training takes statistics of a batch, which a single sample does not have."""
    return any(not isinstance(norm, RunningNorm1d | RunningNorm2d) for norm in norms(model).values())


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that density counts, from input to output: those of convolutions and linear layers."""
    layers = dict(parts(model))
    if isinstance(model, fx.GraphModule):  # its modules lie in the order of a user's definitions
        layers = {str(node.target): layers[str(node.target)] for node in model.graph.nodes if node.op == "call_module"}
    return {f"{name}.weight": m.weight for name, m in layers.items() if isinstance(m, nn.Conv2d | nn.Linear)}


def first_convolution(model: nn.Module) -> str | None:
    """Return the name of the first prunable weight if it is a convolution's."""
    name, weight = next(iter(prunable(model).items()))
    return name if weight.dim() == 4 else None


def depthwise(model: nn.Module) -> frozenset[str]:
    """Return the weights of depthwise convolutions: few, and a channel dies with its own nine."""
    return frozenset(
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1
    )


def blocks(model: nn.Module) -> list[tuple[str, ...]]:
    """Group the prunable weights into what is adjusted at a time, from input to output.

    A part of the network with several layers (a stage) is a group; a single layer before the first or behind
    the last one joins it. A network of single layers has one group a layer, or if it is deep pairs of
    consecutive layers, counted from the output, so that what is left over joins the first pair.
    """
    names = list(prunable(model))
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.split(".")[0], []).append(name)
    groups = [tuple(part) for part in parts.values()]
    if len(groups) == 1 or all(len(group) == 1 for group in groups):
        if len(names) < DEEP:
            return [(name,) for name in names]
        first = len(names) % 2
        groups = [tuple(names[at : at + 2]) for at in range(first, len(names), 2)]
        groups[0] = (*names[:first], *groups[0])
        return groups
    if len(groups) > 2 and len(groups[-1]) == 1:
        groups[-2:] = [groups[-2] + groups[-1]]
    if len(groups) > 2 and len(groups[0]) == 1:
        groups[:2] = [groups[0] + groups[1]]
    return groups


def layout(x: Tensor) -> Tensor:
    """Return a batch where it is computed with, in the memory layout that convolutions are fastest in."""
    x = moved(x)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _values(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors of a module's state, looked up once: a module that is in use is not rebuilt any more.

    The step counters of batch norm are no part of it.
    """
    if model not in _KNOWN:
        every = model.state_dict()
        _KNOWN[model] = {name: value for name, value in every.items() if not name.endswith("num_batches_tracked")}
    return _KNOWN[model]


def read(model: nn.Module) -> Arrays:
    """Copy the state out of a module."""
    return {name: np.array(value.cpu().numpy(), order="C") for name, value in _values(model).items()}


def load(model: nn.Module, state: Mapping[str, Array], masks: Mapping[str, Mask] | None = None) -> None:
    """Copy a state into a module; without masks those it has stay."""
    if masks is not None:
        set_masks(model, masks)
    with torch.no_grad():
        for name, value in _values(model).items():
            if name in state:
                value.copy_(torch.from_numpy(np.asarray(state[name], order="C")))


def baked(spec: ModelSpec, state: Arrays, masks: Mapping[str, Mask]) -> Arrays:
    """Return the state of the plain network that is exported: nothing of a style is left in it."""
    return bake(shared(spec), state, masks)


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
    return state | gate_state(model, seed)
