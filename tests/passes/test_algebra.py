"""Simplification of trees: the forms exporters write become the canonical ones, values stay."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginesmith.ir.expr import (
    Arg,
    Call,
    Cast,
    Const,
    Expr,
    call,
    clip,
    dtype_of,
    evaluate,
)
from enginesmith.passes.algebra import simplify

X, Y = Arg(0), Arg(1)
SIXTH = float(np.float32(1) / np.float32(6))
HALF_SQRT = 0.7071067811865476


def mul(*args: Expr | float) -> Expr:
    return call("mul", *args)


def add(*args: Expr | float) -> Expr:
    return call("add", *args)


HARD_SIGMOID = f"min(max(add(mul($0, {SIXTH}), 0.5), 0.0), 1.0)"

CASES = {
    "x*1": (mul(X, 1.0), "$0"),
    "x+0": (add(0.0, X), "$0"),
    "x/1": (call("div", X, 1.0), "$0"),
    "x-0": (call("sub", X, 0.0), "$0"),
    "sums merge": (add(add(X, 1.0), 2.0), "add($0, 3.0)"),
    "factors merge": (mul(4.0, mul(X, 0.5)), "mul($0, 2.0)"),
    "division": (call("div", X, 4.0), "mul($0, 0.25)"),
    "no division by zero": (call("div", X, 0.0), "div($0, 0.0)"),
    "no overflow": (mul(mul(X, 1e30), 1e30), "mul(mul($0, 1e+30), 1e+30)"),
    "square": (call("pow", X, 2.0), "mul($0, $0)"),
    "cube": (call("pow", X, 3.0), "mul($0, mul($0, $0))"),
    "root": (call("pow", X, 0.5), "sqrt($0)"),
    "inverse root": (call("pow", X, -0.5), "div(1.0, sqrt($0))"),
    "inverse": (mul(Y, call("div", 1.0, X)), "div($1, $0)"),
    "double negation": (call("neg", call("neg", X)), "$0"),
    "minus": (add(X, mul(Y, -1.0)), "sub($0, $1)"),
    "relu twice": (call("max", call("max", X, 0.0), 0.0), "max($0, 0.0)"),
    "clip the other way": (
        call("max", call("min", X, 6.0), 0.0),
        "min(max($0, 0.0), 6.0)",
    ),
    "clips merge": (clip(clip(X, -1.0, 8.0), 0.0, 6.0), "min(max($0, 0.0), 6.0)"),
    "sigmoid": (call("div", 1.0, add(1.0, call("exp", call("neg", X)))), "sigmoid($0)"),
    "silu": (call("div", X, add(1.0, call("exp", call("neg", X)))), "mul($0, sigmoid($0))"),
    "hard sigmoid": (call("div", clip(add(X, 3.0), 0.0, 6.0), 6.0), HARD_SIGMOID),
    "hard swish 1": (
        call("div", mul(X, clip(add(X, 3.0), 0.0, 6.0)), 6.0),
        f"mul($0, {HARD_SIGMOID})",
    ),
    "hard swish 2": (
        mul(X, clip(add(call("div", X, 6.0), 0.5), 0.0, 1.0)),
        f"mul($0, {HARD_SIGMOID})",
    ),
    "hard swish 3": (
        mul(mul(X, SIXTH), clip(add(X, 3.0), 0.0, 6.0)),
        f"mul($0, {HARD_SIGMOID})",
    ),
    "gelu": (
        mul(mul(X, add(call("erf", mul(X, HALF_SQRT)), 1.0)), 0.5),
        "mul($0, add(mul(erf(mul($0, 0.7071067811865476)), 0.5), 0.5))",
    ),
    "gelu 2": (
        mul(mul(X, 0.5), add(1.0, call("erf", call("div", X, 2**0.5)))),
        "mul($0, add(mul(erf(mul($0, 0.7071067690849304)), 0.5), 0.5))",
    ),
    "tanh gelu": (
        mul(
            mul(X, 0.5),
            add(call("tanh", mul(add(X, mul(call("pow", X, 3.0), 0.044715)), 0.7978846)), 1.0),
        ),
        "mul($0, sigmoid(mul(add($0, mul(mul($0, mul($0, $0)), 0.044715)), 1.5957692)))",
    ),
    "where": (Call("where", (Const(True, "bool"), X, Y)), "$0"),
    "cast": (Cast("float32", Cast("float64", X)), "$0"),
}


@pytest.mark.parametrize("name", CASES)
def test_known_forms(name: str) -> None:
    tree, expected = CASES[name]
    got = simplify(tree, ("float32", "float32"))
    assert _rounded(str(got)) == _rounded(expected)


def _rounded(text: str) -> str:
    """The text with numbers to six digits."""
    return re.sub(r"\d+\.\d+(e[-+]\d+)?", lambda m: f"{float(m[0]):.6g}", text)


def test_narrowing_casts_stay() -> None:
    tree = Cast("float32", Cast("int64", X))
    assert simplify(tree, ("float32",)) == tree


def test_integers_are_left_exact() -> None:
    tree = Call("div", (X, Const(3, "int64")))
    assert simplify(tree, ("int64",)) == tree
    folded = simplify(Call("add", (Const(2, "int64"), Const(3, "int64"))), ())
    assert folded == Const(5, "int64")


_NUMBERS = st.sampled_from((-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 6.0, float("inf")))
_LEAVES = st.one_of(st.just(X), st.just(Y), _NUMBERS.map(Const))


def _trees(children: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    unary = st.sampled_from(("neg", "abs", "tanh", "sigmoid", "erf"))
    binary = st.sampled_from(("add", "sub", "mul", "div", "max", "min"))
    exponents = st.sampled_from((0.5, 1.0, 2.0, 3.0, -1.0))
    compare = st.sampled_from(("lt", "le", "eq"))
    return st.one_of(
        st.builds(lambda op, a: Call(op, (a,)), unary, children),
        st.builds(lambda op, a, b: Call(op, (a, b)), binary, children, children),
        st.builds(lambda a, n: Call("pow", (a, Const(n))), children, exponents),
        st.builds(
            lambda op, a, b, c, d: Call("where", (Call(op, (a, b)), c, d)),
            compare, children, children, children, children,
        ),
        st.builds(lambda a: Cast("float32", Cast("float64", a)), children),
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.recursive(_LEAVES, _trees, max_leaves=12), st.integers(0, 1 << 30))
def test_values_stay(tree: Expr, seed: int) -> None:
    """In double, so that only wrong rewrites differ. Values that are not finite, or that sit at a
    discontinuity, are left out."""
    types = ("float32", "float32")
    got = simplify(tree, types)
    assert dtype_of(got, types) == dtype_of(tree, types) == "float32"
    assert simplify(got, types) == got
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 2, (2, 64))
    with np.errstate(all="ignore"):
        wanted = [evaluate(_in_double(tree), [x * s, y * s]) for s in (1, 1 + 1e-9)]
        found = np.broadcast_to(evaluate(_in_double(got), [x, y]), x.shape)
    expected, nearby = (np.broadcast_to(w, x.shape) for w in wanted)
    with np.errstate(all="ignore"):
        size = np.abs(expected) + 1
        steady = (np.abs(expected - nearby) < 1e-5 * size) & np.isfinite(expected)
    steady &= np.abs(expected) < 1e6
    np.testing.assert_allclose(found[steady], expected[steady], rtol=1e-5, atol=1e-4)


def _in_double(expr: Expr) -> Expr:
    match expr:
        case Const(value, "float32"):
            return Const(value, "float64")
        case Cast("float32", x):
            return Cast("float64", _in_double(x))
        case Cast(dtype, x):
            return Cast(dtype, _in_double(x))
        case Call(op, operands):
            return Call(op, tuple(map(_in_double, operands)))
    return expr
