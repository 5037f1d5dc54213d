"""int8 Graph -> `.ftm` bytes, and back to the parts that can be read back.

The file is the only thing Python hands to the runtime; docs/formats.md explains it, abi.py lays it out. Weights
are packed per layer in the encoding that makes model and linked kernels smallest together.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import abi, sparse
from .abi import MAX_KERNEL_HEIGHT, Kernel
from .errors import FedtinyError
from .fixed_point import activation_limits, add_numbers, conv_multipliers, mean_numbers
from .ir import Graph, Node, Op
from .layout import scratch_bytes
from .plan import Plan, make_plan, needed_kernels
from .sparse import Packed

KERNEL_OPS = frozenset({Op.CONV, Op.DENSE, Op.ADD, Op.MEAN})
MAX_COUNT = 0xFFFF
MAX_STREAM = SPARSE_ARENA = 1 << 24
MAX_PIXELS = 1 << 22


@dataclass(frozen=True, slots=True)
class Ftm:
    """A finished file with what the report says about it. `ledger` adds up to len(data)."""

    data: bytes
    plan: Plan
    packed: Mapping[str, Packed]
    kernels: tuple[Kernel, ...]
    ledger: tuple[tuple[str, int], ...]


def lacking(graph: Graph) -> str | None:
    """What the sparse runtime has no kernel for, named with its operator; None where it has all."""
    for node in graph.nodes:
        shapes = [graph.tensors[name].shape for name in node.inputs]
        reasons = [
            (node.op not in KERNEL_OPS, f"{node.op}"),
            (node.op is Op.ADD and len(set(shapes)) > 1, "addition of two shapes"),
            (node.op is Op.CONV and node.constants["weight"].shape[-1] != shapes[0][-1], "grouped convolution"),
            (node.op is Op.CONV and node.window.dilation != (1, 1), "dilated convolution"),
            (node.op is Op.CONV and node.window.kernel[0] > MAX_KERNEL_HEIGHT, "kernel over 16 rows high"),
        ]
        for lacks, what in reasons:
            if lacks:
                return f"operator {node.name}: the sparse runtime has no kernel for {what}"
    return None


def write_ftm(graph: Graph, code_bytes: dict[Kernel, int]) -> Ftm:
    """Choose encodings, plan the arena, lay the file out. `code_bytes` is what linking a kernel costs."""
    reason = lacking(graph)
    if reason is not None:
        raise FedtinyError(f"{reason}: export with --runtime tflm, or leave that operator out of the network")
    layers = [node for node in graph.nodes if node.op in (Op.CONV, Op.DENSE)]
    weights = [np.asarray(node.constants["weight"], np.int8) for node in layers]
    chosen = sparse.choose(weights, code_bytes)
    packed = {
        node.name: sparse.pack(weight, kernel) for node, weight, kernel in zip(layers, weights, chosen, strict=True)
    }
    plan = make_plan(graph, packed)
    graph = plan.graph
    _check_limits(graph, plan, packed)
    writer = _Writer(graph, plan, packed)
    return Ftm(writer.finish(), plan, packed, tuple(sorted(needed_kernels(packed, graph))), tuple(writer.ledger))


def _check_limits(graph: Graph, plan: Plan, packed: Mapping[str, Packed]) -> None:
    """What a file cannot say and a runtime would refuse; see docs/formats.md."""
    if len(graph.nodes) > MAX_COUNT or 2 * len(graph.tensors) > MAX_COUNT:
        raise FedtinyError(
            f"the network has {len(graph.nodes):,} operators; a .ftm file holds up to {MAX_COUNT // 2:,}"
        )
    if plan.arena_bytes >= SPARSE_ARENA and any(layer.max_taps for layer in packed.values()):
        raise FedtinyError(f"the arena needs {plan.arena_bytes:,} bytes; sparse layers reach {SPARSE_ARENA - 1:,}")
    for node in graph.nodes:
        if node.name in packed and len(packed[node.name].data) >= MAX_STREAM:
            raise FedtinyError(f"operator {node.name}: its weights pack into {MAX_STREAM:,} bytes or more")
        if node.op is Op.MEAN and np.prod(graph.tensors[node.inputs[0]].image[:2]) > MAX_PIXELS:
            raise FedtinyError(f"operator {node.name}: a mean over more than {MAX_PIXELS:,} pixels")


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
        self.ledger: list[tuple[str, int]] = []
        self.blocks: list[bytes] = []
        self.position = 0

    def _add_flat_view(self, name: str) -> None:
        """A dense layer sees its input as one pixel: the same bytes under a second record."""
        height, width, _ = self.graph.tensors[name].image
        if height * width > 1 and name not in self.flat:
            self.flat[name] = len(self.records)
            self.records.append((name, (1, 1, self.graph.tensors[name].elements)))

    def append(self, owner: str, data: bytes) -> int:
        """Add a block at a word boundary and return its offset."""
        padded = data + bytes(-len(data) % 4)
        offset = self.position
        self.blocks.append(padded)
        self.position += len(padded)
        self.ledger.append((owner, len(padded)))
        return offset

    def finish(self) -> bytes:
        """Header, tensors, operators, then each operator's parameters and weights."""
        graph = self.graph
        tensors = abi.HEADER.size
        ops = tensors + abi.TENSOR.size * len(self.records)
        self.position = ops + abi.OP.size * len(graph.nodes)
        params = [self._params(node) for node in graph.nodes]
        table = b"".join(self._tensor(name, image) for name, image in self.records)
        table += b"".join(self._op(i, params[i]) for i in range(len(graph.nodes)))
        self.ledger[:0] = [("header", abi.HEADER.size), ("tensors and operators", len(table))]
        body = table + b"".join(self.blocks)
        return self._header(tensors, ops, body) + body

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
            "op_count": len(self.graph.nodes),
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

    def _op(self, index: int, params: int) -> bytes:
        node = self.graph.nodes[index]
        kernel = {Op.ADD: Kernel.ADD, Op.MEAN: Kernel.MEAN}.get(node.op)
        return abi.OP.pack(
            kernel=self.packed[node.name].kernel if kernel is None else kernel,
            streamed=int(node.name in self.plan.streamed),
            input=self._input(node),
            input2=self.index[node.inputs[1]] if len(node.inputs) > 1 else abi.NO_TENSOR,
            output=self.index[node.output],
            params=params,
            scratch=self.scratch.get(node.name, 0),
            scratch_bytes=scratch_bytes(self.graph, node, self.packed, self.plan.rows.get(node.name, 1)),
        )

    def _input(self, node: Node) -> int:
        name = node.inputs[0]
        return self.flat.get(name, self.index[name]) if node.op is Op.DENSE else self.index[name]

    def _params(self, node: Node) -> int:
        if node.op is Op.ADD:
            return self._add(node)
        if node.op is Op.MEAN:
            multiplier, shift = mean_numbers(node, self.graph.tensors)
            record = abi.MEAN.pack(multiplier=multiplier, shift=shift, reserved=0, reserved2=0)
            return self.append(node.name, record)
        return self._conv(node)

    def _add(self, node: Node) -> int:
        numbers = add_numbers(node, self.graph.tensors)
        low, high = activation_limits(node, self.graph.tensors[node.output])
        record = abi.ADD.pack(
            multiplier1=numbers.first[0],
            shift1=numbers.first[1],
            multiplier2=numbers.second[0],
            shift2=numbers.second[1],
            multiplier_out=numbers.output[0],
            shift_out=numbers.output[1],
            act_min=low,
            act_max=high,
            reserved=0,
            reserved2=0,
        )
        return self.append(node.name, record)

    def _conv(self, node: Node) -> int:
        packed = self.packed[node.name]
        multipliers, shifts = conv_multipliers(node, self.graph.tensors)
        low, high = activation_limits(node, self.graph.tensors[node.output])
        channel_bias = self.append(f"{node.name}.bias", folded_bias(self.graph, node).astype("<i4").tobytes())
        channel_multiplier = self.append(f"{node.name}.multiplier", multipliers.astype("<i4").tobytes())
        channel_shift = self.append(f"{node.name}.shift", shifts.astype(np.int8).tobytes())
        weights = self.append(f"{node.name}.weight", packed.data)
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
            reserved=0,
            bias=channel_bias,
            multiplier=channel_multiplier,
            shift=channel_shift,
            weights=weights,
            weight_bytes=len(packed.data),
        )
        return self.append(node.name, record)

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
    found = {}
    for index in range(header["op_count"]):
        op = abi.OP.unpack(data, header["ops"] + index * abi.OP.size)
        if op["kernel"] in (Kernel.ADD, Kernel.MEAN):
            continue
        source, output = (
            abi.TENSOR.unpack(data, header["tensors"] + op[key] * abi.TENSOR.size) for key in ("input", "output")
        )
        conv = abi.CONV.unpack(data, op["params"])
        fan_in = source["channels"] * conv["kernel_height"] * conv["kernel_width"]
        stream = data[conv["weights"] : conv["weights"] + conv["weight_bytes"]]
        flat = sparse.encoding_of(Kernel(op["kernel"])).unpack(stream, output["channels"] * fan_in)
        found[index] = flat.reshape(output["channels"], fan_in)
    return found
