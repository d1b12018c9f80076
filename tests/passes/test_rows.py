"""What the passes for targets of any strides do to rows: their order, merged matmuls, transposes
around them; and causal masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphs import Builder, ops, preserves

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Const, Expr, call
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.ops import AttentionAttrs, MatMulAttrs, SoftmaxAttrs, TransposeAttrs
from enginesmith.ir.verifier import verify
from enginesmith.passes.attention import attention
from enginesmith.passes.dead_code import dead_code
from enginesmith.passes.expressions import expressions
from enginesmith.passes.merge_matmuls import BIAS, merge_matmuls
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.passes.reshapes import reshapes
from enginesmith.passes.row_order import row_order
from enginesmith.passes.sink_transposes import sink_transposes
from enginesmith.passes.uniform_shapes import uniform_shapes
from enginesmith.planner.storage import place

N = dims.symbol("n")
SUM = call("add", Arg(0), Arg(1))


def cleaned(*passes: Callable[[Graph], bool]) -> Callable[[Graph], bool]:
    """The passes once, then without what nobody reads."""

    def run(graph: Graph) -> bool:
        changed = [rewrite(graph) for rewrite in passes]
        dead_code(graph)
        verify(graph)
        return any(changed)

    return run


def linear(
    b: Builder, x: Value, out: int, *bias: int, epilogue: Expr | None = None, flip: bool = False
) -> Value:
    """x times a constant matrix, with a constant of shape `bias` added."""
    k = x.shape[-1]
    inputs = [x, b.const(*((out, k) if flip else (k, out)))]
    if bias:
        inputs.append(b.const(*bias))
        epilogue = BIAS
    return b.emit("matmul", inputs, MatMulAttrs(transpose_b=flip, epilogue=epilogue))


# -- row_order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [(), (5,), (1, 1, 5)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_transpose_of_rows_sinks_below_the_matmul(bias: tuple[int, ...], flip: bool) -> None:
    b = Builder()
    x = b.transpose(b.input(N, 3, 4), 1, 0, 2)
    graph = b.result(linear(b, x, 5, *bias, flip=flip))
    assert preserves(graph, cleaned(row_order), n=2)
    assert ops(graph) == ["matmul", "transpose"]
    assert graph.nodes[1].attrs == TransposeAttrs((1, 0, 2))
    assert dims.same_shape(graph.nodes[0].output.shape, (N, 3, 5))


def _columns_move(b: Builder) -> Value:
    return linear(b, b.transpose(b.input(2, 3, 4), 1, 2, 0), 5)


def _read_twice(b: Builder) -> Value:
    x = b.transpose(b.input(2, 3, 4), 1, 0, 2)
    return b.call("add", linear(b, x, 4), x)


def _bias_per_row(b: Builder) -> Value:
    return linear(b, b.transpose(b.input(2, 3, 4), 1, 0, 2), 5, 3, 1, 5)


def _varying_matrix(b: Builder) -> Value:
    return b.matmul(b.transpose(b.input(2, 3, 4), 1, 0, 2), b.input(4, 5))


def _transposed_operand(b: Builder) -> Value:
    x = b.transpose(b.input(2, 3, 4), 1, 0, 2)
    return b.matmul(x, b.const(2, 5), transpose_a=True)


@pytest.mark.parametrize(
    "make", [_columns_move, _read_twice, _bias_per_row, _varying_matrix, _transposed_operand]
)
def test_other_transposes_stay_above(make: Callable[[Builder], Value]) -> None:
    b = Builder()
    graph = b.result(make(b))
    before = ops(graph)
    assert not preserves(graph, row_order)
    assert ops(graph) == before


@pytest.mark.parametrize("bias", [(), (5,), (1, 5)])
def test_rows_merged_for_a_matmul_and_split_again_stay_as_they_are(bias: tuple[int, ...]) -> None:
    b = Builder()
    x = b.input(9, N, 12)
    y = linear(b, b.reshape(x, 9 * N, 12), 5, *bias)
    graph = b.result(b.reshape(y, 9, N, 5))
    assert preserves(graph, cleaned(row_order), n=2)
    assert ops(graph) == ["matmul"]
    assert graph.nodes[0].inputs[0] is x
    assert graph.outputs[0].name == "y0"


@pytest.mark.parametrize("shape", [(3, 6, 5), (18, 5, 1)])
def test_rows_split_otherwise_are_merged_as_before(shape: tuple[int, ...]) -> None:
    b = Builder()
    y = linear(b, b.reshape(b.input(9, 2, 12), 18, 12), 5)
    graph = b.result(b.reshape(y, *shape))
    assert not preserves(graph, row_order)


def test_merged_rows_that_are_an_output_are_kept() -> None:
    b = Builder()
    y = linear(b, b.reshape(b.input(9, 2, 12), 18, 12), 5)
    assert not preserves(b.result(b.reshape(y, 9, 2, 5), y), row_order)


def test_merged_heads_are_sorted_as_they_lie() -> None:
    b = Builder()
    x = b.input(N, 3, 7, 4)  # batch, heads, tokens, columns
    y = b.reshape(b.transpose(x, 2, 0, 1, 3), 7, N, 12)
    graph = b.result(y)
    assert preserves(graph, cleaned(row_order), n=2)
    assert ops(graph) == ["transpose", "reshape", "transpose"]
    assert [n.attrs for n in graph.nodes[::2]] == [
        TransposeAttrs((0, 2, 1, 3)), TransposeAttrs((1, 0, 2)),
    ]  # fmt: skip


def test_merged_rows_and_heads_are_sorted_and_merged_last() -> None:
    b = Builder()
    y = b.reshape(b.transpose(b.input(N, 3, 7, 4), 2, 0, 1, 3), 7 * N, 12)
    graph = b.result(y)
    assert preserves(graph, cleaned(row_order), n=2)
    assert ops(graph) == ["transpose", "reshape", "transpose", "reshape"]
    assert dims.same_shape(graph.nodes[1].output.shape, (N, 7, 12))


@pytest.mark.parametrize("perm", [(0, 2, 1, 3), (1, 2, 0, 3)])
def test_sorted_rows_are_left_alone(perm: tuple[int, ...]) -> None:
    b = Builder()
    x = b.transpose(b.input(2, 3, 7, 4), *perm)
    a, c, d, e = x.shape
    assert not preserves(b.result(b.reshape(x, a, c, d * e)), row_order)


def test_tokens_before_batches_cost_attention_no_copies() -> None:
    """The whole: projections of (tokens, batch, width), as exporters write them."""
    b = Builder()
    x = b.transpose(b.input(N, 7, 12), 1, 0, 2)
    heads = []
    for _ in range(3):
        y = linear(b, b.reshape(x, 7 * N, 12), 12, 12)
        heads.append(b.transpose(b.reshape(y, 7, N, 3, 4), 1, 2, 0, 3))
    y = b.emit("attention", heads, AttentionAttrs(0.5))
    y = b.reshape(b.transpose(y, 2, 0, 1, 3), 7 * N, 12)
    y = b.transpose(b.reshape(linear(b, y, 12, 12), 7, N, 12), 1, 0, 2)
    graph = b.result(y)
    preserves(graph, lambda g: run_pipeline(g, verify, strided=True), n=2)
    assert ops(graph).count("matmul") == 2
    assert ops(graph)[-4:] == ["attention", "transpose", "reshape", "matmul"]
    assert graph.nodes[-3].attrs == TransposeAttrs((0, 2, 1, 3))  # rows of heads: a view


# -- merge_matmuls --------------------------------------------------------------------------------


def test_queries_keys_and_values_are_one_matmul() -> None:
    b = Builder()
    x = b.input(N, 5, 8)
    parts = [linear(b, x, 4, 4), linear(b, x, 6, flip=True), linear(b, x, 2, 1)]
    graph = b.result(*(b.call("neg", part) for part in parts))
    assert preserves(graph, cleaned(merge_matmuls), n=2)
    assert ops(graph).count("matmul") == 1 and ops(graph).count("slice") == 3
    whole = graph.nodes[0]
    assert whole.op == "matmul" and whole.sources == ("n0", "n1", "n2")
    assert dims.same_shape(whole.output.shape, (N, 5, 12))
    assert [n.attrs.starts[2] for n in graph.nodes if n.op == "slice"] == [0, 4, 10]  # type: ignore[union-attr]


def test_matmuls_without_biases_get_none() -> None:
    b = Builder()
    x = b.input(N, 8)
    graph = b.result(*(b.call("neg", linear(b, x, c)) for c in (4, 6)))
    assert preserves(graph, cleaned(merge_matmuls), n=2)
    assert len(graph.nodes[0].inputs) == 2 and graph.nodes[0].attrs == MatMulAttrs()


def test_readers_listed_out_of_order_are_merged_in_order() -> None:
    """Uses are in the order in which they came about, not in the graph's."""
    b = Builder()
    x, z = b.input(N, 8), b.input(N, 8)
    first, second = linear(b, z, 4), linear(b, x, 6)
    graph = b.result(
        b.call("neg", b.call("add", first, linear(b, first, 4))), b.call("neg", second)
    )
    graph.nodes[0].set_input(0, x)
    assert preserves(graph, cleaned(merge_matmuls), n=2)
    assert ops(graph).count("matmul") == 2


