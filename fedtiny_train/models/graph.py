"""Which modules are one step of a network, and a network's graph down to these."""

from __future__ import annotations

from torch import fx, nn

from fedtiny_train.models.layers import Add, Center, Gate, Scale

LEAVES: tuple[type[nn.Module], ...] = (
    Center,
    Scale,
    Add,
    Gate,
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Dropout,
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)


def traced(model: nn.Module) -> fx.Graph:
    """Return the graph of a network down to the modules we know."""
    return _Tracer().trace(model)
