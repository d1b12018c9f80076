"""Batched matrix product with an epilogue."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr, count_ops
from enginesmith.kernels.base import Cost, Problem, add, mul
from enginesmith.kernels.nest import RESULT, product, traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMulProblem(Problem):
    """y = epilogue(a @ b, extras...).

    operands: a (..., M, K), b (..., K, N), extras (..., M, N), y (..., M, N), all plain, of one
    rank, with strides 0 where broadcast; a transposed operand is a matter of its strides. epilogue:
    Arg(0) is the product, Arg(k) is operands[1 + k]. A constant b is packed at build time.
    tf32: float32 may be rounded to TF32 before it is multiplied (on GPUs).
    """

    epilogue: Expr = RESULT
    tf32: bool = False


def cost(problem: Problem) -> Cost:
    """Multiply-adds and the epilogue's operations; each operand moved once."""
    assert isinstance(problem, MatMulProblem)
    y, k = problem.operands[-1], problem.operands[0].shape[-1]
    elements = product(y.shape)
    work = add(mul(2, k, elements), mul(count_ops(problem.epilogue), elements))
    return Cost(work, traffic(problem))
