"""What a client does in training beyond plain SGD, where the server's request asks for it.

A habit is a handful of functions that the training loop calls; `habits` makes those that a request names. Each
is one client half of a pruning method. The numbers of a request are its only options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedtiny_train import models, wire
from fedtiny_train.masks import top_gradients
from fedtiny_train.models import Arrays
from fedtiny_train.models.place import moved
from fedtiny_train.trace import norm_behind
from fedtiny_train.wire import Sparse


@dataclass(frozen=True, slots=True)
class Lesson:
    """One client's training of one round: the network, its masks (a habit may change them) and the request."""

    model: nn.Module
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    steps: int
    steps_per_epoch: int

    def asked(self, prefix: str) -> dict[str, int]:
        """Return the numbers `prefix/NAME` of the request by NAME."""
        head = f"{prefix}/"
        return {name.removeprefix(head): int(n) for name, n in self.numbers.items() if name.startswith(head)}

    def gradient(self, name: str) -> Tensor:
        """Return the dense gradient of a weight, pruned positions included."""
        found = self.weights[name].grad
        assert found is not None
        return found


def _same_rate(step: int, lr: float) -> float:
    return lr


def _no_penalty(step: int) -> Tensor | None:
    return None


def _nothing(step: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Habit:
    """What the training loop calls at every step, and what is sent at the end."""

    rate: Callable[[int, float], float] = _same_rate
    penalty: Callable[[int], Tensor | None] = _no_penalty
    after_backward: Callable[[int], None] = _nothing
    after_step: Callable[[int], None] = _nothing
    results: Callable[[], dict[str, wire.Tensor]] = dict


def top_gradients_of(lesson: Lesson) -> Habit | None:
    """Send the K largest gradients of each layer's pruned positions.

    They are those of the last batch; with `squares` the mean of their squares over all batches, as PruneFL has
    it. With `scale_by_norm` a gradient is weighed by its filter's batch-norm deviation (before it is squared).
    """
    wanted = lesson.asked("top")
    if not wanted:
        return None
    squares = bool(lesson.numbers.get("squares"))
    kept: Arrays = {}

    def after_backward(step: int) -> None:
        for name in wanted if squares or step == lesson.steps - 1 else ():
            gradient = lesson.gradient(name).cpu().numpy()
            found = np.asarray(gradient**2 / lesson.steps if squares else gradient.copy(), dtype=np.float32)
            kept[name] = kept[name] + found if name in kept else found

    def results() -> dict[str, wire.Tensor]:
        scales = deviations(lesson.model) if lesson.numbers.get("scale_by_norm") else {}
        block = int(lesson.numbers.get("block", 1))
        found: dict[str, wire.Tensor] = {}
        for name, count in wanted.items():
            gradient = kept[name]
            if name in scales:
                scale = scales[name].reshape(-1, *[1] * (gradient.ndim - 1))
                gradient = gradient * (scale**2 if squares else scale)
            indices, values = top_gradients(gradient, lesson.masks[name].numpy(), count, block)
            found[f"top/{name}"] = Sparse(gradient.shape, indices, values)
        return found

    return Habit(after_backward=after_backward, results=results)


def deviations(model: nn.Module) -> Arrays:
    """Return the batch-norm deviation of each filter of the weights that a batch norm follows."""
    layers = models.norms(model)
    found = {}
    for weight, norm in norm_behind(model).items():
        variance = layers[norm].running_var
        assert variance is not None
        found[weight] = np.sqrt(variance.cpu().numpy() + np.float32(layers[norm].eps))
    return found


def extrusion(lesson: Lesson) -> Habit | None:
    """FedMef's budget-aware extrusion: press the weights about to be pruned towards zero, at a higher rate.

    The loss gains `extrude_weight` * |theta_low|^2, where theta_low are the `extrude/NAME` smallest live weights
    of each layer; the rate of step t of T is max(lr, p(t) (2 sigmoid(|theta_low|) - 1) `extrude_lr`) with REX's
    p(t) = (2T - 2t) / (2T - t).
    """
    counts = lesson.asked("extrude")
    if not counts:
        return None
    lowest = {name: _smallest_live(lesson, name, count) for name, count in counts.items()}
    weight, base = lesson.numbers["extrude_weight"], lesson.numbers["extrude_lr"]

    def squares() -> Tensor:
        return torch.stack([(lesson.weights[n].flatten()[at] ** 2).sum() for n, at in lowest.items()]).sum()

    def penalty(step: int) -> Tensor:
        return weight * squares()

    def rate(step: int, lr: float) -> float:
        norm = math.sqrt(float(squares().detach()))
        pace = (2 * lesson.steps - 2 * step) / (2 * lesson.steps - step)
        return max(lr, pace * (2 / (1 + math.exp(-norm)) - 1) * base)

    return Habit(rate=rate, penalty=penalty)


def _smallest_live(lesson: Lesson, name: str, count: int) -> Tensor:
    live = np.flatnonzero(lesson.masks[name].numpy().reshape(-1))
    size = np.abs(lesson.weights[name].detach().cpu().numpy().reshape(-1)[live])
    return torch.from_numpy(np.sort(live[np.argsort(size, kind="stable")[:count]]))


def local_swap(lesson: Lesson) -> Habit | None:
    """FedDST's client half: after epoch `swap_epoch` drop the `swap/NAME` smallest live weights, grow as many.

    What grows are the pruned positions with the largest gradients of that epoch's last batch, at zero; a weight
    just dropped may come back.
    """
    counts = lesson.asked("swap")
    if not counts:
        return None
    moment = int(lesson.numbers["swap_epoch"]) * lesson.steps_per_epoch - 1
    seen: Arrays = {}

    def after_backward(step: int) -> None:
        if step == moment:
            seen.update({name: np.abs(lesson.gradient(name).cpu().numpy()) for name in counts})

    def after_step(step: int) -> None:
        for name, count in counts.items() if step == moment else ():
            mask = lesson.masks[name].numpy().reshape(-1)  # a view: this changes the lesson's mask
            mask[_smallest_live(lesson, name, count).numpy()] = False
            lesson.weights[name].mul_(moved(lesson.masks[name]))
            pruned = np.flatnonzero(~mask)
            mask[pruned[np.argsort(-seen[name].reshape(-1)[pruned], kind="stable")[:count]]] = True
        if step == moment:
            models.set_masks(lesson.model, {name: mask.numpy() for name, mask in lesson.masks.items()})

    return Habit(after_backward=after_backward, after_step=after_step)


def thinning(lesson: Lesson) -> Habit | None:
    """FedDP's: after every local epoch, weights of convolutions up to the `threshold` become zero; they may regrow."""
    threshold = lesson.numbers.get("threshold", 0.0)
    if not threshold:
        return None

    def after_step(step: int) -> None:
        for weight in lesson.weights.values() if (step + 1) % lesson.steps_per_epoch == 0 else ():
            if weight.dim() == 4:
                weight.mul_(weight.abs() > threshold)

    return Habit(after_step=after_step)


HABITS: tuple[Callable[[Lesson], Habit | None], ...] = (top_gradients_of, extrusion, local_swap, thinning)


def habits(lesson: Lesson) -> list[Habit]:
    """Return the habits that the request of a lesson asks for."""
    return [habit for make in HABITS if (habit := make(lesson)) is not None]
