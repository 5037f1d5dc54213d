"""A network as ONNX, written node by node from its trace.

torch.onnx.export renames tensors and stores stack traces and paths of the machine; here every tensor has the
name of its module, every constant the name it has in the state, and the same state gives the same bytes.
Batch norm is not folded and zeros are kept: that is the exporter's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from fedtiny_train import __version__, models
from fedtiny_train.models import Arrays, ModelSpec
from fedtiny_train.models.layers import Add, Center, SameConv2d, Scale
from fedtiny_train.trace import INPUT, OUTPUT, steps

OPSET = 17
IR_VERSION = 8


def to_onnx(spec: ModelSpec, state: Arrays) -> bytes:
    """Return the bytes of the model file: input (N, ...) float32, output `logits` (N, classes)."""
    plan = steps(models.shared(spec))
    nodes, used = [], []
    for step in plan:
        operator, parts, attributes = _operator(step.module)
        constants = [f"{step.path}.{part}" for part in parts]
        used += constants
        nodes.append(
            helper.make_node(operator, [*step.inputs, *constants], [step.output], name=step.path, **attributes)
        )
    graph = helper.make_graph(
        nodes,
        spec.name,
        [helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["N", *spec.shape])],
        [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["N", spec.classes])],
        [numpy_helper.from_array(np.asarray(state[name], dtype=np.float32), name) for name in used],
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


Operator = tuple[str, tuple[str, ...], dict[str, Any]]


def _operator(module: nn.Module) -> Operator:
    """Return a module's operator, its constants by their names within the module, and its attributes."""
    for kind, rule in _RULES.items():
        if isinstance(module, kind):
            return rule(module)
    raise TypeError(f"no ONNX operator is known for {type(module).__name__}")


def _plain(operator: str, *constants: str, **attributes: Any) -> Callable[[Any], Operator]:
    return lambda module: (operator, constants, attributes)


def _convolution(module: SameConv2d) -> Operator:
    left, right, top, bottom = module.same
    attributes = {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "pads": [top, left, bottom, right],
        "dilations": [1, 1],
        "group": 1,
    }
    return "Conv", ("weight", "bias") if module.bias is not None else ("weight",), attributes


def _linear(module: nn.Linear) -> Operator:
    return "Gemm", ("weight", "bias") if module.bias is not None else ("weight",), {"transB": 1}


def _norm(module: models.Norm) -> Operator:
    return "BatchNormalization", ("weight", "bias", "running_mean", "running_var"), {"epsilon": module.eps}


_RULES: dict[type[nn.Module], Callable[[Any], Operator]] = {
    Center: _plain("Sub", "mean"),
    Scale: _plain("Mul", "inv_std"),
    Add: _plain("Add"),
    SameConv2d: _convolution,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.ReLU: _plain("Relu"),
    nn.AdaptiveAvgPool2d: _plain("GlobalAveragePool"),
    nn.Flatten: _plain("Flatten", axis=1),
    nn.Linear: _linear,
}
