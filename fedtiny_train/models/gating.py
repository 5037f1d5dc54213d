"""Channel gates for a network that is already there: one behind the batch norm of every convolution that has one.

The network stays written plainly; its graph gains a module that reads the convolution's input and weighs the batch
norm's output. Gates are no prunable weights. Their names begin with `gate.`, or with `own.` where each device keeps
its own: tensors of that name never travel.
"""

from __future__ import annotations

import math

import numpy as np
from torch import fx, nn

from fedtiny_train.masks import Array
from fedtiny_train.models.graph import traced
from fedtiny_train.models.layers import Gate
from fedtiny_train.seeds import rng

SHARED, OWN = "gate.", "own."


def winners(channels: int, ratio: float) -> int:
    """Return how many of a layer's channels win: their share rounded, at least one."""
    return max(1, round(ratio * channels))


def gated(model: nn.Module, ratio: float, personal: bool) -> nn.Module:
    """Return the network with a gate behind each batch norm that follows a convolution."""
    made = fx.GraphModule(model, traced(model))
    layers = {node: model.get_submodule(str(node.target)) for node in made.graph.nodes if node.op == "call_module"}
    for norm, layer in layers.items():
        source = norm.args[0]
        if not isinstance(layer, nn.BatchNorm2d) or not isinstance(source, fx.Node):
            continue
        if isinstance(conv := layers.get(source), nn.Conv2d):
            path = f"{OWN if personal else SHARED}{norm.target}"
            made.add_submodule(path, Gate(conv.in_channels, conv.out_channels, winners(conv.out_channels, ratio)))
            with made.graph.inserting_after(norm):
                gate = made.graph.call_module(path, (source.args[0], norm))
            norm.replace_all_uses_with(gate, delete_user_cb=lambda user, gate=gate: user is not gate)
    made.recompile()
    return made


def gates(model: nn.Module) -> dict[str, Gate]:
    """Return the gates by name, from input to output."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Gate)}


def norm_of(gate: str) -> str:
    """Return the name of the batch norm that a gate weighs."""
    return gate.removeprefix(SHARED).removeprefix(OWN)


def gate_state(model: nn.Module, seed: int) -> dict[str, Array]:
    """Draw the first weights of all gates, He's normal; biases are 1, so that at first every channel is open."""
    state: dict[str, Array] = {}
    for index, (name, gate) in enumerate(gates(model).items()):
        outputs, inputs = gate.weight.shape
        draw = rng(seed, "initial gate", index).normal(0.0, math.sqrt(2 / inputs), (outputs, inputs))
        state |= {f"{name}.weight": draw.astype(np.float32), f"{name}.bias": np.ones(outputs, dtype=np.float32)}
    return state
