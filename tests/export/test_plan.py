"""The arena plan: nothing alive together overlaps, and scratch is as large as the runtime needs."""

from __future__ import annotations

import itertools

from fedtiny_export.ftm import write_ftm
from fedtiny_export.layout import Buffer, place
from fedtiny_export.plan import make_plan
from hypothesis import given
from hypothesis import strategies as st
from networks import residual

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
