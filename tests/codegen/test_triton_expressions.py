"""Expressions as Triton's Python: what is written, and what is refused. What it computes is tested
with kernels (tests/kernels/cuda/test_triton.py)."""

from __future__ import annotations

import pytest

from enginesmith.codegen.triton_expressions import triton_lines, why_not
from enginesmith.ir.expr import Arg, Call, Cast, Const, Expr, call, relu

X = Arg(0)


def test_equal_steps_are_computed_once() -> None:
    """Also if they are different objects."""
    twice = call("mul", call("add", X, Arg(1)), call("neg", call("add", X, Arg(1))))
    assert triton_lines(twice, ["x", "bias"]) == (
        ["t0 = x + bias", "t1 = -t0", "t2 = t0 * t1"],
        "t2",
    )


def test_constants() -> None:
    """They are rounded to float32; casts between floats are none."""
    lines, _ = triton_lines(call("add", Cast("float16", X), Const(0.1)), ["x"])
    assert lines == ["t0 = x + 0.10000000149011612"]
    assert triton_lines(relu(X), ["x"])[0] == [
        "t0 = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)"
    ]
    assert triton_lines(call("mul", X, -1e300), ["x"])[0] == ['t0 = x * float("-inf")']
    assert triton_lines(call("mul", X, -2.0), ["x"])[0] == ["t0 = x * (-2.0)"]
    assert triton_lines(X, ["x"]) == ([], "x")


@pytest.mark.parametrize(
    ("expr", "dtypes", "reason"),
    [
        (call("add", X, Arg(1)), ("float32", "int32"), "int32"),
        (call("where", Arg(1), X, 0.0), ("float32", "bool"), "reads conditions"),
        (Cast("float32", call("lt", X, 0.0)), ("float32",), "casts conditions"),
        (Cast("int64", X), ("float32",), "int64"),
        (call("mod", X, 2.0), ("float32",), "has mod"),
        (call("pow", X, 2.5), ("float32",), "has pow"),
        (call("pow", X, Arg(1)), ("float32", "float16"), "has pow"),
        (call("mul", X, call("exp", 1.0)), ("float32",), "constants alone"),
    ],
)
def test_refusals(expr: Expr, dtypes: tuple[str, ...], reason: str) -> None:
    assert reason in (why_not(expr, dtypes) or "")


def test_half_precision_is_read() -> None:
    expr = Call("where", (call("le", Arg(1), 0.0), X, call("pow", X, 2.0)))
    assert why_not(expr, ("float32", "bfloat16")) is None
