"""A small plain convolutional network: the dense opponent of equal size that FedTiny's authors compare with.

Three 3x3 convolutions without padding, two max-poolings, two linear layers, biases and no batch norm. Width 32
is their largest, 32-64-32 channels and 128 hidden units: 104,810 parameters at 32x32x3 with 10 classes. Other
widths keep these proportions.
"""

from __future__ import annotations

from collections import OrderedDict

from fedtiny_export.errors import UsageError
from torch import nn

from fedtiny_train.models.layers import Center, Scale

LEAST = 18  # the smallest side of which the last convolution leaves a pixel


def cnn(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Return the network for images of a shape; refuse images that it would shrink to nothing."""
    channels, *sides = shape
    if min(sides) < LEAST:
        raise UsageError(
            f"model cnn needs images of at least {LEAST}x{LEAST}, and these have {sides[0]}x{sides[1]}; use resnet8"
        )
    left = [((side - 2) // 2 - 2) // 2 - 2 for side in sides]
    layers: dict[str, nn.Module] = {
        "center": Center(),
        "scale": Scale(),
        "conv1": nn.Conv2d(channels, width, 3),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(width, 2 * width, 3),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "conv3": nn.Conv2d(2 * width, width, 3),
        "relu3": nn.ReLU(),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(width * left[0] * left[1], 4 * width),
        "relu4": nn.ReLU(),
        "fc2": nn.Linear(4 * width, classes),
    }
    return nn.Sequential(OrderedDict(layers))
