"""MobileNetV2 in its variant for small images: the strides of the stem and of the second stage are 1, not 2.

Seven stages of inverted residuals (expansion, channels, blocks, stride) and a head of 1,280 channels, with ReLU6.
Width 32 is the paper's multiplier of 1. The first layer has `width` channels; the others are multiplied by
width / 32 and rounded to multiples of 8, and the head does not shrink, both as in the paper's own code.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedtiny_train.models.layers import Add, ConvNorm, Size, classifier, strided

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
HEAD = 1280


def scaled(channels: int, width: int) -> int:
    """Return channels * width / 32 as a multiple of 8: the nearest one that takes away less than a tenth."""
    wished = channels * width / 32
    nearest = max(8, int(wished + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * wished else nearest


class Inverted(nn.Module):
    """An inverted residual: expand, filter each channel, project; the input is added where the shape allows."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, size: Size) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1, 1, size, relu=nn.ReLU6) if expansion > 1 else None
        self.depth = ConvNorm(hidden, hidden, 3, stride, size, groups=hidden, relu=nn.ReLU6)
        self.project = ConvNorm(hidden, outputs, 1, 1, strided(size, stride), relu=None)
        self.add = Add() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features, with the input added or without."""
        wide = x if self.expand is None else self.expand(x)
        y: Tensor = self.project(self.depth(wide))
        return y if self.add is None else self.add(y, x)


def mobilenetv2(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Return the network for images of a shape."""
    channels, *sides = shape
    size = (sides[0], sides[1])
    stages: dict[str, nn.Module] = {"stem": ConvNorm(channels, width, 3, 1, size, relu=nn.ReLU6)}
    inputs = width
    for index, (expansion, base, count, first_stride) in enumerate(STAGES):
        outputs = scaled(base, width)
        blocks: list[nn.Module] = []
        for stride in (first_stride, *[1] * (count - 1)):
            blocks.append(Inverted(inputs, outputs, expansion, stride, size))
            size, inputs = strided(size, stride), outputs
        stages[f"stage{index + 1}"] = nn.Sequential(*blocks)
    head = scaled(HEAD, max(width, 32))
    stages["head"] = ConvNorm(inputs, head, 1, 1, size, relu=nn.ReLU6)
    return classifier(stages, head, classes)
