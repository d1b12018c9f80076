"""Steps as problems: runtime sizes, strides, constants, and what no kernel serves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.passes.graphs import Builder

from enginesmith.errors import UnsupportedError
from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, call
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.ops import (
    MatMulAttrs,
    NormalizationAttrs,
    ResizeAttrs,
)
from enginesmith.passes.layout import assign_layouts
from enginesmith.planner.lower import Lowered, Lowering, lower
from enginesmith.planner.storage import StoragePlan, place

N, H, W = (dims.symbol(name) for name in "nhw")
TYPICAL = {"n": 2, "h": 6, "w": 5, "m": 3}
LANES = 16


def lowered(graph: Graph) -> list[Lowered]:
    assign_layouts(graph, LANES)
    plan = place(graph)
    return [lower(step, plan, LANES, TYPICAL) for step in plan.steps]


def only(graph: Graph) -> Lowered:
    (step,) = lowered(graph)
    return step


def test_a_problem_speaks_of_sizes_not_symbols() -> None:
    def step(first: dims.Dim, second: dims.Dim) -> Lowered:
        b = Builder()
        return only(b.result(b.call("tanh", b.input(first, 3, second))))

    a, b = step(N, dims.simplify(2 * H)), step(H, dims.symbol("m"))
    assert a.sizes == (N, dims.simplify(2 * H))
    assert a.problem.operands == b.problem.operands
    assert a.problem.operands[0].shape == ("d0", 3, "d1")
    assert a.problem.operands[0].strides == ("3*d1", "d1", 1)
    assert a.problem.hint == (2, 12)


def test_equal_problems_of_different_nodes() -> None:
    b = Builder()
    x, y = b.input(N, 8), b.input(H, 8)
    first, second = lowered(b.result(b.call("tanh", x), b.call("tanh", y)))
    assert first.problem.operands == second.problem.operands
    assert (first.sizes, second.sizes) == ((N,), (H,))


def test_an_expression_is_one_size_and_a_sum_reuses_its_part() -> None:
    lowering = Lowering(StoragePlan(), LANES, TYPICAL)
    half = dims.floordiv(H + 1, 2)
    assert lowering.size(half) == "d0"
    assert lowering.size(dims.simplify(half + 0)) == "d0"
    assert lowering.size(dims.simplify(half + 2)) == "d0+2"
    assert lowering.size(dims.simplify(H - 2)) == "d1"
    assert lowering.size(dims.simplify(2 * H - 4)) == "2*d1"
    assert lowering.size(dims.simplify(3 * H + 1)) == "3*d1+7"
    assert lowering.size(dims.simplify(H - 3)) == "d2"
    assert lowering.size(7) == 7
    assert lowering.stride((2, H, half)) == "2*(d1+2)*d0"
    assert lowering.hint() == (3, 4, 3)


def test_constants_are_transposed_while_building() -> None:
    b = Builder()
    weight = b.const(5, 7)
    step = only(b.result(b.matmul(b.input(N, 7), weight, transpose_b=True)))
    assert weight.data is not None
    np.testing.assert_array_equal(step.places[1], weight.data.T)  # type: ignore[arg-type]
    assert step.problem.operands[1].constant


def test_constants_of_blocked_work_are_blocked() -> None:
    b = Builder()
    shift = b.const(20, 1, 1)
    y = b.call("add", b.conv(b.input(N, 3, H, W), 20), shift)
    assign_layouts(graph := b.result(y), LANES)
    plan = place(graph)
    step = lower(plan.steps[1], plan, LANES, TYPICAL)
    operand, packed = step.problem.operands[1], step.places[1]
    assert (operand.shape, operand.strides) == ((1, 20, 1, 1), (0, 16, 0, 0))
    assert isinstance(packed, np.ndarray) and packed.shape == (1, 2, 1, 1, 16)
    np.testing.assert_array_equal(packed.ravel()[:20], shift.data.ravel())  # type: ignore[union-attr]
    assert not packed.ravel()[20:].any()


def test_an_operand_of_a_halo_starts_behind_it() -> None:
    b = Builder()
    y = b.conv(b.conv(b.input(N, 3, H, W), 20), 20, 3, pad=1)
    steps = lowered(b.result(y))
    assert [s.op for s in steps] == ["clear_halo", "conv", "conv", "layout"]
    operand = steps[2].problem.operands[0]
    assert operand.halo == (1, 1, 1, 1)
    assert operand.strides == ("32*(d1+2)*(d2+2)", "16*(d1+2)*(d2+2)", "16*(d2+2)", 16)
    assert dims.equal(steps[2].places[0].offset, ((W + 2) + 1) * LANES * 4)  # type: ignore[union-attr]


def vector_product(a: Value, b: Value, extra: Value) -> Graph:
    builder = Builder()
    builder.graph.inputs = [v for v in (a, b, extra) if v.data is None]
    attrs = MatMulAttrs(epilogue=call("add", Arg(0), Arg(1)))
    return builder.result(builder.emit("matmul", [a, b, extra], attrs))


@pytest.mark.parametrize(
    ("a", "b", "extra", "shape", "strides"),
    [
        ((4, 5, 6), (6,), (5,), (4, 5, 1), (0, 1, 0)),
        ((4, 5, 6), (6,), (4, 1), (4, 5, 1), (1, 0, 0)),
        ((5,), (4, 5, 6), (4, 6), (4, 1, 6), (6, 0, 1)),
        ((5,), (5, 6), (6,), (1, 6), (0, 1)),
    ],
)
def test_epilogues_on_products_of_vectors(
    a: Any, b: Any, extra: Any, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """The axis that a vector drops comes back with one element, in every operand."""
    rng = np.random.default_rng(0)
    values = [constant("c", rng.random(s).astype(np.float32)) for s in (a, b, extra)]
    step = only(vector_product(*values))
    _, _, operand, y = step.problem.operands
    assert y.shape == shape
    assert operand.strides == strides


def test_broadcast_axes_have_no_stride() -> None:
    b = Builder()
    x, y = b.input(N, 1, W), b.input(H, 1)
    step = only(b.result(b.call("add", x, y)))
    first, second, out = step.problem.operands
    assert out.shape == ("d0", "d2", "d1")  # numbered as they are met
    assert first.strides == ("d1", 0, 1) and second.strides == (0, 1, 0)


def test_scales_of_a_normalization_repeat_over_its_rows() -> None:
    b = Builder()
    x = b.input(N, 4, 6)
    attrs = NormalizationAttrs(1, 1e-5)
    step = only(b.result(b.emit("normalization", [x, b.const(4, 6), b.const(4, 6)], attrs)))
    assert step.problem.operands[1].strides == (0, 6, 1)
    assert str(step.problem.epilogue) == "add(mul($0, $1), $2)"  # type: ignore[attr-defined]


def test_a_slice_that_walks_backwards_has_negative_strides() -> None:
    b = Builder()
    x = b.call("tanh", b.input(N, 8))
    _, step = lowered(b.result(b.slice(x, (0, 7), (N, 4), 1, -2)))
    assert step.problem.operands[0].strides == (8, -2)
    assert step.places[0].offset == 7 * 4  # type: ignore[union-attr]


def excluding(b: Builder) -> Value:
    attrs = ResizeAttrs("cubic", "half_pixel", "floor", (1.0, 1.0, 2.0, 2.0), exclude_outside=True)
    return b.emit("resize", [b.input(N, 3, 4, 4)], attrs, (N, 3, 8, 8))


def test_what_no_kernel_serves_is_named() -> None:
    b = Builder()
    graph = b.result(excluding(b))
    with pytest.raises(UnsupportedError, match="exclude_outside") as error:
        lowered(graph)
    (problem,) = error.value.problems
    assert problem.where == f"node {graph.nodes[-1].sources[0]}"
