"""What a firmware with TensorFlow Lite Micro needs beside the model: its bytes as C, its operators, its arena.

The C files are templates under `firmware/templates/tflm/model`. The arena is what the interpreter takes here, in the
package `tflite-micro`: its records hold pointers of 64 bits, so a microcontroller takes less.
"""

from __future__ import annotations

import os
import re
import tempfile
from string import Template

from .. import __version__
from ..assets import asset_root
from ..errors import FedtinyError
from ..tflite import schema
from .decode import OPERATOR

DATA_HEADER, DATA_SOURCE, OPS_HEADER = "model_data.h", "model_data.c", "model_ops.h"
# Each operator's method of the resolver, and whether there is a registration for int8 alone.
METHODS = {
    "ADD": ("AddAdd", True),
    "AVERAGE_POOL_2D": ("AddAveragePool2D", True),
    "CONCATENATION": ("AddConcatenation", False),
    "CONV_2D": ("AddConv2D", True),
    "DEPTHWISE_CONV_2D": ("AddDepthwiseConv2D", True),
    "FULLY_CONNECTED": ("AddFullyConnected", True),
    "HARD_SWISH": ("AddHardSwish", False),
    "LEAKY_RELU": ("AddLeakyRelu", False),
    "LOGISTIC": ("AddLogistic", False),
    "MAX_POOL_2D": ("AddMaxPool2D", True),
    "MEAN": ("AddMean", False),
    "MUL": ("AddMul", True),
    "PAD": ("AddPad", False),
    "PADV2": ("AddPadV2", False),
    "QUANTIZE": ("AddQuantize", False),
    "RELU": ("AddRelu", False),
    "RELU6": ("AddRelu6", False),
    "RESHAPE": ("AddReshape", False),
    "RESIZE_NEAREST_NEIGHBOR": ("AddResizeNearestNeighbor", False),
    "SOFTMAX": ("AddSoftmax", True),
    "SUB": ("AddSub", False),
    "TANH": ("AddTanh", False),
    "TRANSPOSE": ("AddTranspose", False),
    OPERATOR: ("AddDecode", False),
}
_ARENA_LIMIT = 1 << 28


def operators(model: bytes) -> list[str]:
    """The names of the operators that a .tflite file uses, each once, in their order."""
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found = schema.ModelT.InitFromPackedBuf(model, 0)
    used = sorted({operator.opcodeIndex for operator in found.subgraphs[0].operators})
    codes = [found.operatorCodes[index] for index in used]
    return [code.customCode.decode() if code.customCode else names[code.builtinCode] for code in codes]


def tflm_files(model: bytes, arena_bytes: int | None) -> dict[str, bytes]:
    """Every C file by its name."""
    names = {
        "exporter": __version__,
        "model_bytes": str(len(model)),
        "arena_lines": _arena_lines(arena_bytes),
        "model_rows": _rows(model),
        "op_count": str(len(operators(model))),
        "op_rows": "\n".join(_op_row(name) for name in operators(model)),
    }
    folder = asset_root() / "firmware" / "templates" / "tflm" / "model"
    files = (DATA_HEADER, DATA_SOURCE, OPS_HEADER)
    return {name: Template((folder / f"{name}.in").read_text()).substitute(names).encode() for name in files}


def _arena_lines(arena_bytes: int | None) -> str:
    if arena_bytes is None:
        return "/* The arena was not measured: the package tflite-micro was missing when this was written. */"
    said = "/* Measured on a 64-bit machine, without kernels for any processor: 32-bit pointers take less,\n"
    return f"{said} * optimised kernels may want scratch on top. */\n#define MODEL_ARENA_BYTES {arena_bytes}u"


def _op_row(name: str) -> str:
    if name not in METHODS:
        raise FedtinyError(f"operator {name} has no row in the op resolver of TensorFlow Lite Micro")
    method, int8 = METHODS[name]
    registration = f"MODEL_OPS_INT8(Register_{name}_INT8())" if int8 else ""
    return f"  TF_LITE_ENSURE_STATUS(resolver.{method}({registration}));"


def _rows(data: bytes) -> str:
    cells = [f"0x{byte:02x}" for byte in data]
    return "\n".join("    " + ", ".join(cells[at : at + 16]) + "," for at in range(0, len(cells), 16))


def measured_arena(model: bytes) -> int | None:
    """Bytes of arena that TensorFlow Lite Micro takes for a model on this machine; None where it is not installed."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        return None
    size = 1 << 20
    while size <= _ARENA_LIMIT:
        try:
            return _allocated(runtime.Interpreter.from_bytes(model, arena_size=size))
        except RuntimeError:
            size *= 4
    raise FedtinyError(f"TensorFlow Lite Micro does not take this model in an arena of {_ARENA_LIMIT:,} bytes")


def _allocated(interpreter: object) -> int:
    """The interpreter says it on the C library's stderr only."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            interpreter.print_allocations()  # type: ignore[attr-defined]
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        caught.seek(0)
        said = re.search(rb"Arena allocation total (\d+) bytes", caught.read())
    assert said is not None, "the interpreter words its allocations differently"
    return int(said.group(1))
