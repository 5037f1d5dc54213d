"""int8 Graph -> `.ftm` bytes, and back to the parts that can be read back.

The file is the only thing Python hands to the runtime; docs/formats.md explains it, abi.py lays it out. Weights
are packed per layer in the encoding that makes model and linked kernels smallest together.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import FedtinyError
from ..graph.fixed_point import activation_limits, conv_multipliers
from ..graph.ir import WEIGHTED, WINDOWED, Graph, Node, Op
from . import abi, sparse
from .abi import MAX_KERNEL_HEIGHT, Kernel
from .layout import CONVOLUTIONS, VIEWS, groups, is_vector, scratch_bytes
from .plan import Plan, make_plan, needed_kernels
from .runtime_ops import RUNTIME_OPS
from .sparse import Packed

MAX_COUNT, MAX_BYTE = 0xFFFF, 0xFF
MAX_STREAM = SPARSE_ARENA = 1 << 24


@dataclass(frozen=True, slots=True)
class Ftm:
    """A finished file with what the report says about it.

    `ledger` has (owner, part, bytes) for every byte: its sizes add up to len(data).
    """

    data: bytes
    plan: Plan
    packed: Mapping[str, Packed]
    kernels: tuple[Kernel, ...]
    ledger: tuple[tuple[str, str, int], ...]


def lacking(graph: Graph) -> str | None:
    """What the sparse runtime has no kernel for, named with its operator; None where it has all."""
    for node in graph.nodes:
        reason = _lacks(graph, node)
        if reason is not None:
            return f"operator {node.name}: the sparse runtime has no kernel for {reason}"
    return None


def _lacks(graph: Graph, node: Node) -> str | None:
    if node.op in RUNTIME_OPS:
        reason = RUNTIME_OPS[node.op].lacks(node, graph.tensors)
        if reason is not None:
            return reason
    elif node.op not in (*WEIGHTED, *VIEWS):
        return f"{node.op}"
    if node.op in CONVOLUTIONS and node.window.kernel[0] > MAX_KERNEL_HEIGHT:
        return f"kernel over {MAX_KERNEL_HEIGHT} rows high"
    window = node.window
    if node.op in WINDOWED and max(*window.kernel, *window.stride, *window.pads, *window.dilation) > MAX_BYTE:
        return f"kernel, stride, padding or dilation over {MAX_BYTE}"
    return None


def write_ftm(graph: Graph, code_bytes: sparse.Code) -> Ftm:
    """Choose encodings, plan the arena, lay the file out. `code_bytes` is what linking a kernel costs."""
    return lay_out(graph, encodings(graph, code_bytes))


def encodings(graph: Graph, code_bytes: sparse.Code) -> tuple[Kernel, ...]:
    """The kernel of every layer that has weights; a network that the runtime cannot run is refused."""
    reason = lacking(graph)
    if reason is not None:
        raise FedtinyError(f"{reason}: export with --runtime tflm, or leave that operator out of the network")
    layers = [(_weight(node), kernels_for(graph, node)) for node in graph.nodes if node.op in WEIGHTED]
    return tuple(sparse.choose(layers, code_bytes))


def lay_out(graph: Graph, chosen: Sequence[Kernel]) -> Ftm:
    """Plan the arena and lay the file out, with the kernel of every layer that has weights."""
    layers = [node for node in graph.nodes if node.op in WEIGHTED]
    packed = {node.name: sparse.pack(_weight(node), kernel) for node, kernel in zip(layers, chosen, strict=True)}
    plan = make_plan(graph, packed)
    graph = plan.graph
    _check_limits(graph, plan, packed)
    writer = _Writer(graph, plan, packed)
    return Ftm(writer.finish(), plan, packed, tuple(sorted(needed_kernels(packed, graph))), tuple(writer.ledger))


def _weight(node: Node) -> NDArray[np.int8]:
    return np.asarray(node.constants["weight"], np.int8)


def runs(graph: Graph) -> int:
    """How many times a kernel is run: joining takes one for each input, a view none."""
    return sum(steps(node) for node in graph.nodes)


def steps(node: Node) -> int:
    """How many of them are one node's."""
    return 0 if node.op in VIEWS else len(node.inputs) if node.op is Op.CONCAT else 1


def kernels_for(graph: Graph, node: Node) -> tuple[Kernel, ...]:
    """The kernels that can run a layer: dense ones know no groups, or know nothing else."""
    if groups(graph, node) == 1:
        return sparse.VECTORS if is_vector(graph, node) else sparse.CONVS
    return (*sparse.SPARSE, Kernel.DEPTHWISE) if node.constants["weight"].shape[-1] == 1 else sparse.SPARSE


