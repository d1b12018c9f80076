"""Where values live: views, concats in place, halos, lifetimes."""

from __future__ import annotations

import numpy as np
import pytest
from tests.passes.graphs import Builder, feeds_of
from tests.planner.graphs import Sketch
from tests.planner.simulate import simulate

from enginesmith.ir import dims, reference
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import AttentionAttrs, ConcatAttrs
from enginesmith.passes.channels_last import assign_channels_last
from enginesmith.passes.layout import assign_layouts
from enginesmith.plan.target import Target
from enginesmith.planner.storage import ClearHalo, Move, StoragePlan, place

BLOCK = 16
N = dims.symbol("n")


def planned(graph: Graph) -> StoragePlan:
    assign_layouts(graph, BLOCK)
    return place(graph)


def names(plan: StoragePlan) -> list[str]:
    kinds = {Move: "move", ClearHalo: "halo"}
    return [s.op if isinstance(s, Node) else kinds[type(s)] for s in plan.steps]


def test_conv_reads_a_plain_input_and_clears_the_halo_of_its_reader() -> None:
    s = Sketch(N, 3, 32, 32)
    a = s.conv(s.x, 32, 3)
    graph = s.done(s.conv(a, 16, 3))
    plan = planned(graph)
    assert names(plan) == ["halo", "conv", "conv", "layout"]
    storage = plan.views[id(a)].storage
    assert storage.halo == (1, 1, 1, 1)
    assert dims.equal(storage.size(), N * 2 * 34 * 34 * 16 * 4)
    assert dims.equal(storage.origin(), (34 + 1) * 16)


def test_concat_inputs_are_written_in_place() -> None:
    s = Sketch(N, 64, 8, 8)
    a, b = s.conv(s.x, 32), s.conv(s.x, 48)
    y = s.concat(1, a, b)
    plan = planned(s.done(s.conv(y, 16)))
    assert "move" not in names(plan)
    first, second = plan.views[id(a)], plan.views[id(b)]
    assert first.storage is second.storage is plan.views[id(y)].storage
    assert first.offset == 0 and second.offset == 32 * 64


def test_concat_offsets_follow_a_halo() -> None:
    s = Sketch(N, 64, 8, 8)
    a, b = s.conv(s.x, 32), s.conv(s.x, 48)
    plan = planned(s.done(s.conv(s.concat(1, a, b), 16, 3)))
    assert plan.views[id(b)].offset == 32 * 10 * 10
    assert plan.views[id(b)].strides[2] == (10, BLOCK)


def test_misaligned_channels_are_copied_in_order() -> None:
    s = Sketch(1, 64, 8, 8)
    a, b = s.conv(s.x, 24), s.conv(s.x, 24)
    plan = planned(s.done(s.conv(s.concat(1, a, b), 16)))
    moves = [step for step in plan.steps if isinstance(step, Move)]
    assert [m.channel for m in moves] == [0, 24]


def test_growing_concats_share_one_memory() -> None:
    """DenseNet: each concat's inputs are the beginning of the next one's."""
    s = Sketch(N, 64, 8, 8)
    features = [s.conv(s.x, 32)]
    for _ in range(3):
        whole = s.concat(1, *features) if len(features) > 1 else features[0]
        features.append(s.conv(s.relu(whole), 32))
    plan = planned(s.done(s.conv(s.concat(1, *features), 16)))
    assert "move" not in names(plan)
    assert len({id(plan.views[id(f)].storage) for f in features}) == 1


def test_value_read_by_two_concats_is_copied_into_one() -> None:
    s = Sketch(N, 64, 8, 8)
    a, b, c = s.conv(s.x, 32), s.conv(s.x, 32), s.conv(s.x, 32)
    y = s.add(s.concat(1, a, b), s.concat(1, c, a))
    plan = planned(s.done(s.conv(y, 16)))
    assert names(plan).count("move") == 1


def test_reshape_and_slice_are_views() -> None:
    s = Sketch(N, 6, 10)
    r = s.relu(s.x)
    flat = s.reshape(r, N, 60)
    part = s.slice(flat, 1, 7, 20)
    plan = planned(s.done(s.relu(part)))
    assert names(plan) == ["pointwise", "pointwise"]
    view = plan.views[id(part)]
    assert view.offset == 7
    assert [dims.product(x) for x in view.strides] == [60, 1]