def test_matmuls_that_stay_apart() -> None:
    b = Builder()
    x, relu = b.input(3, 8), call("max", Arg(0), 0.0)
    parts = [
        linear(b, x, 4),
        linear(b, x, 4, epilogue=relu),
        linear(b, x, 4, 3, 4),  # a bias per row and column
        b.matmul(x, b.const(3, 4), transpose_a=True),
        b.matmul(x, b.input(8, 4)),
        b.matmul(x, b.const(2, 8, 4)),
    ]
    result = linear(b, x, 4)  # itself an output
    graph = b.result(result, *(b.call("neg", part) for part in parts))
    assert not preserves(graph, merge_matmuls)


# -- sink_transposes ------------------------------------------------------------------------------


def test_a_transpose_sinks_below_the_sum_after_it() -> None:
    b = Builder()
    x, z = b.input(N, 4, 5, 8), b.input(N, 6, 4, 5)
    moved = b.transpose(linear(b, x, 6), 0, 3, 1, 2)
    graph = b.result(b.pointwise(SUM, z, moved))
    assert preserves(graph, cleaned(sink_transposes), n=2)
    assert ops(graph) == ["matmul", "transpose", "pointwise", "transpose"]
    matmul, up, add, down = graph.nodes
    assert up.attrs == TransposeAttrs((0, 2, 3, 1)) and down.attrs == TransposeAttrs((0, 3, 1, 2))
    assert add.inputs == [up.output, matmul.output]
    assert set(down.sources) == set(add.sources) == {"n1", "n2"}


