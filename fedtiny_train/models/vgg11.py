"""VGG-11 with batch norm (configuration A), with a small classifier: the mean over the image, one linear layer.

FedTiny's authors keep the classifier for large images, 25088-4096-4096, which has 119.6 million of their 128.8
million parameters; no microcontroller holds it, and most small-image versions leave it out as well. A pooling
that would leave nothing of a small image is left out.
"""

from __future__ import annotations

from torch import nn

from fedtiny_train.models.layers import ConvNorm, classifier

# Channels in multiples of the width; 0 is a 2x2 max-pooling.
LAYERS = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)


def vgg11(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Return the network for images of a shape."""
    inputs, *sides = shape
    size = (sides[0], sides[1])
    stages: dict[str, nn.Module] = {}
    convolutions = poolings = 0
    for factor in LAYERS:
        if factor:
            convolutions += 1
            stages[f"conv{convolutions}"] = ConvNorm(inputs, factor * width, 3, 1, size)
            inputs = factor * width
        elif min(size) > 1:
            poolings += 1
            stages[f"pool{poolings}"] = nn.MaxPool2d(2)
            size = (size[0] // 2, size[1] // 2)
    return classifier(stages, inputs, classes)
