"""What the C runtime's operators refuse, and how the planner treats those that take no bytes of their own."""

from __future__ import annotations

import numpy as np
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.ftm import abi, runtime_ops
from fedtiny_export.ftm.abi import Kernel, Status
from fedtiny_export.ftm.file import lacking, write_ftm
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import Graph, Node, Op, Quant, Tensor, Window
from networks import Builder, every_operator, samples, separable
from test_ftm import _at, _conv, _field, _hostile, _patched, seal


def model(*operators: tuple[Op, dict], shape: tuple[int, ...] = (6, 6, 4)) -> tuple[bytes, np.ndarray]:
    builder = Builder(shape, 0)
    for op, fields in operators:
        builder.add(op, **fields)
    graph = builder.int8()
    return write_ftm(graph, {}).data, samples(graph, 1)


def params(data: bytes, index: int, record: abi.Record, name: str) -> tuple[int, str]:
    op = abi.OP.unpack(data, abi.HEADER.unpack(data, 0)["ops"] + index * abi.OP.size)
    offset, code = _field(record, name)
    return op["params"] + offset, code


POOL = (Op.MAX_POOL, {"window": Window((3, 2), (2, 2), (1, 1, 0, 0))})
SOFTMAX = (Op.SOFTMAX, {"settings": {"beta": 1.0}})
PAD = (Op.PAD, {"constants": {"pads": np.array([[1, 1], [2, 0], [0, 3]])}})
RESIZE = (Op.RESIZE, {"settings": {"height": 9, "width": 12}})
TABLE = (Op.LOGISTIC, {})
SQUARE = (Op.MUL, {})