@pytest.mark.parametrize("shape", [(), (6, 1, 1), (1, 6, 1, 1), (5,), (4, 5), (2, 6, 4, 5)])
def test_constants_are_transposed_at_once(shape: tuple[int, ...]) -> None:
    b = Builder()
    moved = b.transpose(linear(b, b.input(2, 4, 5, 8), 6), 0, 3, 1, 2)
    graph = b.result(b.pointwise(SUM, moved, b.const(*shape)))
    assert preserves(graph, cleaned(sink_transposes))
    assert ops(graph) == ["matmul", "pointwise", "transpose"]


def test_operands_of_one_number_per_channel_are_transposed() -> None:
    b = Builder()
    x, gate, scale = b.input(N, 4, 5, 8), b.input(N, 6, 1, 1), b.input()
    moved = b.transpose(linear(b, x, 6), 0, 3, 1, 2)
    tree = call("mul", call("mul", Arg(0), Arg(1)), call("mul", Arg(2), Arg(1)))
    graph = b.result(b.pointwise(tree, gate, moved, scale))
    assert preserves(graph, cleaned(sink_transposes), n=2)
    assert ops(graph) == ["matmul", "transpose", "pointwise", "transpose"]


def test_transposes_that_do_not_sink() -> None:
    b = Builder()
    x, row = b.input(2, 4, 5, 8), b.input(5)
    whole = b.input(1, 1, 5, 4)
    read_twice = b.transpose(linear(b, x, 6), 0, 3, 1, 2)
    of_input = b.transpose(x, 0, 3, 1, 2)
    grows = b.transpose(linear(b, whole, 6), 0, 3, 1, 2)  # (1, 6, 1, 5)
    summed = b.transpose(b.reduce("sum", x, 3), 0, 3, 1, 2)
    graph = b.result(
        b.pointwise(SUM, read_twice, b.const()),
        read_twice,
        b.pointwise(SUM, of_input, b.const()),
        b.pointwise(SUM, grows, b.input(2, 6, 4, 5)),
        b.pointwise(SUM, summed, b.const()),
        b.pointwise(SUM, b.transpose(linear(b, x, 6), 0, 3, 1, 2), row),  # of lower rank
    )
    assert not preserves(graph, sink_transposes)


