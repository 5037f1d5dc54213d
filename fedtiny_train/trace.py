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
    """Return the multiply-accumulates that one sample costs in each prunable weight, all weights live."""
    model.eval()
    plan = steps(model)
    with torch.no_grad():
        sizes = {name: tuple(value.shape[1:]) for name, value in walk(plan, torch.zeros(1, *shape))}
    found = {}
    for step in plan:
        if isinstance(step.module, nn.Conv2d):
            places = math.prod(sizes[step.output][1:])
            found[f"{step.path}.weight"] = places * step.module.weight.numel()
        elif isinstance(step.module, nn.Linear):
            found[f"{step.path}.weight"] = step.module.weight.numel()
    return found


def norm_behind(model: nn.Module) -> dict[str, str]:
    """Return which batch norm directly follows each prunable weight that has one."""
    makers = {step.output: step for step in steps(model)}
    return {
        f"{maker.path}.weight": step.path
        for step in makers.values()
        if isinstance(step.module, nn.BatchNorm1d | nn.BatchNorm2d)
        and isinstance((maker := makers[step.inputs[0]]).module, nn.Conv2d | nn.Linear)
    }
