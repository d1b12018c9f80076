"""What a model takes for granted about its sizes."""

from __future__ import annotations

import pytest
from tests.passes.graphs import Builder

from enginesmith.ir import dims
from enginesmith.ir.ops import ConcatAttrs
from enginesmith.plan.plan import Constraint
from enginesmith.planner.constraints import constraints

N, M, H, W = (dims.symbol(name) for name in "nmhw")


def found(b: Builder) -> list[tuple[int | str, int | str]]:
    return [(c.left, c.right) for c in constraints(b.graph)]


def test_provably_equal_sizes_need_no_check() -> None:
    b = Builder()
    x = b.input(N, 8, H)
    y = b.call("add", b.call("tanh", x), b.input(N, 1, H))
    b.result(b.matmul(y, b.input(N, H, 4)), b.emit("concat", [x, y], ConcatAttrs(1)))
    assert not found(b)


def test_a_sum_of_different_symbols() -> None:
    b = Builder()
    b.result(b.call("add", b.input(N, H), b.input(M, H)))
    assert constraints(b.graph) == (Constraint("m", "n", ("n0",)),)


def test_one_check_for_many_nodes() -> None:
    b = Builder()
    x, y = b.input(N, H), b.input(M, W)
    b.result(b.call("add", x, y), b.call("mul", x, y))
    assert sorted(found(b)) == [("h", "w"), ("m", "n")]


def test_a_symbol_that_must_be_a_number() -> None:
    b = Builder()
    b.result(b.call("add", b.input(N, 8), b.input(N, H)))
    assert found(b) == [(8, "h")]


@pytest.mark.parametrize("swap", [False, True])
def test_the_summed_axis_of_a_product(swap: bool) -> None:
    b = Builder()
    y = b.input(N, 4, W) if swap else b.input(N, W, 4)
    b.result(b.matmul(b.input(N, 3, H), y, transpose_b=swap))
    assert found(b) == [("h", "w")]


def test_batches_of_a_product_and_other_axes_of_a_concat() -> None:
    b = Builder()
    x, y = b.input(N, 3, 4), b.input(M, 4, 5)
    b.result(b.matmul(x, y), b.emit("concat", [x, b.input(N, H, 4)], ConcatAttrs(0)))
    assert sorted(found(b), key=str) == sorted([("m", "n"), (3, "h")], key=str)


def test_assumptions_of_passes_are_checked_too() -> None:
    b = Builder()
    b.result(b.call("tanh", b.input(N, H)))
    b.graph.assumptions.append((dims.simplify(2 * dims.floordiv(H, 2)), H, ("up",)))
    (constraint,) = constraints(b.graph)
    assert {constraint.left, constraint.right} == {"2*(h//2)", "h"}
    assert constraint.nodes == ("up",)