def test_the_matmul_takes_what_the_transpose_let_through() -> None:
    b = Builder()
    z = b.input(N, 6, 4, 5)
    moved = b.transpose(linear(b, b.input(N, 4, 5, 8), 6, 6), 0, 3, 1, 2)
    graph = b.result(b.call("add", z, b.call("mul", moved, b.const(6, 1, 1))))
    preserves(graph, lambda g: run_pipeline(g, verify, strided=True), n=2)
    assert ops(graph) == ["transpose", "matmul", "transpose"]


# -- reshapes: splitting before a transpose -------------------------------------------------------


def test_a_split_goes_before_the_transpose_and_meets_another_reshape() -> None:
    b = Builder()
    a = b.transpose(b.reshape(b.input(9, N, 12), 9, 4 * N, 3), 1, 0, 2)
    graph = b.result(b.reshape(a, N, 4, 9, 3))
    assert preserves(graph, cleaned(reshapes, reshapes), n=2)
    assert ops(graph) == ["reshape", "transpose"]
    assert dims.same_shape(graph.nodes[0].output.shape, (9, N, 4, 3))
    assert graph.nodes[1].attrs == TransposeAttrs((1, 2, 0, 3))


def test_a_split_between_transposes_lets_them_meet() -> None:
    b = Builder()
    a = b.reshape(b.transpose(b.call("neg", b.input(N, 6, 8)), 1, 0, 2), 2, 3, N, 8)
    graph = b.result(b.transpose(a, 2, 0, 1, 3))
    assert preserves(graph, cleaned(reshapes, reshapes), n=2)
    assert ops(graph) == ["pointwise", "reshape", "reshape"]


@pytest.mark.parametrize("shape", [(4, 9, 2, 1, 3), (2, 2, 9, 3, 2), (2, 2, 3, 3, 6)])
def test_splits_of_several_axes_with_ones(shape: tuple[int, ...]) -> None:
    b = Builder()
    a = b.transpose(b.reshape(b.input(9, 24), 9, 4, 6), 1, 0, 2)
    graph = b.result(b.reshape(a, *shape))
    assert preserves(graph, cleaned(reshapes, reshapes))
    assert ops(graph) == ["reshape", "transpose"]


def test_reshapes_that_merge_or_whose_transpose_is_kept_stay_behind() -> None:
    b = Builder()
    a = b.transpose(b.reshape(b.input(9, 24), 9, 4, 6), 1, 0, 2)
    c = b.transpose(b.reshape(b.input(9, 24), 9, 4, 6), 1, 0, 2)
    graph = b.result(b.reshape(a, 36, 6), b.reshape(c, 2, 2, 9, 6), c)
    assert not preserves(graph, reshapes)


# -- attention: causal masks ----------------------------------------------------------------------


def masked(mask: np.ndarray, queries: int = 5, keys: int = 5) -> Graph:
    b = Builder()
    q, k, v = b.input(N, 2, queries, 4), b.input(N, 2, keys, 4), b.input(N, 2, keys, 4)
    scores = b.pointwise(call("mul", Arg(0), 0.5), b.matmul(q, k, transpose_b=True))
    scores = b.call("add", scores, constant("mask", mask.astype(np.float32)))
    return b.result(b.matmul(b.emit("softmax", [scores], SoftmaxAttrs(3)), v))


def triangle(size: int, hides: float, diagonal: int = 1) -> np.ndarray:
    return np.where(np.triu(np.ones((size, size), np.bool_), diagonal), hides, 0.0)


