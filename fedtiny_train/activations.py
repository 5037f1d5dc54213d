"""What a network holds of a batch while it computes, counted on its trace.

Training keeps from the forward pass what the backward pass needs:

- the input of every convolution and linear layer, 4 bytes a value, once where several layers read the same tensor;
  with activation pruning only the largest share of it, 4 bytes a value and 2 or 4 for its position;
- the input of every batch norm, 4 bytes a value, and 8 bytes a channel for its mean and deviation in the batch;
- what a gate weighs, 4 bytes a value, and as much for each mean that it reads and each strength that it gives;
- of a rectifier one bit a value, which says whether it let through; nothing where its output is kept anyway;
- of max-pooling one byte an output, which says who won; of dropout one bit a value;
- the class probabilities, 4 bytes each.

Additions, means, reshaping and the input normalisation need nothing. What a kernel needs while it runs is left out,
and so are the gradients of activations, of which a device holds two or three tensors at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fedtiny_train.models.layers import Gate
from fedtiny_train.trace import INPUT, OUTPUT, Step, steps, walk

VALUE = 4
NARROW = 1 << 15  # a position among so many values fits a signed 16-bit number
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, slots=True)
class Held:
    """Values of one sample, by what is done with them.

    layers    each tensor that layers alone read as their input: it can be pruned
    whole     all values that are kept whole: batch-norm inputs, and of gates (ADP) what they weigh and their own
    channels  all channels of batch norms
    signs     each rectifier or dropout of which bits are kept in any case
    covered   each rectifier whose output is a layer's input: it needs bits only if that input is pruned
    winners   all outputs of max-pooling
    classes   the logits
    peak      the most values that live at once in a forward pass that keeps nothing
    """

    layers: tuple[int, ...]
    whole: int
    channels: int
    signs: tuple[int, ...]
    covered: tuple[int, ...]
    winners: int
    classes: int
    peak: int


def held(model: nn.Module, shape: tuple[int, ...]) -> Held:
    """Count what a network holds of one sample of a shape."""
    model.eval()
    plan = steps(model)
    with torch.no_grad():
        sizes = {name: value[0].numel() for name, value in walk(plan, torch.zeros(1, *shape))}
    norms = {step.inputs[0]: step.module for step in plan if isinstance(step.module, NORMS)}
    weighed = {step.inputs[1]: step.module for step in plan if isinstance(step.module, Gate)}
    whole = {*norms, *weighed}
    layers = {step.inputs[0] for step in plan if isinstance(step.module, nn.Conv2d | nn.Linear)} - whole
    lets = [s.output for s in plan if isinstance(s.module, nn.ReLU | nn.ReLU6) and s.output not in whole]
    drops = tuple(sizes[step.output] for step in plan if isinstance(step.module, nn.Dropout))
    return Held(
        layers=tuple(sizes[name] for name in sizes if name in layers),
        # a gate's own values: the means that it reads and the strengths that it gives
        whole=sum(sizes[name] for name in whole) + sum(sum(gate.weight.shape) for gate in weighed.values()),
        channels=sum(norm.num_features for norm in norms.values()),
        signs=tuple(sizes[name] for name in lets if name not in layers) + drops,
        covered=tuple(sizes[name] for name in lets if name in layers),
        winners=sum(sizes[step.output] for step in plan if isinstance(step.module, nn.MaxPool2d)),
        classes=sizes[OUTPUT],
        peak=_peak(plan, sizes),
    )


def _peak(plan: list[Step], sizes: dict[str, int]) -> int:
    """Return the most values alive at once: those made already and still to be read, and the one being made."""
    last = {name: index for index, step in enumerate(plan) for name in step.inputs}
    born = {INPUT: -1} | {step.output: index for index, step in enumerate(plan)}
    alive = [
        sum(sizes[name] for name, at in born.items() if at <= index <= last.get(name, at)) for index in range(len(plan))
    ]
    return max(alive)


def training_bytes(of: Held, batch: int, dropped: float = 0.0) -> int:
    """Return what is kept of a batch for the backward pass; `dropped` is the share of inputs that is forgotten."""
    gates = of.signs + of.covered if dropped else of.signs
    inputs = sum(_kept(batch * values, dropped) for values in of.layers)
    bits = sum(math.ceil(batch * values / 8) for values in gates)
    whole = VALUE * batch * (of.whole + of.classes)
    return inputs + whole + 2 * VALUE * of.channels + bits + batch * of.winners


def _kept(values: int, dropped: float) -> int:
    if not dropped:
        return VALUE * values
    count = min(values, max(1, math.ceil((1 - dropped) * values - 1e-9)))
    return count * (VALUE + (2 if values <= NARROW else 4))


def forward_bytes(of: Held, batch: int) -> int:
    """Return the most that a forward pass holds at once when nothing is kept."""
    return VALUE * batch * of.peak
