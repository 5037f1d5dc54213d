"""Run folders made without torch: a small residual network written as ONNX with random weights and true ranges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from fedtiny_export.graph.evaluate import run_float
from fedtiny_export.graph.passes import simplify
from fedtiny_export.onnx_in.read import read_onnx
from onnx import TensorProto, helper, numpy_helper


class OnnxBuilder:
    """Collects nodes and initializers; every method returns the name of the tensor it makes."""

    def __init__(self, seed: int, density: float) -> None:
        self.random, self.density = np.random.default_rng(seed), density
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, values) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, kind: str, name: str, *inputs: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv_bn(self, name: str, source: str, fan_in: int, out: int, kernel: int, stride: int, pads: list[int]) -> str:
        weight = self.random.normal(size=(out, fan_in, kernel, kernel)) / np.sqrt(
            fan_in * kernel * kernel * self.density
        )
        weight *= self.random.random(weight.shape) < self.density
        conv = self.node("Conv", name, source, self.constant(f"{name}.weight", weight), pads=pads, strides=[stride] * 2)
        norm = [self.random.uniform(0.5, 1.5, out), self.random.normal(size=out) * 0.3]
        norm += [self.random.normal(size=out) * 0.1, self.random.uniform(0.5, 1.5, out)]
        names = [self.constant(f"{name}.bn.{i}", values) for i, values in enumerate(norm)]
        return self.node("BatchNormalization", f"{name}.bn", conv, *names, epsilon=1e-5)


def residual_onnx(
    seed: int = 0, density: float = 0.2, side: int = 8, widths: tuple[int, int] = (8, 12)
) -> onnx.ModelProto:
    """Normalisation, one plain and one strided residual block, a classifier of ten."""
    b = OnnxBuilder(seed, density)
    a, c = widths
    centred = b.node("Sub", "norm.sub", "input", b.constant("norm.mean", 16 / 255 * 78))
    x = b.node("Mul", "norm.mul", centred, b.constant("norm.inv_std", 1 / 6.0))
    stem = b.node("Relu", "stem.relu", b.conv_bn("stem", x, 1, a, 3, 1, [1, 1, 1, 1]))
    y = b.node("Relu", "b1.relu1", b.conv_bn("b1.c1", stem, a, a, 3, 1, [1, 1, 1, 1]))
    y = b.conv_bn("b1.c2", y, a, a, 3, 1, [1, 1, 1, 1])
    first = b.node("Relu", "b1.relu2", b.node("Add", "b1.add", y, stem))
    y = b.node("Relu", "b2.relu1", b.conv_bn("b2.c1", first, a, c, 3, 2, [0, 0, 1, 1]))
    y = b.conv_bn("b2.c2", y, c, c, 3, 1, [1, 1, 1, 1])
    short = b.conv_bn("b2.short", first, a, c, 1, 2, [0, 0, 0, 0])
    second = b.node("Relu", "b2.relu2", b.node("Add", "b2.add", y, short))
    flat = b.node("Flatten", "flat", b.node("GlobalAveragePool", "pool", second))
    weight = b.random.normal(size=(10, c)) * (b.random.random((10, c)) < max(density, 0.3))
    b.node("Gemm", "logits", flat, b.constant("fc.weight", weight), b.constant("fc.bias", np.zeros(10)), transB=1)
    graph = helper.make_graph(
        b.nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        b.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_run(
    folder: Path, seed: int = 0, density: float = 0.2, side: int = 8, widths: tuple[int, int] = (8, 12)
) -> Path:
    """Write what fedtiny-export reads of a run: model, ranges, samples labelled by the float network, summary."""
    folder.mkdir(parents=True)
    onnx.save(residual_onnx(seed, density, side, widths), folder / "model.onnx")
    graph = simplify(read_onnx(folder / "model.onnx"))
    x = np.random.default_rng(seed).integers(0, 17, (100, side, side)).astype(np.float64)
    values = run_float(graph, x[..., None])
    ranges = {name: {"min": float(v.min()), "max": float(v.max())} for name, v in values.items()}
    ranges["input"] = {"min": 0.0, "max": 16.0}
    (folder / "ranges.json").write_text(json.dumps(ranges))
    np.savez(folder / "samples.npz", x=x, y=values[graph.output].argmax(axis=1))
    (folder / "summary.json").write_text(json.dumps({"schema": 1, "class_names": [f"class {i}" for i in range(10)]}))
    return folder
