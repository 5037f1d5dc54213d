"""Training in the numbers that the exported network will have: int8 weights and activations, faked in float.

Only values are rounded, as the exporter will round them; a gradient passes as if nothing had been, but stops where a
value was clipped. Folding batch norms multiplies whole output channels, which symmetric steps by channel do not
notice, so weights can be rounded before anything is folded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from fedtiny_export.quant.scales import activation_quant
from torch import Tensor, nn
from torch.func import functional_call

from fedtiny_train.calibrate import Doubles
from fedtiny_train.models import Arrays
from fedtiny_train.models.layers import Center, Gate, Scale
from fedtiny_train.trace import INPUT, Step, steps

RANGES = "int8 ranges"  # in a request for training: that rounding is wanted, and between which ends
LEVELS = 127  # a weight's steps either side of zero
# A network's first steps: they become part of the first layer.
FRONT = (Center, Scale)
# What becomes part of the layer before it, so that the tensor between the two does not exist.
JOINS = (nn.BatchNorm1d, nn.BatchNorm2d, Gate, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity)
# What leaves values as they are, and what besides takes the tensor before it in its own steps.
VIEWS = (nn.Flatten, nn.Dropout, nn.Identity)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def rounded(plan: list[Step]) -> dict[str, int]:
    """Return the tensors that an exported network has as int8, each with the row of the ranges it takes."""
    rows, readers = {INPUT: 0}, dict[str, list[nn.Module]]()
    for row, step in enumerate(plan, 1):
        moved = isinstance(step.module, VIEWS + POOLS)
        rows[step.output] = rows[step.inputs[0]] if moved else row
        for name in step.inputs:
            readers.setdefault(name, []).append(step.module)
    made = [step.output for step in plan if not isinstance(step.module, FRONT + VIEWS)]
    own = [n for n in made if n not in readers or not all(isinstance(reader, JOINS) for reader in readers[n])]
    return {name: rows[name] for name in (INPUT, *own)}


def network(model: nn.Module, ranges: Doubles) -> Callable[[Tensor], Tensor]:
    """Return the network as a function whose weights and activations are rounded as int8 would be."""
    plan = steps(model)
    quants = {name: activation_quant(*map(float, ranges[row])) for name, row in rounded(plan).items()}

    def faked(name: str, value: Tensor) -> Tensor:
        if name not in quants:
            return value
        quant = quants[name]
        return torch.fake_quantize_per_tensor_affine(value.float(), quant.scale, quant.zero_point, -128, 127)

    def forward(x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {INPUT: faked(INPUT, x)}
        for step in plan:
            given = tuple(values[name] for name in step.inputs)
            values[step.output] = faked(step.output, _applied(step.module, given))
        return values[plan[-1].output]

    return forward


def _applied(layer: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return cast(Tensor, layer(*given))
    return cast(Tensor, functional_call(layer, {"weight": int8_weight(layer.weight)}, given))


def int8_weight(weight: Tensor) -> Tensor:
    """Return weights in symmetric steps by output channel; a zero stays zero, a channel of zeros as it is."""
    peak = weight.detach().abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1))
    step = torch.where(peak > 0, peak, torch.ones_like(peak)) / LEVELS
    near = torch.round(weight.detach() / step).clamp(-LEVELS, LEVELS) * step
    return weight + (near - weight.detach())  # the gradient is that of the weight


def first_round(rounds: int, wanted: bool, last: int) -> int:
    """Return the first round in int8: `last` rounds from the end, 0 for a fifth of all; without any, past the end."""
    return rounds + 1 - ((last or max(1, rounds // 5)) if wanted else 0)


def asked(tensors: Arrays) -> Doubles | None:
    """Return the ranges that a request carries, or None for training in float."""
    return np.asarray(tensors[RANGES], np.float64) if RANGES in tensors else None
