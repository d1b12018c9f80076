"""Element by element: one expression over operands of one logical shape."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr, count_ops
from enginesmith.kernels.base import Cost, Problem, mul
from enginesmith.kernels.nest import product, traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class PointwiseProblem(Problem):
    """operands: the inputs Arg(0), Arg(1), ... and the output, which has the type of `expr`.

    All plain, of one rank (0 included), inputs with strides 0 where broadcast; or the output
    blocked and each input blocked alike (strides 0 where broadcast over n, blocks, h or w) or plain
    with all strides 0 (a scalar).
    """

    expr: Expr


def cost(problem: Problem) -> Cost:
    """Work and traffic, see `Family`."""
    assert isinstance(problem, PointwiseProblem)
    return Cost(mul(count_ops(problem.expr), product(problem.operands[-1].shape)), traffic(problem))
