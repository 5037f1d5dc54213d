"""Two ways around the statistics of a batch: batch norm by running statistics, and normalised weights.

A client with few samples, or with samples of one class, has batches whose mean and variance say little about the
data. The first way normalises with the running statistics in training as well; the second has no batch norm, and
keeps the activations in bounds through the weights (FedMef's normalised sparse convolution).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.1
LEAST = 1e-4  # of a filter's variance times its size


def _run(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    if norm.training:
        with torch.no_grad():
            rows = x.transpose(0, 1).flatten(1)
            mean.lerp_(rows.mean(1), MOMENTUM)
            # Around the running mean, not the batch's own: a batch of one sample has a deviation too.
            variance.lerp_((rows - mean[:, None]).square().mean(1), MOMENTUM)
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps)


class RunningNorm1d(nn.BatchNorm1d):
    """Batch norm of features that normalises with its running statistics, and renews them first in training."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised features."""
        return _run(self, input)


class RunningNorm2d(nn.BatchNorm2d):
    """The same for images, over samples and places."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised images."""
        return _run(self, input)


def normalised(weight: Tensor, mask: Tensor, gain: Tensor) -> Tensor:
    """Return mask * (w - mean) / sqrt(max(var * N, 1e-4)) * gain, by filter of N weights, zeros included.

    A pruned position is exactly zero. Its gradient is what the loss would gain there per unit of the weight,
    for methods that grow weights by gradient; those of the live weights are exact.
    """
    sides = tuple(range(1, weight.dim()))
    variance, mean = torch.var_mean(weight, dim=sides, correction=0, keepdim=True)
    scale = gain.reshape(-1, *[1] * len(sides)) / (variance * weight[0].numel()).clamp(min=LEAST).sqrt()
    nothing = (weight - weight.detach()) * scale.detach()
    return torch.where(mask, (weight - mean) * scale, nothing)
