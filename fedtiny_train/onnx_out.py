"""A network as ONNX, written node by node from its trace.

torch.onnx.export renames tensors and stores stack traces and paths of the machine; here every tensor has the
name of its module, every constant the name it has in the state, and the same state gives the same bytes.
Batch norm is not folded and zeros are kept: that is the exporter's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from fedtiny_train import __version__, models
from fedtiny_train.masks import Mask
from fedtiny_train.models import Arrays, ModelSpec
from fedtiny_train.models.layers import Add, Center, Scale, pads
from fedtiny_train.trace import INPUT, OUTPUT, steps

OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class Operator:
    """How a module is written: constants by their names within the module, and numbers that no state holds."""

    name: str
    constants: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


def to_onnx(spec: ModelSpec, state: Arrays, masks: Mapping[str, Mask] | None = None) -> bytes:
    """Return the bytes of the model file: input (N, ...) float32, output `logits` (N, classes).

    Masks are needed where the network normalises its weights; the file has the plain ones.
    """
    state = models.baked(spec, state, masks or {})
    plan = steps(models.shared(spec))
    nodes, constants = [], {}
    for step in plan:
        operator = _operator(step.module)
        own = {f"{step.path}.{part}": state[f"{step.path}.{part}"] for part in operator.constants}
        own |= {f"{step.path}.{name}": np.array(value, np.float32) for name, value in operator.numbers.items()}
        constants.update(own)
        inputs = [*step.inputs, *own]
        nodes.append(helper.make_node(operator.name, inputs, [step.output], name=step.path, **operator.attributes))
    graph = helper.make_graph(
        nodes,
        spec.name,
        [helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["N", *spec.shape])],
        [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["N", spec.classes])],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="fedtiny",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _operator(module: nn.Module) -> Operator:
    """Return how a module is written."""
    for kind, rule in _RULES.items():
        if isinstance(module, kind):
            return rule(module)
    raise TypeError(f"no ONNX operator is known for {type(module).__name__}")


def _plain(name: str, *constants: str, **attributes: Any) -> Callable[[Any], Operator]:
    return lambda module: Operator(name, constants, attributes)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _convolution(module: nn.Conv2d) -> Operator:
    left, right, top, bottom = pads(module)
    attributes = {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "pads": [top, left, bottom, right],
        "dilations": list(module.dilation),
        "group": module.groups,
    }
    return Operator("Conv", _weights(module), attributes)


def _linear(module: nn.Linear) -> Operator:
    return Operator("Gemm", _weights(module), {"transB": 1})


def _weights(module: nn.Conv2d | nn.Linear) -> tuple[str, ...]:
    return ("weight", "bias") if module.bias is not None else ("weight",)


def _norm(module: models.Norm) -> Operator:
    return Operator("BatchNormalization", ("weight", "bias", "running_mean", "running_var"), {"epsilon": module.eps})


def _window(module: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, Any]:
    sides = {"kernel_shape": _pair(module.kernel_size), "strides": _pair(module.stride)}
    return {**sides, "pads": _pair(module.padding) * 2, "ceil_mode": int(module.ceil_mode)}


def _max_pool(module: nn.MaxPool2d) -> Operator:
    return Operator("MaxPool", (), {**_window(module), "dilations": _pair(module.dilation)})


def _average_pool(module: nn.AvgPool2d) -> Operator:
    return Operator("AveragePool", (), {**_window(module), "count_include_pad": int(module.count_include_pad)})


_RULES: dict[type[nn.Module], Callable[[Any], Operator]] = {
    Center: _plain("Sub", "mean"),
    Scale: _plain("Mul", "inv_std"),
    Add: _plain("Add"),
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.ReLU6: lambda module: Operator("Clip", numbers={"min": 0.0, "max": 6.0}),
    nn.ReLU: _plain("Relu"),
    nn.AdaptiveAvgPool2d: _plain("GlobalAveragePool"),
    nn.AvgPool2d: _average_pool,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _plain("Flatten", axis=1),
    nn.Dropout: _plain("Identity"),
}
