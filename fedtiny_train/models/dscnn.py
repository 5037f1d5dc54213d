"""DS-CNN as MLPerf Tiny's keyword spotting network has it: a 10x4 convolution of stride 2, four separable blocks.

At 49x10x1 with 12 classes and width 64 it has 22,016 weights and 2.66 million multiply-accumulates. Its dropout
is left out, and so are the biases before a batch norm, which takes them out again.
"""

from __future__ import annotations

from torch import nn

from fedtiny_train.models.layers import ConvNorm, Separable, classifier, strided

BLOCKS = 4


def dscnn(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Return the network for spectrograms (or images) of a shape."""
    channels, *sides = shape
    size = (sides[0], sides[1])
    stages: dict[str, nn.Module] = {"stem": ConvNorm(channels, width, (10, 4), 2, size)}
    for index in range(BLOCKS):
        stages[f"block{index + 1}"] = Separable(width, width, 1, strided(size, 2))
    return classifier(stages, width, classes)
