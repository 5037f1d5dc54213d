"""A network as a list of steps, from a torch.fx trace: what export, ranges and costs walk along.

A step is one module applied to named tensors; the tensor it makes has the module's name, the input is
`input` and the last one `logits`. A network that computes anything outside a module is refused, since that
would be a tensor without a name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fedtiny_train.models.graph import traced
from fedtiny_train.models.layers import Gate

INPUT, OUTPUT = "input", "logits"


@dataclass(frozen=True, slots=True)
class Step:
    """One module, the tensors it takes and the tensor it makes."""

    module: nn.Module
    path: str
    inputs: tuple[str, ...]
    output: str


def steps(model: nn.Module) -> list[Step]:
    """Trace a network into its steps, in the order of computation."""
    names: dict[fx.Node, str] = {}
    found: list[Step] = []
    for node in traced(model).nodes:
        if node.op == "placeholder":
            names[node] = INPUT
        elif node.op == "call_module":
            path = str(node.target)
            inputs = tuple(names[arg] for arg in node.args if isinstance(arg, fx.Node))
            names[node] = path
            found.append(Step(model.get_submodule(path), path, inputs, path))
        elif node.op != "output":
            raise TypeError(f"{type(model).__name__} computes {node.name} outside a module")
    last = found[-1]
    found[-1] = Step(last.module, last.path, last.inputs, OUTPUT)
    return found


def walk(plan: list[Step], x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Run the steps on a batch; yield each tensor with its name, the input first."""
    values = {INPUT: x}
    yield INPUT, x
    for step in plan:
        values[step.output] = step.module(*(values[name] for name in step.inputs))
        yield step.output, values[step.output]


def macs(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates that one sample costs in each prunable weight, all weights live.

    Behind gates only channels that won are computed with, and only those that win are computed.
    """
    model.eval()
    plan = steps(model)
    with torch.no_grad():
        sizes = {name: tuple(value.shape[1:]) for name, value in walk(plan, torch.zeros(1, *shape))}
    share = _channel_shares(plan)
    weighing = {step.inputs[1]: step for step in plan if isinstance(step.module, Gate)}
    behind = {step.inputs[0]: weighing[step.output] for step in plan if step.output in weighing}
    found = {}
    for step in plan:
        if isinstance(step.module, nn.Conv2d):
            whole = math.prod(sizes[step.output][1:]) * step.module.weight.numel()
            given, gate = share[step.inputs[0]], behind.get(step.output)
            made = share[gate.output] if gate else 1.0
            executed = whole * (given * made if step.module.groups == 1 else min(given, made))
            found[f"{step.path}.weight"] = round(executed) + (_gate_macs(gate.module) if gate else 0)
        elif isinstance(step.module, nn.Linear):
            found[f"{step.path}.weight"] = round(step.module.weight.numel() * share[step.inputs[0]])
    return found


def _gate_macs(gate: nn.Module) -> int:
    assert isinstance(gate, Gate)
    return gate.weight.numel()


def _channel_shares(plan: list[Step]) -> dict[str, float]:
    """Return the share of each tensor's channels that is not zero in a sample; at most so many behind an addition."""
    share = {INPUT: 1.0}
    for step in plan:
        if isinstance(step.module, Gate):
            share[step.output] = step.module.keep / len(step.module.bias)
        elif isinstance(step.module, nn.Conv2d | nn.Linear):
            share[step.output] = 1.0
        else:
            share[step.output] = min(1.0, sum(share[name] for name in step.inputs))
    return share


def norm_behind(model: nn.Module) -> dict[str, str]:
    """Return which batch norm directly follows each prunable weight that has one."""
    makers = {step.output: step for step in steps(model)}
    return {
        f"{maker.path}.weight": step.path
        for step in makers.values()
        if isinstance(step.module, nn.BatchNorm1d | nn.BatchNorm2d)
        and isinstance((maker := makers[step.inputs[0]]).module, nn.Conv2d | nn.Linear)
    }
