"""Random expression trees, as vectors and as scalars, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import check, floats, plain
from tests.codegen.trees import INTEGER, LEAVES, grow

from enginesmith.codegen.expressions import scalar_expression, vector_expression, vmath
from enginesmith.ir.expr import Arg, Call, Cast, Const, call, dtype_of, evaluate, rewrite_args
from enginesmith.kernels.pointwise import cpu
from enginesmith.kernels.pointwise.problem import PointwiseProblem


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.recursive(LEAVES, grow, max_leaves=12), st.sampled_from(["float32", "float64"]))
def test_trees(expr, dtype):
    """float64 goes through scalars, float32 through vectors."""
    if dtype == "float64":
        expr = rewrite_args(expr, lambda k: Cast("float32", Arg(k)))
    inputs = [np.round(floats(k, 45) * 4) / 4 for k in range(3)]  # with equals, off the steps
    operands = (*(plain((45,), dtype) for _ in inputs), plain((45,), dtype_of(expr, [dtype] * 3)))
    expected = np.broadcast_to(np.asarray(evaluate(expr, inputs)), (45,))
    check(cpu, PointwiseProblem(operands, expr=expr), inputs, expected, tolerance=1e-4)


@pytest.mark.parametrize(("op", "a", "b"), INTEGER)
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers(op, a, b, dtype):
    expr = Call(op, (Arg(0), Arg(1)))
    expected = evaluate(expr, [a, b])
    problem = PointwiseProblem(tuple(plain((5,), dtype) for _ in range(3)), expr=expr)
    check(cpu, problem, [a, b], expected, targets=["avx2"])


def test_division_by_zero_is_harmless():
    a, b = np.array([5, -5, -(2**63)]), np.array([0, 0, -1])
    for op in ("div", "mod", "fmod"):
        expr = Call(op, (Arg(0), Arg(1)))
        problem = PointwiseProblem(tuple(plain((3,), "int64") for _ in range(3)), expr=expr)
        expected = np.array([0, 0, -(2**63) if op == "div" else 0])
        check(cpu, problem, [a, b], expected, targets=["avx2"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_passes_through(dtype):
    """max and min with a constant on either side, and of two operands, keep a NaN of either."""
    a, b = np.array([np.nan, 1, np.nan, 2, -3]), np.array([1, np.nan, np.nan, 1, 4])
    zero = Const(0.0, dtype)
    for op in ("max", "min"):
        for pair in ((Arg(0), Arg(1)), (Arg(0), zero), (zero, Arg(0))):
            expr = Call(op, pair)
            problem = PointwiseProblem(tuple(plain((5,), dtype) for _ in range(3)), expr=expr)
            check(cpu, problem, [a, b], evaluate(expr, [a, b]))


def test_float16():
    a = floats(1, 33).astype(np.float16)
    expr = Call("mul", (call("exp", Arg(0)), Arg(0)))
    problem = PointwiseProblem((plain((33,), "float16"), plain((33,), "float16")), expr=expr)
    expected = (np.exp(a.astype(np.float32)) * a).astype(np.float16)
    check(cpu, problem, [a], expected, tolerance=1e-3)


def test_shared_subtrees_are_written_once():
    expr = Arg(0)
    for _ in range(40):
        expr = call("mul", expr, expr)
    text = vector_expression(expr, ["x"])
    assert text.count("*") == 40
    assert scalar_expression(expr, ["x"], ["float32"]).count("*") == 40


def test_arguments_are_evaluated_once():
    expr = call("add", call("mul", Arg(0), Arg(0)), Arg(0))
    assert vector_expression(expr, ["load(p)"]).count("load(p)") == 1


def test_functions_come_once_with_what_they_need():
    text = vmath(call("sigmoid", call("exp", Arg(0))), call("sigmoid", Arg(0)))
    assert text.count("vf v_exp(vf x) {") == 1
    assert text.index("vf v_exp(") < text.index("vf v_sigmoid(")
    assert vmath(call("add", Arg(0), 1.0)) == ""


def test_only_float32_in_vectors():
    with pytest.raises(ValueError, match="not an expression over float32"):
        vector_expression(Cast("int64", Arg(0)), ["x"])


def test_double_to_half_rounds_once():
    """Through float32, numbers just past the middle between two halves would be rounded twice."""
    x = np.array(
        [1 + 2**-11 + 2**-40, 1 + 3 * 2**-11 - 2**-40, 65519.999999, 65520, 1e300, 0.1, 6e-8,
         2**-25, 2**-25 + 2**-60, -1e-50, np.inf, -np.inf, np.nan, -2049.5]
    )  # fmt: skip
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16)
    problem = PointwiseProblem(
        (plain(x.shape, "float64"), plain(x.shape, "float16")), expr=Cast("float16", Arg(0))
    )
    check(cpu, problem, [x], expected, tolerance=0)