def test_reshape_of_a_gap_copies() -> None:
    s = Sketch(N, 60)
    part = s.slice(s.relu(s.x), 1, 0, 30)
    plan = planned(s.done(s.relu(s.reshape(part, N, 5, 6))))
    assert names(plan) == ["pointwise", "move", "pointwise"]


def test_graph_output_takes_the_memory_of_what_it_views() -> None:
    s = Sketch(N, 6, 10)
    plan = planned(s.done(s.reshape(s.relu(s.x), N, 60)))
    assert names(plan) == ["pointwise"]
    assert [st.kind for st in plan.storages] == ["input", "output"]


def test_input_as_output_is_copied() -> None:
    s = Sketch(N, 6)
    plan = planned(s.done(s.x))
    assert names(plan) == ["move"]


def test_same_value_as_two_outputs() -> None:
    s = Sketch(N, 6)
    r = s.relu(s.x)
    plan = planned(s.done(r, r))
    assert names(plan) == ["pointwise", "move"]
    kinds = sorted((st.kind, st.index) for st in plan.storages)
    assert kinds == [("input", 0), ("output", 0), ("output", 1)]


def test_one_pixel_planes_change_layout_for_free() -> None:
    s = Sketch(N, 64, 1, 1)
    y = s.reshape(s.conv(s.conv(s.x, 32), 32), N, 32)
    plan = planned(s.done(s.relu(y)))
    assert "layout" not in names(plan) and "move" not in names(plan)


def test_lifetimes_cover_all_uses() -> None:
    s = Sketch(N, 64, 8, 8)
    a = s.conv(s.x, 32, 3)
    b = s.conv(a, 32, 3)
    plan = planned(s.done(s.conv(s.add(b, a), 16)))
    for index, step in enumerate(plan.steps):
        values: list[Value] = [*step.inputs, *step.outputs] if isinstance(step, Node) else []
        for value in values:
            if not value.is_constant:
                storage = plan.views[id(value)].storage
                assert storage.first <= index <= storage.last


def test_attention_gets_a_copy_of_values_whose_rows_have_gaps() -> None:
    b = Builder()
    x = b.input(N, 4, 6, 8)
    q, k, v = (b.transpose(x, 0, 1, 3, 2) for _ in range(3))
    graph = b.result(b.emit("attention", [q, k, v], AttentionAttrs(0.5)))
    plan = place(graph)
    assert names(plan) == ["layout", "attention"]
    assert plan.views[id(q)].storage is plan.views[id(k)].storage


# -- targets whose kernels take any strides -------------------------------------------------------


def strided(graph: Graph) -> StoragePlan:
    """The plan for a GPU, once its numbers are found to be right."""
    assign_channels_last(graph)
    feeds = feeds_of(graph, n=2)
    wanted = reference.run_graph(graph, feeds, "float64")
    found = simulate(graph, Target("cuda", "sm_90"), feeds, {"n": 2})
    for array, expected in zip(found, wanted.values(), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-9, atol=1e-9)
    return place(graph, strided=True)


def units(plan: StoragePlan, value: Value) -> list[dims.Dim]:
    return [dims.product(s) for s in plan.views[id(value)].strides]


def test_heads_are_views_of_rows_and_attention_writes_rows() -> None:
    b = Builder()
    x = b.input(N, 7, 36)
    rows = b.call("neg", x)
    heads = []
    for i in range(3):  # thirds of merged queries, keys and values
        part = b.slice(rows, (0, 0, 12 * i), (N, 7, 12))
        heads.append(b.transpose(b.reshape(part, N, 7, 3, 4), 0, 2, 1, 3))
    y = b.emit("attention", heads, AttentionAttrs(0.5))
    merged = b.reshape(b.transpose(y, 0, 2, 1, 3), N, 7, 12)
    plan = strided(b.result(b.matmul(merged, b.const(12, 5))))
    assert names(plan) == ["pointwise", "attention", "matmul"]
    assert units(plan, heads[1]) == [7 * 36, 4, 36, 1]
    assert plan.views[id(heads[1])].offset == 12
    assert units(plan, y) == [7 * 12, 4, 12, 1]
    assert units(plan, merged) == [7 * 12, 12, 1]


