"""ResNet-18 in its variant for small images: a 3x3 first convolution of stride 1 and no max-pooling.

Four stages of 1, 2, 4 and 8 times the width with two basic blocks each; where the shape changes the shortcut is
a 1x1 convolution with batch norm. At 32x32x3, 10 classes and width 64 it is the network of FedTiny's authors:
11,173,962 parameters, 555.42 million multiply-accumulates. Two things differ from theirs. Every batch norm starts
with a scale of 1, since a block that starts with 0 is invisible to scores of weights. A stride of 2 pads as
TensorFlow's 'SAME' does, which is what TFLite computes without a layer of its own for it.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedtiny_train.models.layers import Add, ConvNorm, SameConv2d, Size, classifier, strided


class Block(nn.Module):
    """A basic block: two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, size: Size) -> None:
        super().__init__()
        self.conv1 = SameConv2d(inputs, outputs, 3, stride, size)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = SameConv2d(outputs, outputs, 3, 1, strided(size, stride))
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, size, relu=None) if changes else None
        self.add = Add()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches, then rectify."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(y, x if self.shortcut is None else self.shortcut(x)))  # type: ignore[no-any-return]


def resnet18(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Return the network for images of a shape."""
    channels, *sides = shape
    size = (sides[0], sides[1])
    stages: dict[str, nn.Module] = {"stem": ConvNorm(channels, width, 3, 1, size)}
    inputs = width
    for index in range(4):
        outputs, stride = width << index, 2 if index else 1
        first = Block(inputs, outputs, stride, size)
        size, inputs = strided(size, stride), outputs
        stages[f"stage{index + 1}"] = nn.Sequential(first, Block(outputs, outputs, 1, size))
    return classifier(stages, inputs, classes)
