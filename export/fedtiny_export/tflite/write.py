"""int8 Graph -> .tflite bytes that TFLite Micro and LiteRT run.

The file is slim: constants are shared nowhere, only the input and output carry names, biases carry no
quantisation of their own. layers_out.py says how each operator is written.
"""

from __future__ import annotations

import flatbuffers

from ..graph.ir import Graph
from . import schema
from .layers_out import WRITERS
from .tables import Tables


def write_tflite(graph: Graph, *, decode: bool = False) -> bytes:
    """Lay the graph out as a flatbuffer; equal graphs give equal bytes. `decode` codes weights for TFLite Micro."""
    tables = Tables(graph.tensors, decode)
    inputs = [tables.activation(graph.input, "input")]
    outputs = [tables.activation(graph.output, "output")]
    for node in graph.nodes:
        WRITERS[node.op](tables, node)
    subgraph = schema.SubGraphT(tensors=tables.tensors, inputs=inputs, outputs=outputs, operators=tables.operators)
    model = schema.ModelT(
        version=3,
        operatorCodes=tables.codes,
        subgraphs=[subgraph],
        description="fedtiny",
        buffers=tables.buffers,
    )
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
