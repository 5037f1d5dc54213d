"""The arena plan: nothing alive together overlaps, and scratch is as large as the runtime needs."""

from __future__ import annotations

import itertools

import pytest
from fedtiny_export.ftm.abi import Kernel
from fedtiny_export.ftm.file import write_ftm
from fedtiny_export.ftm.layout import Buffer, can_take_over, place
from fedtiny_export.ftm.plan import make_plan
from fedtiny_export.graph import reference
from fedtiny_export.graph.flat import can_lie_flat, laid_flat
from fedtiny_export.graph.ir import Graph, Op, Window
from hypothesis import given
from hypothesis import strategies as st
from networks import CONV_KERNELS, Builder, ad01, ic01, residual, streamed

BUFFERS = st.lists(
    st.tuples(st.integers(1, 500), st.integers(0, 9), st.integers(0, 4)).map(lambda t: (t[0], t[1], t[1] + t[2])),
    min_size=1,
    max_size=12,
)


@given(BUFFERS)
def test_buffers_alive_together_never_overlap(shapes):
    buffers = [Buffer(str(i), size, first, last) for i, (size, first, last) in enumerate(shapes)]
    offsets = place([(buffer,) for buffer in buffers])
    for (a, start_a), (b, start_b) in itertools.combinations(zip(buffers, offsets, strict=True), 2):
        if a.first <= b.last and b.first <= a.last:
            assert start_a + a.size <= start_b or start_b + b.size <= start_a
    assert all(offset % 4 == 0 for offset in offsets)


def test_a_residual_network_needs_what_its_widest_operator_needs():
    written = write_ftm(residual(0, 0.2), {})
    plan = make_plan(residual(0, 0.2), written.packed)
    assert plan.lower_bound <= plan.arena_bytes <= plan.lower_bound + 64


def test_one_byte_less_of_arena_is_refused(host_runtime):
    """host.c binds one byte less than ft_arena_size first and expects a refusal; the sanitizer guards the rest."""
    from networks import samples

    graph = residual(1, 0.2)
    assert host_runtime.run(write_ftm(graph, {}).data, samples(graph, 2))[0] == 0


def test_mlperf_s_network_needs_28_608_bytes():
    """By hand: while the second block's first convolution runs, its input (16,384) becomes its output, the shortcut
    (8,192) waits, and its window of 3 rows of 33 columns of 8 channel pairs (3,168) and 72 taps (864) are there."""
    dense = write_ftm(ic01(1.0), {kernel: kernel is not Kernel.CONV_DENSE and 10**9 for kernel in Kernel})
    assert dense.plan.arena_bytes == dense.plan.lower_bound == 16_384 + 8_192 + 3_168 + 864
    assert dense.plan.streamed == {"t1", "t2"}


@pytest.mark.parametrize("forced", [Kernel.VECTOR, *CONV_KERNELS])
def test_dense_layers_need_their_input_and_output_only(forced):
    """640 numbers become 128, and 128 become 640: no encoding takes scratch."""
    written = write_ftm(ad01(0.1), {kernel: 0 if kernel is forced else 10**9 for kernel in Kernel})
    assert written.plan.arena_bytes == 640 + 128
    assert written.plan.scratch_offsets() == {}


def _chain(*convs: tuple[int, int, int], shape=(8, 8, 4), seed=0):
    """Convolutions given as (channels, kernel, stride)."""
    builder = Builder(shape, seed)
    for channels, kernel, stride in convs:
        pad = kernel // 2
        builder.conv(channels, kernel, stride, (pad, pad, pad, pad))
    return builder.int8()


@pytest.mark.parametrize(
    ("conv", "rows", "possible"),
    [
        ((4, 3, 1), 1, True),  # row y is written when rows up to y + 1 are in the window
        ((8, 3, 1), 1, False),  # row 1 would lie over rows 2 and 3, and row 3 is still to come
        ((8, 3, 1), 8, True),  # everything is in the window before anything is written
        ((8, 3, 2), 1, True),  # half as many rows of twice the channels: as many bytes
        ((9, 1, 1), 1, False),
        ((4, 1, 1), 2, True),
    ],
)
def test_an_output_takes_over_its_input_only_behind_what_was_read(conv, rows, possible):
    graph = _chain(conv)
    assert can_take_over(graph, graph.nodes, {"t0": rows}, "input") is possible


def test_a_layer_that_reads_its_input_in_place_does_not_write_over_it():
    builder = Builder((1, 1, 8), 0)
    builder.conv(8, 1)
    graph = builder.int8()
    assert not can_take_over(graph, graph.nodes, {}, "input")