def test_a_matmul_writes_where_the_transpose_of_its_rows_lies() -> None:
    b = Builder()
    y = b.matmul(b.input(N, 3, 4), b.const(4, 5))
    plan = strided(b.result(b.transpose(y, 1, 0, 2)))
    assert names(plan) == ["matmul"]
    assert units(plan, y) == [5, 5 * N, 1]
    assert plan.views[id(y)].storage.kind == "output"


def test_transposes_of_columns_or_of_shared_values_are_copied() -> None:
    b = Builder()
    a = b.matmul(b.input(N, 3, 4), b.const(4, 5))
    c = b.matmul(b.input(N, 3, 4), b.const(4, 5))
    plan = strided(b.result(b.transpose(a, 0, 2, 1), b.transpose(c, 1, 0, 2), b.call("neg", c)))
    assert names(plan).count("transpose") == 2


def test_transposes_read_by_matmuls_are_views() -> None:
    b = Builder()
    x = b.call("neg", b.input(N, 3, 4))
    t = b.transpose(x, 2, 0, 1)
    plan = strided(b.result(b.matmul(t, b.const(3, 5))))
    assert names(plan) == ["pointwise", "matmul"]
    assert units(plan, t) == [1, 12, 4]


def test_planes_of_channels_last_values_are_views() -> None:
    b = Builder()
    y = b.conv(b.input(N, 3, 4, 5), 8)
    tokens = b.transpose(b.reshape(y, N, 8, 20), 0, 2, 1)
    plan = strided(b.result(b.matmul(tokens, b.const(8, 6))))
    assert names(plan) == ["conv", "matmul"]
    assert units(plan, tokens) == [160, 8, 1]


@pytest.mark.parametrize(
    ("given", "seen", "axis", "in_place"),
    [
        ((N, 6), (N, 2, 3), 1, True),  # (2, 3) of (4, 3)
        ((N, 6), (N, 2, 3), 2, False),  # rows of 6 are no rows of (2, 6)
        ((N, 2, 3), (N, 6), 1, True),
        ((2, 3, N), (6, N), 1, True),
        ((6, 4), (8, 3), 0, True),
        ((6, 4), (8, 3), 1, False),
    ],
)
def test_reshapes_written_into_a_concat(
    given: tuple[dims.Dim, ...], seen: tuple[dims.Dim, ...], axis: int, in_place: bool
) -> None:
    """Detection heads reshape their maps and join them: producers write into the whole."""
    b = Builder()
    values = [b.call(op, b.input(*given)) for op in ("neg", "exp")]
    views = [b.reshape(v, *seen) for v in values]
    whole = b.emit("concat", views, ConcatAttrs(axis))
    plan = strided(b.result(b.call("neg", whole)))
    assert names(plan).count("move") == (0 if in_place else 2)
    storage = plan.views[id(whole)].storage
    assert all((plan.views[id(v)].storage is storage) == in_place for v in values)


def test_a_reshape_of_a_shared_value_is_copied_into_the_concat() -> None:
    b = Builder()
    value = b.call("neg", b.input(N, 6))
    views = [b.reshape(value, N, 2, 3), b.reshape(b.call("exp", value), N, 2, 3)]
    plan = strided(b.result(b.emit("concat", views, ConcatAttrs(1))))
    assert names(plan).count("move") == 1


def test_a_channels_last_concat_in_place() -> None:
    b = Builder()
    x = b.input(N, 3, 4, 5)
    parts = [b.conv(x, 8), b.conv(x, 5)]
    whole = b.emit("concat", parts, ConcatAttrs(1))
    plan = strided(b.result(b.reduce("sum", b.conv(whole, 4), 2, 3)))
    assert "move" not in names(plan)
    assert units(plan, parts[1]) == [20 * 13, 1, 5 * 13, 13]
    assert plan.views[id(parts[1])].offset == 8
