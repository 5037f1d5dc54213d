"""Which weights of a masked network reach from its input to its output, and which only take up bytes.

A channel lives if a kept weight makes it from a living channel, and is read if a kept weight passes it on to
something that is read. A weight works if it reads a living channel and makes one that is read. A dead channel is
a constant, which batch norm or a bias could as well supply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

from fedtiny_train.masks import Mask
from fedtiny_train.trace import INPUT, OUTPUT, Step, steps

Channels = npt.NDArray[np.bool_]


def working(model: nn.Module, masks: Mapping[str, Mask], channels: int) -> dict[str, Mask]:
    """Return the part of each mask whose weights work; `channels` is the number of the input's."""
    plan = steps(model)
    living = _living(plan, masks, channels)
    read = _read(plan, masks, living)
    found = {}
    for name, mask in masks.items():
        step = next(step for step in plan if f"{step.path}.weight" == name)
        sources = by_source(step.module, spread(living[step.inputs[0]], mask, step.module), mask)
        out = read[step.output].reshape(-1, *[1] * (mask.ndim - 1))
        found[name] = mask & sources & out
    return found


def by_source(module: nn.Module, living: Channels, mask: Mask) -> Mask:
    """Return for each position of a weight whether the channel it reads lives."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    rows = living.reshape(groups, -1)
    each = np.repeat(rows, mask.shape[0] // groups, axis=0)
    return np.broadcast_to(each.reshape(*mask.shape[:2], *[1] * (mask.ndim - 2)), mask.shape)


def _living(plan: list[Step], masks: Mapping[str, Mask], channels: int) -> dict[str, Channels]:
    living: dict[str, Channels] = {INPUT: np.ones(channels, dtype=np.bool_)}
    for step in plan:
        mask = masks.get(f"{step.path}.weight")
        if mask is not None:
            made = mask & by_source(step.module, spread(living[step.inputs[0]], mask, step.module), mask)
            living[step.output] = np.asarray(made.reshape(len(mask), -1).any(axis=1))
        else:
            living[step.output] = np.asarray(np.any([living[name] for name in step.inputs], axis=0), dtype=np.bool_)
    return living


def spread(living: Channels, mask: Mask, module: nn.Module) -> Channels:
    """Return the channels of a linear layer's input: each one as often as flattening laid it out."""
    inputs = mask.shape[1] * (module.groups if isinstance(module, nn.Conv2d) else 1)
    return np.repeat(living, inputs // len(living))


def _read(plan: list[Step], masks: Mapping[str, Mask], living: Mapping[str, Channels]) -> dict[str, Channels]:
    read = {name: np.zeros_like(channels) for name, channels in living.items()}
    read[OUTPUT] = np.ones_like(living[OUTPUT])
    for step in reversed(plan):
        mask, wanted = masks.get(f"{step.path}.weight"), read[step.output]
        for name in step.inputs:
            if mask is None:
                read[name] |= wanted
                continue
            groups = step.module.groups if isinstance(step.module, nn.Conv2d) else 1
            used = (mask.reshape(len(mask), mask.shape[1], -1).any(axis=2)) & wanted[:, None]
            by_group = used.reshape(groups, len(mask) // groups, mask.shape[1]).any(axis=1).reshape(-1)
            read[name] |= by_group.reshape(len(read[name]), math.prod(by_group.shape) // len(read[name])).any(axis=1)
    return read
