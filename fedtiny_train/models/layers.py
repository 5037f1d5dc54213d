"""The few layers torch does not have, and the blocks that networks share.

Input normalisation, TensorFlow's 'SAME' convolution, addition by name: each is a module so that every tensor of
the exported network has the name of the module that makes it.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]
Pads = tuple[int, int, int, int]


@functools.lru_cache(maxsize=8)
def parts(model: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """Return a finished network's modules by name; walking a small one takes as long as training it on a batch."""
    return tuple(model.named_modules())


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


class Gate(nn.Module):
    """Let the strongest channels of each sample through, weighed by what the layer's input says (ADP).

    s = sigmoid(mean of x over the image); g = ReLU(W s + b); all but the `keep` largest g of a sample are zero.
    Equal ones are kept by their order. No gradient passes through the choice.
    """

    def __init__(self, inputs: int, outputs: int, keep: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.ones(outputs))
        self.keep = keep

    def strengths(self, x: Tensor) -> Tensor:
        """Return g of each sample and channel, those that lost at zero."""
        strength = torch.relu(F.linear(torch.sigmoid(x.mean((2, 3))), self.weight, self.bias))
        winners = torch.argsort(strength.detach(), dim=1, descending=True, stable=True)[:, : self.keep]
        return strength * torch.zeros_like(strength).scatter(1, winners, 1.0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y, the convolution of x behind its batch norm, with each channel weighed."""
        return y * self.strengths(x)[:, :, None, None]


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return (before, after): TensorFlow's 'SAME' padding, whose odd zero goes to the bottom and right."""
    whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return whole // 2, whole - whole // 2


def strided(size: Size, stride: int) -> Size:
    """Return the image size behind a 'SAME' convolution of a stride."""
    return -(-size[0] // stride), -(-size[1] // stride)


class SameConv2d(nn.Conv2d):
    """A convolution with 'SAME' padding for inputs of one known size.

    `same` is (left, right, top, bottom). It is fixed when the network is built: with stride 2 the padding
    depends on the size of the input, and an exported network must state it as a number.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | Size,
        stride: int,
        size: Size,
        bias: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=0, bias=bias, groups=groups)
        height, width = self.kernel_size
        self.same = (*same_pads(size[1], width, stride), *same_pads(size[0], height, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Pad with zeros, then convolve."""
        left, right, top, bottom = self.same
        if left == right and top == bottom:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)
        return F.conv2d(F.pad(x, self.same), self.weight, self.bias, self.stride, groups=self.groups)


def pads(conv: nn.Conv2d) -> Pads:
    """Return the zeros a convolution adds: (left, right, top, bottom)."""
    same: Pads | None = getattr(conv, "same", None)
    if same is not None:
        return same
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if isinstance(conv.padding, str):
        whole = [reach * (side - 1) for reach, side in zip(conv.dilation, conv.kernel_size, strict=True)]
        return whole[1] // 2, whole[1] - whole[1] // 2, whole[0] // 2, whole[0] - whole[0] // 2
    return conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0]


class ConvNorm(nn.Module):
    """A 'SAME' convolution, its batch norm and an activation, or none.

    The convolution has no bias: the mean that batch norm subtracts takes any bias out again.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | Size,
        stride: int,
        size: Size,
        groups: int = 1,
        relu: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride, size, groups=groups)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu() if relu else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify."""
        y: Tensor = self.bn(self.conv(x))
        return self.relu(y) if self.relu is not None else y


class Separable(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one; batch norm and ReLU behind each."""

    def __init__(self, inputs: int, outputs: int, stride: int, size: Size) -> None:
        super().__init__()
        self.depth = ConvNorm(inputs, inputs, 3, stride, size, groups=inputs)
        self.point = ConvNorm(inputs, outputs, 1, 1, strided(size, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel, then mix them."""
        y: Tensor = self.point(self.depth(x))
        return y


def classifier(stages: Mapping[str, nn.Module], channels: int, classes: int) -> nn.Sequential:
    """Return a network of raw images: normalisation, the stages, the mean over the image, a linear layer."""
    front = {"center": Center(), "scale": Scale()}
    back = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, classes)}
    return nn.Sequential(OrderedDict({**front, **stages, **back}))
