"""Softmax and its logarithm along one axis."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr, count_ops
from enginesmith.kernels.base import Cost, Problem, mul
from enginesmith.kernels.nest import RESULT, traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxProblem(Problem):
    """operands: inputs, then y, of one shape, plain (strides 0 where broadcast), float32.
    y = softmax(prologue(inputs)) along `axis`, or its logarithm."""

    axis: int
    log: bool = False
    prologue: Expr = RESULT


def cost(problem: Problem) -> Cost:
    """See `Family`; an exp counts as 10."""
    assert isinstance(problem, SoftmaxProblem)
    work = 13 + count_ops(problem.prologue)
    return Cost(mul(work, *problem.operands[-1].shape), traffic(problem))
