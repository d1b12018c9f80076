"""Fold a tensor along some axes."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Problem
from enginesmith.kernels.nest import RESULT

KINDS = ("sum", "mean", "max", "min", "prod")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceProblem(Problem):
    """operands: inputs of one shape (strides 0 where broadcast), then y, whose shape is the inputs'
    with the reduced axes of size 1 or absent. y = epilogue(fold of prologue(inputs) over `axes`).

    prologue: over the inputs; epilogue: Arg(0) is the fold. A sum of squares has prologue
    mul(Arg(0), Arg(0)), its root as an l2 norm an epilogue sqrt(Arg(0)). Blocked: axes (2, 3) only.
    """

    kind: str
    axes: tuple[int, ...]
    prologue: Expr = RESULT
    epilogue: Expr = RESULT
