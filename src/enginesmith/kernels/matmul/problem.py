"""Batched matrix product with an epilogue."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Problem
from enginesmith.kernels.nest import RESULT


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMulProblem(Problem):
    """y = epilogue(a @ b, extras...).

    operands: a (..., M, K), b (..., K, N), extras (..., M, N), y (..., M, N), all plain, of one
    rank, with strides 0 where broadcast; a transposed operand is a matter of its strides. epilogue:
    Arg(0) is the product, Arg(k) is operands[1 + k]. A constant b is packed at build time.
    """

    epilogue: Expr = RESULT
