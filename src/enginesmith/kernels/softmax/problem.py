"""Softmax and its logarithm along one axis."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Problem
from enginesmith.kernels.nest import RESULT


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxProblem(Problem):
    """operands: inputs, then y, of one shape, plain (strides 0 where broadcast), float32.
    y = softmax(prologue(inputs)) along `axis`, or its logarithm."""

    axis: int
    log: bool = False
    prologue: Expr = RESULT
