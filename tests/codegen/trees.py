"""Expression trees and integer cases that the tests of both dialects share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from enginesmith.ir.expr import Arg, Call, Cast, Const, call

LEAVES = st.sampled_from([Arg(0), Arg(1), Arg(2), Const(0.5), Const(-2.0)])
UNARY = ("neg", "abs", "sign", "tanh", "sigmoid", "floor", "ceil", "round", "sin", "erf")
BINARY = ("add", "sub", "mul", "max", "min")
LOGIC = ("and", "or", "xor")


def grow(child):
    compare = st.builds(
        lambda op, a, b: Call(op, (a, b)), st.sampled_from(["lt", "le", "eq"]), child, child
    )
    logic = st.one_of(
        compare,
        st.builds(lambda a: Call("not", (a,)), compare),
        st.builds(lambda op, a, b: Call(op, (a, b)), st.sampled_from(LOGIC), compare, compare),
    )
    return st.one_of(
        st.builds(call, st.sampled_from(UNARY), child),
        st.builds(call, st.sampled_from(BINARY), child, child),
        st.builds(lambda c, a, b: Call("where", (c, a, b)), logic, child, child),
        st.builds(lambda c: Cast("float32", c), logic),
    )


INTEGER = [
    ("div", np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 1])),
    ("mod", np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 1])),
    ("fmod", np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 1])),
    ("pow", np.array([2, -3, 7, 0, 5]), np.array([10, 3, 0, 0, 1])),
    ("max", np.array([2, -3, 7, 0, 5]), np.array([10, 3, 0, 0, 1])),
]
