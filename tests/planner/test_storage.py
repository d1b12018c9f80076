"""Where values live: views, concats in place, halos, lifetimes."""

from __future__ import annotations

from tests.passes.graphs import Builder
from tests.planner.graphs import Sketch

from enginesmith.ir import dims
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import AttentionAttrs
from enginesmith.passes.layout import assign_layouts
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
