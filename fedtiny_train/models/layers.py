"""The few layers torch does not have: input normalisation, TensorFlow's 'SAME' convolution, addition by name.

Each is a module so that every tensor of the exported network has the name of the module that makes it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Center(nn.Module):
    """Subtract one scalar from the raw input."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x - mean."""
        return x - self.mean


class Scale(nn.Module):
    """Multiply the centred input by one scalar."""

    inv_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_std", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x * inv_std."""
        return x * self.inv_std


class Add(nn.Module):
    """Add two tensors."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b."""
        return a + b


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return (before, after): TensorFlow's 'SAME' padding, whose odd zero goes to the bottom and right."""
    whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return whole // 2, whole - whole // 2


class SameConv2d(nn.Conv2d):
    """A convolution with 'SAME' padding for inputs of one known size.

    `same` is (left, right, top, bottom). It is fixed when the network is built: with stride 2 the padding
    depends on the size of the input, and an exported network must state it as a number.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, size: tuple[int, int], bias: bool = False
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=0, bias=bias)
        self.same = (*same_pads(size[1], kernel, stride), *same_pads(size[0], kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Pad with zeros, then convolve."""
        left, right, top, bottom = self.same
        if left == right and top == bottom:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left))
        return F.conv2d(F.pad(x, self.same), self.weight, self.bias, self.stride)