@pytest.mark.parametrize("forced", [Kernel.CONV_DENSE, Kernel.CONV_GAP])
@pytest.mark.parametrize("shape", [(16, 16, 3), (19, 9, 2), (25, 21, 4)])
def test_rows_handed_on_give_the_same_outputs(forced, shape, host_runtime):
    from networks import samples

    for seed in range(3):
        graph = streamed(seed, 0.4, shape)
        written = write_ftm(graph, {kernel: 0 if kernel is forced else 10**9 for kernel in Kernel})
        inputs = samples(graph, 10, seed)
        assert host_runtime.run(written.data, inputs)[2] == reference.run(graph, inputs).tobytes()
        assert written.plan.streamed


@pytest.mark.parametrize("forced", [Kernel.CONV_DENSE, Kernel.CONV_RICE])
def test_rows_are_handed_on_to_a_dilated_convolution(forced, host_runtime):
    from networks import samples

    for seed in range(3):
        builder = Builder((32, 32, 3), seed, 0.4)
        first = builder.conv(8)
        for dilation in (2, 3):
            constants = builder._weights(8, 3, 3, 8)
            builder.add(Op.CONV, constants=constants, window=Window((3, 3), (1, 1), (dilation,) * 4, (dilation,) * 2))
        builder.add(Op.ADD, builder.last, first, low=0.0)
        builder.add(Op.MEAN)
        builder.dense(5)
        graph = builder.int8()
        written = write_ftm(graph, {kernel: 0 if kernel is forced else 10**9 for kernel in Kernel})
        inputs = samples(graph, 10, seed)
        assert host_runtime.run(written.data, inputs)[2] == reference.run(graph, inputs).tobytes()
        assert written.plan.streamed == {"t1", "t2"}


def test_the_order_is_changed_where_that_saves_memory():
    plan = write_ftm(ic01(1.0), {}).plan
    order = [node.name for node in plan.graph.nodes]
    assert order.index("t6") < order.index("t4"), "the shortcut runs while its input is still there"
    assert sorted(order) == sorted(node.name for node in ic01(1.0).nodes)
    assert {node.op for node in plan.graph.nodes} == {Op.CONV, Op.ADD, Op.MEAN, Op.DENSE}


def pointwise(seed: int, shape=(10, 5, 8)) -> Graph:
    """A 1x1 convolution between two that look around, and one with a stride."""
    builder = Builder(shape, seed)
    builder.conv(8)
    builder.conv(12, 1)
    builder.conv(8)
    builder.conv(6, 1, stride=2, pads=(0, 0, 0, 0))
    builder.dense(5)
    return builder.int8()


@pytest.mark.parametrize("forced", [Kernel.CONV_DENSE, Kernel.CONV_RICE])
def test_a_convolution_of_one_pixel_takes_rows_that_lie_end_to_end_as_one(forced, host_runtime):
    from networks import samples

    for seed in range(3):
        graph = pointwise(seed)
        written = write_ftm(graph, {kernel: 0 if kernel is forced else 10**9 for kernel in Kernel})
        after = {node.name: node for node in written.plan.graph.nodes}
        assert written.plan.graph.tensors[after["t1"].inputs[0]].shape == (1, 50, 8)
        assert written.plan.graph.tensors[after["t3"].inputs[0]].shape == (10, 5, 8), "its stride sees the rows"
        assert [node.name for node in written.plan.graph.nodes if node.op is Op.CONV] == ["t0", "t1", "t2", "t3"]
        inputs = samples(graph, 10, seed)
        assert host_runtime.run(written.data, inputs)[2] == reference.run(graph, inputs).tobytes()


def test_laying_flat_takes_names_that_nothing_has():
    graph = pointwise(0)
    node = next(node for node in graph.nodes if node.name == "t1")
    once = laid_flat(graph, node, 5)
    again = laid_flat(once, next(node for node in once.nodes if node.name == "t1"), 2)
    assert len({node.name for node in again.nodes}) == len(again.nodes) == len(graph.nodes) + 4
    assert once.tensors[next(node for node in once.nodes if node.name == "t1").output].shape == (2, 25, 12)
    assert not can_lie_flat(graph, graph.nodes[0])
    assert not can_lie_flat(graph, graph.nodes[3])
    padded = Builder((4, 5, 2), 0)
    padded.conv(3, 1, pads=(1, 1, 1, 1))
    assert not can_lie_flat(padded.int8(), padded.int8().nodes[0])
