"""MobileNet as MLPerf Tiny's visual wake words network has it: 13 depthwise-separable blocks, strides of 32 in all.

Width 8 is its multiplier of 0.25: channels 8, 16, 32, ... 256; at 96x96x3 with 2 classes 208,112 weights and 7.49
million multiply-accumulates. ReLU, not ReLU6, as published there. No convolution has a bias: batch norm follows.
"""

from __future__ import annotations

from torch import nn

from fedtiny_train.models.layers import ConvNorm, Separable, classifier, strided

# One row a stage: its blocks as (channels in multiples of the width, stride).
STAGES = (
    ((2, 1),),
    ((4, 2), (4, 1)),
    ((8, 2), (8, 1)),
    ((16, 2), (16, 1), (16, 1), (16, 1), (16, 1), (16, 1)),
    ((32, 2), (32, 1)),
)


def mobilenetv1(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Return the network for images of a shape."""
    channels, *sides = shape
    size = (sides[0], sides[1])
    stages: dict[str, nn.Module] = {"stem": ConvNorm(channels, width, 3, 2, size)}
    size, inputs = strided(size, 2), width
    for index, rows in enumerate(STAGES):
        blocks: list[nn.Module] = []
        for factor, stride in rows:
            blocks.append(Separable(inputs, factor * width, stride, size))
            size, inputs = strided(size, stride), factor * width
        stages[f"stage{index + 1}"] = nn.Sequential(*blocks)
    return classifier(stages, inputs, classes)
