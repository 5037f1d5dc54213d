"""The runtimes we have to agree with, as functions from a model and int8 inputs to int8 outputs."""

from __future__ import annotations

import numpy as np


def tflite_micro(model: bytes, inputs: np.ndarray, arena_bytes: int = 1 << 20) -> np.ndarray:
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
    outputs = []
    for sample in inputs:
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).reshape(-1).copy())
    return np.stack(outputs)


def litert(model: bytes, inputs: np.ndarray, kernels: str = "BUILTIN_REF") -> np.ndarray:
    """LiteRT's reference kernels; its optimised ones round differently where they multiply."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType[kernels])
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(given, sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(made).reshape(-1).copy())
    return np.stack(outputs)
