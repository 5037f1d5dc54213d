"""A perceptron of two hidden layers for feature vectors.

Batch norm follows each hidden layer: it is what adaptive batch-norm selection works with, and it evens out
features of different scales. The input is raw; the first two modules normalise it as a whole.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedtiny_train.models.layers import Center, Scale


class Mlp(nn.Module):
    """Raw features in, logits out; hidden layers of 8 and 4 times the width."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        self.center = Center()
        self.scale = Scale()
        self.fc1 = nn.Linear(shape[0], 8 * width, bias=False)
        self.bn1 = nn.BatchNorm1d(8 * width)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(8 * width, 4 * width, bias=False)
        self.bn2 = nn.BatchNorm1d(4 * width)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(4 * width, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits of a batch of raw feature vectors."""
        x = self.relu1(self.bn1(self.fc1(self.scale(self.center(input)))))
        return self.fc3(self.relu2(self.bn2(self.fc2(x))))  # type: ignore[no-any-return]