@pytest.mark.parametrize(
    ("operator", "record", "name", "value"),
    [
        (POOL, abi.POOL, "stride_height", 0),
        (POOL, abi.POOL, "stride_width", 0),
        (POOL, abi.POOL, "stride_width", 9),  # a window that begins outside the image
        (POOL, abi.POOL, "pad_top", 3),
        (POOL, abi.POOL, "kernel_width", 1),  # no higher than its padding
        (POOL, abi.POOL, "kernel_height", 0),
        (SOFTMAX, abi.SOFTMAX, "shift", 31),
        (SOFTMAX, abi.SOFTMAX, "shift", -1),
        (SOFTMAX, abi.SOFTMAX, "multiplier", -1),
        (SOFTMAX, abi.SOFTMAX, "lowest", 1),
        (SOFTMAX, abi.SOFTMAX, "lowest", -256),
        (PAD, abi.PLACE, "top", 3),
        (PAD, abi.PLACE, "left", 3),
        (PAD, abi.PLACE, "front", 4),
        (PAD, abi.PLACE, "top", 0xFFFF),
        (SQUARE, abi.MUL, "multiplier", -1),
        (SQUARE, abi.MUL, "shift", 15),
        (SQUARE, abi.MUL, "shift", -32),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(operator, record, name, value, host_runtime):
    op, fields = operator
    builder = Builder((6, 6, 4), 0)
    builder.add(op, *(("input", "input") if op is Op.MUL else ()), **fields)
    graph = builder.int8()
    data, inputs = write_ftm(graph, {}).data, samples(graph, 1)
    assert host_runtime.run(data, inputs)[0] == 0
    changed = seal(_patched(data, *params(data, 0, record, name), value))
    assert host_runtime.run(changed, inputs)[0] == Status.ERROR_FORMAT


@pytest.mark.parametrize(("operator", "record"), [(POOL, abi.POOL), (SQUARE, abi.MUL)])
def test_limits_that_are_the_wrong_way_round_are_refused(operator, record, host_runtime):
    builder = Builder((6, 6, 4), 0)
    builder.add(operator[0], *(("input", "input") if operator is SQUARE else ()), **operator[1])
    graph = builder.int8()
    data = _patched(write_ftm(graph, {}).data, *params(write_ftm(graph, {}).data, 0, record, "act_min"), 5)
    for high, status in ((5, 0), (4, Status.ERROR_FORMAT)):
        changed = seal(_patched(data, *params(data, 0, record, "act_max"), high))
        assert host_runtime.run(changed, samples(graph, 1))[0] == status


@pytest.mark.parametrize("operator", [POOL, SOFTMAX, PAD, RESIZE, TABLE], ids=lambda operator: operator[0].value)
@pytest.mark.parametrize(
    ("record", "name", "value"),
    [(abi.TENSOR, "channels", 3), (abi.TENSOR, "rows", 2), (abi.OP, "streamed", 1), (abi.OP, "params", 0xFFFFFFF0)],
)
def test_shapes_rows_and_offsets_that_do_not_fit_are_refused(operator, record, name, value, host_runtime):
    """One channel less in the output or 2 rows of it; an operator that says it hands rows on; parameters outside."""
    data, inputs = model(operator, operator)
    assert host_runtime.run(data, inputs)[0] == 0
    table, index = ("tensors", 1) if record is abi.TENSOR else ("ops", 0)
    changed = seal(_patched(data, *_at(data, table, index, record, name), value))
    assert host_runtime.run(changed, inputs)[0] == Status.ERROR_FORMAT


@pytest.mark.parametrize(("place", "value"), [(0, 6), (8, 0xFFFF), (9, 6), (20, 6)])
def test_a_row_or_column_that_is_not_there_is_refused(place, value, host_runtime):
    data, inputs = model(RESIZE)
    at = abi.OP.unpack(data, abi.HEADER.unpack(data, 0)["ops"])["params"] + 2 * place
    assert host_runtime.run(seal(_patched(data, at, "H", 5)), inputs)[0] == 0
    assert host_runtime.run(seal(_patched(data, at, "H", value)), inputs)[0] == Status.ERROR_FORMAT


@pytest.mark.parametrize(("forced", "groups"), [(Kernel.DEPTHWISE, 0), (Kernel.DEPTHWISE, 3), (Kernel.CONV_GAP, 4)])
def test_groups_that_do_not_fit_are_refused(forced, groups, host_runtime):
    builder = Builder((6, 6, 6), 0)
    builder.depthwise(1, (3, 3), low=0.0)
    graph = builder.int8()
    data = write_ftm(graph, {kernel: 0 if kernel is forced else 10**9 for kernel in Kernel}).data
    assert host_runtime.run(data, samples(graph, 1))[0] == 0
    changed = seal(_patched(data, *_conv(data, 0, "groups"), groups))
    assert host_runtime.run(changed, samples(graph, 1))[0] == Status.ERROR_FORMAT


@pytest.mark.parametrize(("groups", "status"), [(2, 0), (4, Status.ERROR_FORMAT), (3, Status.ERROR_FORMAT)])
def test_groups_divide_the_channels_on_both_sides(groups, status, host_runtime):
    """Of 6 inputs and 8 outputs."""
    builder = Builder((6, 6, 6), 0)
    builder.grouped(4, 2, (3, 3))
    graph = builder.int8()
    data = write_ftm(graph, {kernel: 0 if kernel is Kernel.CONV_RICE else 10**9 for kernel in Kernel}).data
    changed = seal(_patched(data, *_conv(data, 0, "groups"), groups))
    assert host_runtime.run(changed, samples(graph, 1))[0] == status


def test_a_dense_convolution_has_no_groups(host_runtime):
    builder = Builder((6, 6, 6), 0)
    builder.conv(6)
    graph = builder.int8()
    data = write_ftm(graph, {kernel: 10**9 * (kernel is not Kernel.CONV_DENSE) for kernel in Kernel}).data
    changed = seal(_patched(data, *_conv(data, 0, "groups"), 2))
    assert host_runtime.run(changed, samples(graph, 1))[0] == Status.ERROR_FORMAT


@pytest.mark.parametrize("name", ["separable", "every operator"])
def test_hostile_files_are_refused_or_run_inside_their_arena(name, host_runtime):
    graph = separable(0, (12, 12, 3), 4) if name == "separable" else every_operator(0, 6)
    data, random = write_ftm(graph, {}).data, np.random.default_rng(len(name))
    statuses = [host_runtime.run(_hostile(data, random), samples(graph, 1))[0] for _ in range(120)]
    assert min(statuses) < 0 <= max(statuses), "mutations that are too tame, or too wild"


@pytest.mark.parametrize(
    ("operator", "shape", "said"),
    [
        ((Op.TRANSPOSE, {"constants": {"order": np.array([1, 0, 2])}}), (4, 5, 2), "transpose"),
        (SOFTMAX, (3, 5), "softmax of a tensor with two sides"),
        (
            (Op.MAX_POOL, {"window": Window((256, 1), (1, 1))}),
            (300, 2, 1),
            "kernel, stride, padding or dilation over 255",
        ),
        (
            (Op.MAX_POOL, {"window": Window((1, 1), (1, 300))}),
            (2, 601, 1),
            "kernel, stride, padding or dilation over 255",
        ),
    ],
)
def test_what_is_lacking_is_named(operator, shape, said):
    builder = Builder(shape, 0)
    builder.add(operator[0], **operator[1])
    graph = builder.int8()
    assert lacking(graph) == f"operator t0: the sparse runtime has no kernel for {said}"
    with pytest.raises(FedtinyError, match="export with --runtime tflm"):
        write_ftm(graph, {})


def test_a_table_has_the_answers_for_0_to_127_first():
    tensors = {"x": Tensor("x", (4,), Quant(0.5, 10)), "y": Tensor("y", (4,), Quant(1.0, -20))}
    node = Node(Op.RELU, "relu", ("x",), "y", low=0.0, high=6.0)
    (table,) = runtime_ops.RUNTIME_OPS[Op.RELU].records(node, tensors)
    answers = np.frombuffer(table, np.int8)
    # 0 is -5.0, clamped to 0.0; 10 is 0.0; 14 is 2.0; 22 and above 6.0; -1 and below less than 0.0
    assert answers[[0, 10, 14, 22, 127, 128, 255]].tolist() == [-20, -20, -18, -14, -14, -20, -20]


def test_joining_takes_one_operator_for_each_input_and_a_view_none():
    builder = Builder((2, 3, 4), 0)
    builder.add(Op.CONCAT, "input", "input", "input", settings={"axis": 1})
    builder.add(Op.RESHAPE, constants={"shape": np.array([72])})
    builder.dense(3)
    graph = builder.int8()
    data = write_ftm(graph, {}).data
    header = abi.HEADER.unpack(data, 0)
    places = [abi.PLACE.unpack(data, params(data, index, abi.PLACE, "top")[0]) for index in range(3)]
    assert header["op_count"] == 4
    assert [place["left"] for place in places] == [0, 3, 6]
    assert not any(place["fill"] for place in places)


def test_a_view_keeps_the_bytes_that_it_is_of(host_runtime):
    """What follows takes over its input's bytes where it can: not while they are read under another name."""
    builder = Builder((4, 4, 4), 0)
    made = builder.conv(4, low=None)
    view = builder.add(Op.RESHAPE, made, constants={"shape": np.array([64])})
    table = builder.add(Op.LOGISTIC, made)
    flat = builder.add(Op.RESHAPE, table, constants={"shape": np.array([64])})
    builder.add(Op.ADD, view, flat)
    graph: Graph = builder.int8()
    written, inputs = write_ftm(graph, {}), samples(graph, 20)
    offsets = written.plan.tensor_offsets()
    assert offsets[made] == offsets[view] != offsets[table] == offsets[flat]
    assert host_runtime.run(written.data, inputs)[2] == reference.run(graph, inputs).tobytes()
