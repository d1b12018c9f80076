"""Passes that tidy: constants, identities, views, slices, equal and dead nodes."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Builder, ops, preserves

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Call, Cast, call
from enginesmith.ir.graph import constant
from enginesmith.ir.ops import (
    ConcatAttrs,
    ExpandAttrs,
    GatherAttrs,
    MatMulAttrs,
    PadAttrs,
    PointwiseAttrs,
    PoolAttrs,
    ResizeAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from enginesmith.ir.printer import print_graph
from enginesmith.passes.common_subexpressions import common_subexpressions
from enginesmith.passes.constant_folding import constant_folding
from enginesmith.passes.dead_code import dead_code
from enginesmith.passes.expressions import expressions
from enginesmith.passes.identities import identities
from enginesmith.passes.reshapes import reshapes
from enginesmith.passes.scalar_operands import scalar_operands
from enginesmith.passes.slices import slices
from enginesmith.passes.unify_shapes import unify_shapes

N = dims.symbol("n")


def test_constants_are_folded_to_the_end() -> None:
    b = Builder()
    x = b.input(N, 3)
    c = b.call("exp", b.reshape(b.const(3), 1, 3))
    graph = b.result(b.call("add", x, c))
    assert preserves(graph, constant_folding, n=2)
    assert ops(graph) == ["pointwise"]
    assert graph.nodes[0].inputs[1].is_constant
    assert not constant_folding(graph)


def test_large_expansions_stay() -> None:
    b = Builder()
    wide = b.emit("expand", [b.const(1, 1)], ExpandAttrs(), (4096, 4096))
    graph = b.result(wide)
    assert not constant_folding(graph)
    assert ops(graph) == ["expand"]


def test_a_folded_output_keeps_its_name() -> None:
    b = Builder()
    graph = b.result(b.call("neg", b.const(2)))
    assert preserves(graph, constant_folding)
    assert graph.outputs[0].is_constant and graph.outputs[0].name == "y0"


def test_dead_nodes_go() -> None:
    b = Builder()
    x = b.input(2)
    b.call("exp", b.call("neg", x))
    graph = b.result(b.call("abs", x))
    assert preserves(graph, dead_code)
    assert len(graph.nodes) == len(x.uses) == 1


def test_identities_go() -> None:
    b = Builder()
    x = y = b.input(N, 4, 3, 3)
    y = b.transpose(b.reshape(y, *x.shape), 0, 1, 2, 3)
    y = b.slice(y, (0, 0, 0, 0), x.shape)
    y = b.emit("expand", [y], ExpandAttrs(), x.shape)
    y = b.emit("concat", [y], ConcatAttrs(1))
    y = b.emit("pad", [y], PadAttrs((0,) * 8, "constant"))
    attrs = ResizeAttrs("nearest", "asymmetric", "floor", (1.0, None, 1.0, 1.0))
    y = b.emit("resize", [y], attrs, x.shape)
    y = b.emit("pool", [y], PoolAttrs("max", (1, 1), (1, 1), (0,) * 4), x.shape)
    graph = b.result(b.call("exp", b.pointwise(Arg(0), y)))
    assert preserves(graph, identities, n=2)
    assert ops(graph) == ["pointwise"]
    assert graph.nodes[0].inputs == [x]
    assert graph.nodes[0].sources == ("n9",)


def test_an_input_is_never_an_output() -> None:
    b = Builder()
    graph = b.result(b.reshape(b.input(2, 3), 2, 3))
    assert not preserves(graph, identities)
    assert ops(graph) == ["reshape"]


def test_a_bypassed_output_passes_its_name_on() -> None:
    b = Builder()
    y = b.call("exp", b.input(2, 3))
    graph = b.result(b.reshape(y, 2, 3))
    assert preserves(graph, identities)
    assert graph.outputs == [y] and y.name == "y0"
    assert y.producer is not None and y.producer.sources == ("n0", "n1")


def test_a_reduction_of_one_element_is_a_reshape() -> None:
    b = Builder()
    graph = b.result(b.reduce("mean", b.input(N, 3, 1, 1), 2, 3, keepdims=False))
    assert preserves(graph, identities, n=3)
    assert ops(graph) == ["reshape"]


def test_expand_moves_below_its_readers() -> None:
    b = Builder()
    x = b.input(1, 3)
    wide = b.emit("expand", [x], ExpandAttrs(), (4, 3))
    graph = b.result(b.call("add", wide, b.input(4, 3)), b.call("exp", wide))
    assert preserves(graph, lambda g: identities(g) and dead_code(g))
    assert ops(graph) == ["pointwise", "pointwise", "expand"]
    assert graph.nodes[1].output.shape == (1, 3)


def test_reshapes_merge() -> None:
    b = Builder()
    x = b.input(N, 6, 4)
    graph = b.result(b.reshape(b.reshape(x, N * 6, 4), N, 24))
    assert preserves(graph, lambda g: reshapes(g) and dead_code(g), n=2)
    assert ops(graph) == ["reshape"]


def test_transposes_merge() -> None:
    b = Builder()
    x = b.input(2, 3, 4)
    graph = b.result(b.transpose(b.transpose(x, 2, 0, 1), 1, 0, 2))
    assert preserves(graph, lambda g: reshapes(g) and dead_code(g))
    assert ops(graph) == ["transpose"]
    assert graph.nodes[0].attrs == TransposeAttrs((0, 2, 1))


def test_inverse_transposes_cancel() -> None:
    b = Builder()
    x = b.input(2, 3, 4)
    graph = b.result(b.call("neg", b.transpose(b.transpose(x, 2, 0, 1), 1, 2, 0)))
    assert preserves(graph, lambda g: reshapes(g) and identities(g) and dead_code(g))
    assert ops(graph) == ["pointwise"]


def test_moving_axes_of_one_is_a_reshape() -> None:
    b = Builder()
    graph = b.result(b.transpose(b.input(N, 1, 5), 1, 0, 2))
    assert preserves(graph, reshapes, n=3)
    assert ops(graph) == ["reshape"]


def test_transpose_between_reshapes_of_merged_axes() -> None:
    b = Builder()
    x = b.input(N, 3, 4, 5)
    y = b.transpose(b.reshape(x, 3 * N, 4, 5), 0, 2, 1)
    graph = b.result(b.reshape(y, N, 3, 5, 4))
    assert preserves(graph, lambda g: reshapes(g) and dead_code(g), n=2)
    assert ops(graph) == ["transpose"]
    assert graph.nodes[0].attrs == TransposeAttrs((0, 1, 3, 2))


def test_transpose_becomes_the_flag_of_a_matmul() -> None:
    b = Builder()
    q, k = b.input(2, 3, 4, 5), b.input(2, 6, 3, 5)
    graph = b.result(b.matmul(q, b.transpose(k, 0, 2, 3, 1)))
    assert preserves(graph, lambda g: reshapes(g) and dead_code(g))
    assert ops(graph) == ["transpose", "matmul"]
    assert graph.nodes[0].attrs == TransposeAttrs((0, 2, 1, 3))
    assert graph.nodes[1].attrs == MatMulAttrs(transpose_b=True)


@pytest.mark.parametrize("steps", [(1, 1), (2, -1)])
def test_slices_of_slices(steps: tuple[int, int]) -> None:
    b = Builder()
    x = b.input(9, 8)
    y = b.slice(x, (1, 0), (7, 8), 1, 1)
    starts = (1, 5) if steps[1] < 0 else (1, 2)
    graph = b.result(b.slice(y, starts, (3, 3), *steps))
    assert preserves(graph, lambda g: slices(g) and dead_code(g))
    assert ops(graph) == ["slice"]
    assert graph.nodes[0].attrs == SliceAttrs((2, starts[1]), steps)


def test_a_split_and_its_concat_cancel() -> None:
    b = Builder()
    x = b.input(N, 6)
    parts = [b.slice(x, (0, s), (N, n)) for s, n in ((0, 2), (2, 1), (3, 3))]
    graph = b.result(b.call("neg", b.emit("concat", parts, ConcatAttrs(1))))
    assert preserves(graph, lambda g: slices(g) and identities(g) and dead_code(g), n=2)
    while identities(graph) or dead_code(graph):
        pass
    assert ops(graph) == ["pointwise"]


def test_a_permuted_split_stays() -> None:
    b = Builder()
    x = b.input(2, 6)
    parts = [b.slice(x, (0, s), (2, 3)) for s in (3, 0)]
    graph = b.result(b.emit("concat", parts, ConcatAttrs(1)))
    assert not preserves(graph, slices)


def test_concats_flatten_unless_read_elsewhere() -> None:
    def build(outputs: int) -> Builder:
        b = Builder()
        x, y, z = b.input(2, 2), b.input(2, 1), b.input(2, 3)
        inner = b.emit("concat", [x, y], ConcatAttrs(1))
        b.result(*[b.emit("concat", [inner, z], ConcatAttrs(1)), inner][:outputs])
        return b

    alone, shared = build(1).graph, build(2).graph
    assert preserves(alone, lambda g: slices(g) and dead_code(g))
    assert len(alone.nodes) == 1 and len(alone.nodes[0].inputs) == 3
    assert not preserves(shared, slices)


def test_a_slice_of_a_concat_reads_its_part() -> None:
    b = Builder()
    x, y = b.input(2, 4), b.input(2, 5)
    joined = b.emit("concat", [x, y], ConcatAttrs(1))
    graph = b.result(b.slice(joined, (0, 5), (2, 3)), b.slice(joined, (0, 3), (2, 2)))
    assert preserves(graph, slices)
    assert graph.nodes[1].inputs == [y]
    assert graph.nodes[2].inputs == [joined]


@pytest.mark.parametrize("at", [-1, 2, [1, 2], [3], [-2, -1]])
def test_gathers_of_neighbours_are_slices(at: int | list[int]) -> None:
    b = Builder()
    index = constant("i", np.asarray(at, np.int64))
    graph = b.result(b.emit("gather", [b.input(2, 4, 3), index], GatherAttrs("axis", 1)))
    assert preserves(graph, slices)
    assert "gather" not in ops(graph)


def test_equal_nodes_are_computed_once() -> None:
    b = Builder()
    x = b.input(3)
    one, two = b.const(3), b.const(3)
    two.data = one.data
    y = b.call("mul", b.call("add", x, one), b.call("add", x, two))
    graph = b.result(y)
    assert preserves(graph, common_subexpressions)
    assert ops(graph) == ["pointwise", "pointwise"]
    assert graph.nodes[0].sources == ("n0", "n1")


def test_equal_outputs_stay_apart() -> None:
    b = Builder()
    x = b.input(3)
    graph = b.result(b.call("exp", x), b.call("exp", x))
    assert not preserves(graph, common_subexpressions)


def test_scalars_move_into_the_expression() -> None:
    b = Builder()
    x = b.input(N, 4)
    uniform = constant("c", np.full((4,), 0.5, np.float32))
    graph = b.result(b.call("add", b.call("mul", x, uniform), b.const(1, 1)))
    assert preserves(graph, scalar_operands, n=2)
    assert all(len(n.inputs) == 1 for n in graph.nodes)


def test_a_scalar_that_shapes_the_result_stays() -> None:
    b = Builder()
    graph = b.result(b.call("mul", b.input(3), b.const(2, 3, low=1, high=1)))
    assert not preserves(graph, scalar_operands)


def test_unread_operands_go() -> None:
    b = Builder()
    x, y = b.input(2, 3), b.input(3)
    tree = Call("where", (Cast("bool", call("add", 1.0, 0.0)), Arg(1), Arg(0)))
    graph = b.result(b.pointwise(tree, x, y))
    assert preserves(graph, expressions)
    assert ops(graph) == ["pointwise", "expand"]
    assert graph.nodes[0].attrs == PointwiseAttrs(Arg(0))
    assert preserves(graph, identities)
    assert ops(graph) == ["expand"]


def test_upsampled_sizes_take_the_form_they_meet() -> None:
    b = Builder()
    h = dims.symbol("h")
    small, large = b.input(1, 2, dims.floordiv(h + 1, 2), 4), b.input(1, 2, h, 8)
    attrs = ResizeAttrs("nearest", "asymmetric", "floor", (1.0, 1.0, 2.0, 2.0))
    up = b.emit("resize", [small], attrs, (1, 2, 2 * dims.floordiv(h + 1, 2), 8))
    y = b.call("add", up, large)
    assert y.shape != large.shape
    graph = b.result(b.conv(y, 3, 3, pad=1))
    assert preserves(graph, unify_shapes, h=6)
    assert up.shape == y.shape == large.shape
    assert "output %y0" in print_graph(graph) and "//" not in str(graph.outputs[0].type)
