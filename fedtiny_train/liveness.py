"""Which filters of a masked network are dead: they have no live weight, or nobody reads what they make.

It looks at masks alone, from the output backwards, so a filter that only dead filters read is dead too. What
values the live weights have, and which outputs are constant, is the exporter's business.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedtiny_train.masks import Mask
from fedtiny_train.trace import OUTPUT, Step, steps, walk

Flags = npt.NDArray[np.bool_]


def dead_filters(model: nn.Module, shape: tuple[int, ...], masks: Mapping[str, Mask]) -> dict[str, list[int]]:
    """Return the numbers of the dead filters of each masked weight; a linear layer's filters are its rows."""
    model.eval()
    plan = steps(model)
    with torch.no_grad():
        channels = {name: value.shape[1] for name, value in walk(plan, torch.zeros(1, *shape))}
    read = {name: np.zeros(count, dtype=np.bool_) for name, count in channels.items()}
    read[OUTPUT][:] = True
    found: dict[str, list[int]] = {}
    for step in reversed(plan):
        needed, name = read[step.output], f"{step.path}.weight"
        if name in masks:
            mask = masks[name]
            filled = mask.reshape(len(mask), -1).any(axis=1)
            found[name] = [int(index) for index in np.flatnonzero(~(filled & needed))]
            read[step.inputs[0]] |= _read_by(step, mask, needed, channels[step.inputs[0]])
            continue
        for source in step.inputs:
            read[source] |= _passed_on(needed, channels[source])
    return {name: found[name] for name in masks}


def _read_by(step: Step, mask: Mask, needed: Flags, inputs: int) -> Flags:
    """Return which input channels the live weights of the needed filters read."""
    groups = step.module.groups if isinstance(step.module, nn.Conv2d) else 1
    per_filter = mask.reshape(*mask.shape[:2], -1).any(axis=2) & needed[:, None]
    by_group = per_filter.reshape(groups, -1, per_filter.shape[1]).any(axis=1)
    return np.asarray(by_group.reshape(inputs))


def _passed_on(needed: Flags, inputs: int) -> Flags:
    """Return which input channels are read by a step without weights of its own: most keep the channels apart.

    A flattened image has each channel's places side by side. Where channels are mixed in any other way, all count.
    """
    if len(needed) % inputs == 0:
        return np.asarray(needed.reshape(inputs, -1).any(axis=1))
    return np.full(inputs, needed.any())