def _check_limits(graph: Graph, plan: Plan, packed: Mapping[str, Packed]) -> None:
    """What a file cannot say and a runtime would refuse; see docs/formats.md."""
    if runs(graph) > MAX_COUNT or 2 * len(graph.tensors) > MAX_COUNT:
        raise FedtinyError(
            f"the network has {len(graph.nodes):,} operators; a .ftm file holds up to {MAX_COUNT // 2:,}"
        )
    if plan.arena_bytes >= SPARSE_ARENA and any(layer.max_taps for layer in packed.values()):
        raise FedtinyError(f"the arena needs {plan.arena_bytes:,} bytes; sparse layers reach {SPARSE_ARENA - 1:,}")
    for node in graph.nodes:
        if node.name in packed and len(packed[node.name].data) >= MAX_STREAM:
            raise FedtinyError(f"operator {node.name}: its weights pack into {MAX_STREAM:,} bytes or more")


class _Writer:
    """Appends blocks to the file and remembers who each byte belongs to."""

    def __init__(self, graph: Graph, plan: Plan, packed: Mapping[str, Packed]) -> None:
        self.graph, self.plan, self.packed = graph, plan, packed
        self.records = [(name, tensor.image) for name, tensor in graph.tensors.items()]
        self.index = {name: i for i, name in enumerate(graph.tensors)}
        self.flat: dict[str, int] = {}  # tensors that a dense layer sees as one pixel
        self.offsets, self.scratch, self.held = plan.tensor_offsets(), plan.scratch_offsets(), plan.held_rows()
        for node in graph.nodes:
            if node.op is Op.DENSE:
                self._add_flat_view(node.inputs[0])
        self.ledger: list[tuple[str, str, int]] = []
        self.blocks: list[bytes] = []
        self.position = 0

    def _add_flat_view(self, name: str) -> None:
        """A dense layer sees its input as one pixel: the same bytes under a second record."""
        height, width, _ = self.graph.tensors[name].image
        if height * width > 1 and name not in self.flat:
            self.flat[name] = len(self.records)
            self.records.append((name, (1, 1, self.graph.tensors[name].elements)))

    def append(self, owner: str, part: str, data: bytes) -> int:
        """Add a block at a word boundary and return its offset."""
        padded = data + bytes(-len(data) % 4)
        offset = self.position
        self.blocks.append(padded)
        self.position += len(padded)
        self.ledger += [(owner, part, len(data)), (owner, "padding", len(padded) - len(data))]
        return offset

    def finish(self) -> bytes:
        """Header, tensors, operators, then each operator's parameters and weights."""
        graph = self.graph
        tensors = abi.HEADER.size
        ops = tensors + abi.TENSOR.size * len(self.records)
        self.position = ops + abi.OP.size * runs(graph)
        table = b"".join(self._tensor(name, image) for name, image in self.records)
        table += b"".join(record for node in graph.nodes for record in self._steps(node))
        self.ledger[:0] = [("the file", "header", abi.HEADER.size), *self._record_rows()]
        body = table + b"".join(self.blocks)
        return self._header(tensors, ops, body) + body

    def _record_rows(self) -> Iterator[tuple[str, str, int]]:
        for name, _ in self.records:
            yield name, "tensor record", abi.TENSOR.size
        for node in self.graph.nodes:
            yield node.name, "operator record", abi.OP.size * steps(node)

    def _header(self, tensors: int, ops: int, body: bytes) -> bytes:
        kernels = needed_kernels(self.packed, self.graph)
        fields = {
            "magic": abi.MAGIC,
            "version": abi.VERSION,
            "header_bytes": abi.HEADER.size,
            "total_bytes": abi.HEADER.size + len(body),
            "crc32": 0,
            "kernels": sum(1 << kernel for kernel in kernels),
            "arena_bytes": self.plan.arena_bytes,
            "tensor_count": len(self.records),
            "op_count": runs(self.graph),
            "input": self.index[self.graph.input],
            "output": self.index[self.graph.output],
            "tensors": tensors,
            "ops": ops,
        }
        fields["crc32"] = zlib.crc32(abi.HEADER.pack(**fields)[abi.CRC_FROM :] + body)
        return abi.HEADER.pack(**fields)

    def _tensor(self, name: str, image: tuple[int, int, int]) -> bytes:
        tensor = self.graph.tensors[name]
        assert tensor.quant is not None
        height, width, channels = image
        return abi.TENSOR.pack(
            offset=self.offsets[name],
            height=height,
            width=width,
            channels=channels,
            zero_point=tensor.quant.zero_point,
            scale=tensor.quant.scale,
            rows=self.held.get(name, height),
            reserved=0,
        )

    def _op(self, node: Node, kernel: Kernel, inputs: Sequence[str], params: int) -> bytes:
        return abi.OP.pack(
            kernel=kernel,
            streamed=int(node.name in self.plan.streamed),
            input=self.flat.get(inputs[0], self.index[inputs[0]]) if node.op is Op.DENSE else self.index[inputs[0]],
            input2=self.index[inputs[1]] if len(inputs) > 1 else abi.NO_TENSOR,
            output=self.index[node.output],
            params=params,
            scratch=self.scratch.get(node.name, 0),
            scratch_bytes=scratch_bytes(self.graph, node, self.packed, self.plan.rows.get(node.name, 1)),
        )

    def _steps(self, node: Node) -> Iterator[bytes]:
        """The operator records of a node: one each time a kernel runs."""
        if node.op in VIEWS:
            return
        if node.op in WEIGHTED:
            yield self._op(node, self.packed[node.name].kernel, node.inputs, self._conv(node))
            return
        kernel = RUNTIME_OPS[node.op].kernel
        part = "table" if kernel in (Kernel.TABLE, Kernel.RESIZE) else "parameters"
        for index, record in enumerate(RUNTIME_OPS[node.op].records(node, self.graph.tensors)):
            inputs = node.inputs[index : index + 1] if node.op is Op.CONCAT else node.inputs
            yield self._op(node, kernel, inputs, self.append(node.name, part, record))

    def _conv(self, node: Node) -> int:
        packed = self.packed[node.name]
        multipliers, shifts = conv_multipliers(node, self.graph.tensors)
        low, high = activation_limits(node, self.graph.tensors[node.output])
        channel_bias = self.append(node.name, "biases", folded_bias(self.graph, node).astype("<i4").tobytes())
        channel_multiplier = self.append(node.name, "multipliers", multipliers.astype("<i4").tobytes())
        channel_shift = self.append(node.name, "shifts", shifts.astype(np.int8).tobytes())
        weights = self.append(node.name, "weights", packed.data)
        window, dense = node.window, node.op is Op.DENSE
        record = abi.CONV.pack(
            kernel_height=1 if dense else window.kernel[0],
            kernel_width=1 if dense else window.kernel[1],
            stride_height=window.stride[0],
            stride_width=window.stride[1],
            pad_top=window.pads[0],
            pad_left=window.pads[1],
            pad_right=window.pads[3],
            pad_value=self._pad_value(node),
            act_min=low,
            act_max=high,
            max_taps=packed.max_taps,
            rows=self.plan.rows.get(node.name, 1),
            groups=groups(self.graph, node),
            dilation_height=window.dilation[0],
            dilation_width=window.dilation[1],
            reserved=0,
            bias=channel_bias,
            multiplier=channel_multiplier,
            shift=channel_shift,
            weights=weights,
            weight_bytes=len(packed.data),
        )
        return self.append(node.name, "parameters", record)

    def _pad_value(self, node: Node) -> int:
        quant = self.graph.tensors[node.inputs[0]].quant
        assert quant is not None
        return quant.zero_point + int(node.pad_value)