@pytest.mark.parametrize("hides", [-np.inf, -3.4e38, -1e31])
@pytest.mark.parametrize("lead", [(), (1, 1), (1, 2)])
def test_a_constant_triangle_is_a_causal_mask(hides: float, lead: tuple[int, ...]) -> None:
    mask = np.broadcast_to(triangle(5, hides), (*lead, 5, 5))
    graph = masked(mask)
    assert preserves(graph, cleaned(attention), n=2)
    assert ops(graph) == ["attention"]
    assert graph.nodes[0].attrs == AttentionAttrs(0.5, True)
    assert len(graph.nodes[0].inputs) == 3


def spoiled(row: int, column: int, value: float) -> np.ndarray:
    mask = triangle(5, -np.inf)
    mask[row, column] = value
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        triangle(5, -1e4),  # may leave something of a key
        triangle(5, -np.inf, 2),
        triangle(5, -1e31, 0),
        triangle(5, -np.inf).T,
        spoiled(4, 0, -0.5),
        spoiled(0, 4, 0.0),
        np.stack([triangle(5, -np.inf), spoiled(0, 3, 0.0)]),
        triangle(5, -np.inf)[:1],
    ],
)
def test_other_masks_stay_operands(mask: np.ndarray) -> None:
    graph = masked(mask)
    assert preserves(graph, cleaned(attention), n=2)
    assert graph.nodes[0].attrs == AttentionAttrs(0.5)
    assert len(graph.nodes[0].inputs) == 4


def test_a_triangle_beside_earlier_keys_stays_an_operand() -> None:
    mask = np.concatenate([np.zeros((5, 2)), triangle(5, -np.inf)], 1)
    graph = masked(mask, keys=7)
    assert preserves(graph, cleaned(attention), n=2)
    assert graph.nodes[0].attrs == AttentionAttrs(0.5)


# -- uniform_shapes -------------------------------------------------------------------------------


def key_mask(b: Builder, keys: Value, spread: Value) -> Value:
    """0 for keys that count, and a low number for others, the same for all queries."""
    hidden = call("where", call("and", Arg(0), Arg(1)), Const(0.0), Const(-1e9))
    return b.pointwise(hidden, spread, keys)


def test_one_row_of_a_mask_serves_all_queries() -> None:
    """And planned memory holds that row alone."""
    b = Builder()
    keys = b.input(N, 1, 1, 6, dtype="bool")
    q, k, v = (b.input(N, 2, length, 8) for length in (5, 6, 6))
    mask = key_mask(b, keys, constant("spread", np.ones((1, 1, 5, 1), bool)))
    y = b.emit("attention", [q, k, v, mask], AttentionAttrs(0.5))
    graph = b.result(y)
    assert preserves(graph, uniform_shapes, n=3)
    verify(graph)
    assert [(n.op, n.output.shape[2]) for n in graph.nodes] == [
        ("pointwise", 1), ("expand", 5), ("attention", 5),
    ]  # fmt: skip
    expressions(graph)
    storage = place(graph, strided=True)
    assert [step.op for step in storage.steps] == ["pointwise", "attention"]
    *_, queries, key = storage.views[id(graph.nodes[-1].inputs[3])].strides
    assert queries == (0,) and key == ()  # no step and single ones


@pytest.mark.parametrize(
    "spread",
    [np.array([True, False, True, True, True]).reshape(1, 1, 5, 1), np.ones((1, 1, 1, 1), bool)],
    ids=["differs", "adds nothing"],
)
def test_constants_that_do_more_or_less_stay(spread: np.ndarray) -> None:
    b = Builder()
    keys = b.input(N, 1, 1, 6, dtype="bool")
    mask = key_mask(b, keys, constant("spread", spread))
    graph = b.result(b.call("neg", mask))
    assert not preserves(graph, uniform_shapes, n=3)


def test_results_of_the_graph_are_not_expanded() -> None:
    b = Builder()
    x = b.input(N, 1)
    graph = b.result(b.call("mul", x, constant("c", np.full((1, 7), 2, np.float32))))
    assert not preserves(graph, uniform_shapes, n=3)
