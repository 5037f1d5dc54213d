"""ResNet-8 as MLPerf Tiny's image classification network (ic01) has it, for any image size and width.

Three residual stacks of 1, 2 and 4 times the width; the second and third halve the image, and their shortcut
is a 1x1 convolution of stride 2 without batch norm. The input is raw; the first two modules normalise it.

The published network has 78,666 parameters at 32x32x3 with 10 classes and width 16. It gives every convolution
a bias; here those before a batch norm, which takes them out again, are left out: 240 fewer.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedtiny_train.models.layers import Add, Center, ConvNorm, SameConv2d, Scale, Size, strided


class Stack(nn.Module):
    """One residual block; the ReLU comes after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int, size: Size) -> None:
        super().__init__()
        self.conv1 = SameConv2d(inputs, outputs, 3, stride, size)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = SameConv2d(outputs, outputs, 3, 1, strided(size, stride))
        self.bn2 = nn.BatchNorm2d(outputs)
        # The shortcut has no batch norm behind it, so it is the one convolution with a bias.
        self.shortcut = SameConv2d(inputs, outputs, 1, stride, size, bias=True) if stride == 2 else None
        self.add = Add()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches, then rectify."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(y, x if self.shortcut is None else self.shortcut(x)))  # type: ignore[no-any-return]


class ResNet8(nn.Module):
    """The whole network: raw image in, logits out."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        channels, *sides = shape
        size = (sides[0], sides[1])
        self.center = Center()
        self.scale = Scale()
        self.stem = ConvNorm(channels, width, 3, 1, size)
        self.stack1 = Stack(width, width, 1, size)
        self.stack2 = Stack(width, 2 * width, 2, size)
        self.stack3 = Stack(2 * width, 4 * width, 2, strided(size, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits of a batch of raw images, channels first."""
        x = self.stem(self.scale(self.center(input)))
        x = self.stack3(self.stack2(self.stack1(x)))
        return self.fc(self.flatten(self.pool(x)))  # type: ignore[no-any-return]