def folded_bias(graph: Graph, node: Node) -> NDArray[np.int64]:
    """The bias less zero_point times the channel's weights: kernels then multiply raw int8 inputs."""
    quant = graph.tensors[node.inputs[0]].quant
    assert quant is not None
    weight = node.constants["weight"].astype(np.int64)
    folded: NDArray[np.int64] = node.constants["bias"].astype(np.int64) - quant.zero_point * weight.reshape(
        weight.shape[0], -1
    ).sum(axis=1)
    if np.any(np.abs(folded) >= 2**31):
        raise FedtinyError(f"operator {node.name}: a bias does not fit 32 bits")
    return folded


def read_weights(data: bytes) -> dict[int, NDArray[np.int8]]:
    """Decode the weights of every convolution of a valid file, by operator index: proof that packing lost none."""
    header = abi.HEADER.unpack(data, 0)
    found, encoded = {}, {encoding.kernel for encoding in sparse.ENCODINGS}
    for index in range(header["op_count"]):
        op = abi.OP.unpack(data, header["ops"] + index * abi.OP.size)
        if Kernel(op["kernel"]) not in encoded:
            continue
        source, output = (
            abi.TENSOR.unpack(data, header["tensors"] + op[key] * abi.TENSOR.size) for key in ("input", "output")
        )
        conv = abi.CONV.unpack(data, op["params"])
        fan_in = source["channels"] // conv["groups"] * conv["kernel_height"] * conv["kernel_width"]
        stream = data[conv["weights"] : conv["weights"] + conv["weight_bytes"]]
        flat = sparse.encoding_of(Kernel(op["kernel"])).unpack(stream, output["channels"] * fan_in)
        found[index] = flat.reshape(output["channels"], fan_in)
    return found
