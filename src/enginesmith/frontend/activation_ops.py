"""Importers of activations: expression trees with the parameters as constants of the input's
type."""

from __future__ import annotations

import math
from collections.abc import Callable

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.elementwise_ops import scalar
from enginesmith.frontend.node import Invalid, OnnxNode
from enginesmith.ir.expr import Arg, Call, Const, Expr
from enginesmith.ir.graph import Value

Importer = Callable[[GraphBuilder, OnnxNode], Value]
X = Arg(0)


class Scalars:
    """Writes trees: `s("add", x, 1)` with numbers as constants of `dtype`; `s.n` is the node."""

    def __init__(self, n: OnnxNode) -> None:
        self.n = n
        self.dtype = n.value(0).dtype

    def __call__(self, op: str, *args: Expr | float) -> Call:
        leaves = (scalar(a, self.dtype) if isinstance(a, int | float) else a for a in args)
        return Call(op, tuple(leaves))

    def parameter(self, name: str, default: float) -> Const:
        """A float attribute."""
        return scalar(self.n.number(name, default), self.dtype)


def activation(tree: Callable[[Scalars], Expr]) -> Importer:
    """The importer of an operator that is `tree` of its only input."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        return b.pointwise(tree(Scalars(n)), n.value(0))

    return importer


def unary(op: str) -> Importer:
    """An operator that is one pointwise operator."""
    return activation(lambda s: Call(op, (X,)))


def relu(s: Scalars) -> Expr:
    return s("max", X, 0)


def leaky_relu(s: Scalars) -> Expr:
    return s("where", s("lt", X, 0), s("mul", X, s.parameter("alpha", 0.01)), X)


def thresholded_relu(s: Scalars) -> Expr:
    return s("where", s("lt", s.parameter("alpha", 1.0), X), X, 0)


def elu(s: Scalars) -> Expr:
    below = s("mul", s.parameter("alpha", 1.0), s("sub", s("exp", X), 1))
    return s("where", s("lt", X, 0), below, X)


def celu(s: Scalars) -> Expr:
    alpha = s.parameter("alpha", 1.0)
    below = s("mul", alpha, s("sub", s("exp", s("div", X, alpha)), 1))
    return s("add", s("max", X, 0), s("min", below, 0))


def selu(s: Scalars) -> Expr:
    alpha = s.parameter("alpha", 1.67326319217681884765625)
    gamma = s.parameter("gamma", 1.05070102214813232421875)
    below = s("sub", s("mul", alpha, s("exp", X)), alpha)
    return s("mul", gamma, s("where", s("le", X, 0), below, X))


def hard_sigmoid(s: Scalars) -> Expr:
    line = s("add", s("mul", X, s.parameter("alpha", 0.2)), s.parameter("beta", 0.5))
    return s("min", s("max", line, 0), 1)


def hard_swish(s: Scalars) -> Expr:
    gate = s("min", s("max", s("add", s("mul", X, 1 / 6), 0.5), 0), 1)
    return s("mul", X, gate)


def swish(s: Scalars) -> Expr:
    alpha = s.n.number("alpha", 1.0)
    return s("mul", X, s("sigmoid", X if alpha == 1 else s("mul", X, alpha)))


def softplus_tree(s: Scalars) -> Expr:
    """log(1 + exp(x)) without overflow."""
    return s("add", s("max", X, 0), s("log", s("add", s("exp", s("neg", s("abs", X))), 1)))


def softsign(s: Scalars) -> Expr:
    return s("div", X, s("add", s("abs", X), 1))


def mish(s: Scalars) -> Expr:
    return s("mul", X, s("tanh", softplus_tree(s)))


def gelu(s: Scalars) -> Expr:
    kind = s.n.text("approximate", "none")
    if kind == "tanh":
        cube = s("mul", s("mul", X, X), X)
        inner = s("mul", math.sqrt(2 / math.pi), s("add", X, s("mul", 0.044715, cube)))
        bell = s("tanh", inner)
    elif kind == "none":
        bell = s("erf", s("mul", X, math.sqrt(0.5)))
    else:
        raise Invalid(f"the attribute approximate is {kind!r}, not none or tanh")
    return s("mul", s("mul", 0.5, X), s("add", bell, 1))


def shrink(s: Scalars) -> Expr:
    lambd, bias = s.parameter("lambd", 0.5), s.parameter("bias", 0.0)
    above = s("where", s("lt", lambd, X), s("sub", X, bias), 0)
    return s("where", s("lt", X, s("neg", lambd)), s("add", X, bias), above)


def tangent(s: Scalars) -> Expr:
    return s("div", s("sin", X), s("cos", X))


def hyperbolic_sine(s: Scalars) -> Expr:
    return s("mul", 0.5, s("sub", s("exp", X), s("exp", s("neg", X))))


def hyperbolic_cosine(s: Scalars) -> Expr:
    return s("mul", 0.5, s("add", s("exp", X), s("exp", s("neg", X))))


def inverse_hyperbolic_sine(s: Scalars) -> Expr:
    size = s("abs", X)
    return s("mul", s("sign", X), s("log", s("add", size, s("sqrt", s("add", s("mul", X, X), 1)))))


def inverse_hyperbolic_cosine(s: Scalars) -> Expr:
    return s("log", s("add", X, s("sqrt", s("sub", s("mul", X, X), 1))))


def inverse_hyperbolic_tangent(s: Scalars) -> Expr:
    return s("mul", 0.5, s("log", s("div", s("add", 1, X), s("sub", 1, X))))


def prelu(b: GraphBuilder, n: OnnxNode) -> Value:
    """where(x < 0, slope * x, x); the slope broadcasts to x (before opset 7: one per channel)."""
    x, slope = n.value(0), n.value(1)
    if n.opset < 7 and slope.type.rank == 1:
        slope = b.reshape(slope, (*slope.shape, *(1,) * (x.type.rank - 2)))
    below = Call("mul", (Arg(1), X))
    return b.pointwise(Call("where", (Call("lt", (X, scalar(0, x.dtype))), below, X)), x, slope)
