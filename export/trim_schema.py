"""Write fedtiny_export/tflite/schema.py: the .tflite schema of ai-edge-litert, cut down to the tables we use.

The full generated module has 690 kB, most of it for operators no int8 network of ours contains. Run it again when
the writer or reader needs another table: python export/trim_schema.py
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

TABLES = [
    "Model",
    "SubGraph",
    "Tensor",
    "Operator",
    "OperatorCode",
    "Buffer",
    "QuantizationParameters",
    "Metadata",
    "Conv2DOptions",
    "DepthwiseConv2DOptions",
    "FullyConnectedOptions",
    "Pool2DOptions",
    "AddOptions",
    "ReducerOptions",
    "PadV2Options",
    "PadOptions",
    "SoftmaxOptions",
    "ReshapeOptions",
    "MulOptions",
    "SubOptions",
    "StridedSliceOptions",
    "ConcatenationOptions",
    "LeakyReluOptions",
    "HardSwishOptions",
    "QuantizeOptions",
    "DequantizeOptions",
    "ResizeNearestNeighborOptions",
    "TransposeOptions",
    "SqueezeOptions",
    "ExpandDimsOptions",
    "SignatureDef",
    "TensorMap",
    "VariantSubType",
    "ExternalBufferGroup",
    "ExternalBuffer",
    "SparsityParameters",
    "DimensionMetadata",
]
ENUMS = [
    "TensorType",
    "Padding",
    "ActivationFunctionType",
    "BuiltinOperator",
    "BuiltinOptions",
    "FullyConnectedOptionsWeightsFormat",
    "SparseIndexVector",
    "DimensionType",
    "QuantizationDetails",
]
CREATORS = ("BuiltinOptionsCreator", "SparseIndexVectorCreator", "QuantizationDetailsCreator")
UNUSED_UNIONS = ("BuiltinOptions2Creator",)


def main() -> None:
    """Cut the installed schema and write ours."""
    import ai_edge_litert.schema_py_generated as schema

    source = Path(str(schema.__file__)).read_text()
    lines = source.splitlines()
    all_tables = sorted(
        {m.group(1) for m in re.finditer(r"^class (\w+?)T\(object\)", source, re.M)}, key=len, reverse=True
    )
    parts = [
        f'"""The .tflite schema (by flatc, from ai-edge-litert {importlib.metadata.version("ai-edge-litert")},'
        " Apache-2.0), cut by\nexport/trim_schema.py to the tables fedtiny uses. Do not edit.\n" + '"""\n',
        "import flatbuffers\nimport numpy as np\n",
    ]
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if node.name in CREATORS:
            text = _keep_branches(text)
        elif node.name not in ENUMS:
            owner = next((table for table in all_tables if node.name.startswith(table)), None)
            if owner not in TABLES:
                continue
        parts.append(text + "\n")
    for name in UNUSED_UNIONS:
        parts.append(f"def {name}(unionType, table):\n    return None\n")
    target = Path(__file__).parent / "fedtiny_export" / "tflite" / "schema.py"
    target.write_text("\n\n".join(parts))


def _keep_branches(text: str) -> str:
    """Keep the branches of a union's creator whose table is kept."""
    kept = []
    lines = iter(text.splitlines())
    for line in lines:
        branch = re.match(r"    if unionType == \w+\.(\w+):", line)
        following = next(lines) if branch else ""
        if branch is None:
            kept.append(line)
        elif branch.group(1) in TABLES:
            kept += [line, following]
    return "\n".join(kept)


if __name__ == "__main__":
    main()
