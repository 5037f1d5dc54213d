"""Weights coded for TensorFlow Lite Micro's DECODE operator: a bit for each weight, and the values that are not zero.

The operator writes a layer's weights out into the arena just before the layer runs. Its tensors are the mask, the
first weight in the highest bit of the first byte, and ancillary data: a header of 16 bytes (kind of coding, version,
two reserved bytes, then the coding's own version), then the values in order. Nothing but TensorFlow Lite Micro runs
such a file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..graph.ir import WEIGHTED, Graph, Node, Op

Int8s = NDArray[np.int8]
OPERATOR = "TFLM_DECODE"
HEADER = bytes([2, 1, 0, 0, 1, *[0] * 11])  # pruning, version 1 of the header, version 1 of the coding
FILE_OVERHEAD = 320  # what two more tensors, two buffers and an operator take in a file, at most


def encode(weight: Int8s) -> tuple[bytes, bytes]:
    """The mask and the ancillary data of weights in the order of the file."""
    flat = weight.reshape(-1)
    return np.packbits(flat != 0).tobytes(), HEADER + flat[flat != 0].tobytes()


def decode(mask: bytes, ancillary: bytes, count: int) -> Int8s:
    """What the operator makes of both, flat."""
    assert ancillary[: len(HEADER)] == HEADER, "another coding"
    live = np.unpackbits(np.frombuffer(mask, np.uint8), count=count).astype(bool)
    flat = np.zeros(count, np.int8)
    flat[live] = np.frombuffer(ancillary, np.int8, offset=len(HEADER))
    return flat


def pays(node: Node) -> bool:
    """Whether a layer with weights is smaller coded, and the operator knows the axis of its scales."""
    weight = np.asarray(node.constants["weight"], np.int8)
    if node.op is Op.DEPTHWISE and weight.shape[0] == 1:
        return False
    mask, ancillary = encode(weight)
    return len(mask) + len(ancillary) + FILE_OVERHEAD < weight.size


def decoded_bytes(graph: Graph) -> dict[str, int]:
    """What each coded layer holds in the arena while it runs, by its name."""
    return {node.name: int(node.constants["weight"].size) for node in graph.nodes if node.op in WEIGHTED and pays(node)}
