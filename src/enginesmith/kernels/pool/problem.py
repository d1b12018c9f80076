"""Pooling over the spatial axes (all after n and c)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Cost, Problem, mul
from enginesmith.kernels.nest import traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProblem(Problem):
    """operands: x (n, c, spatial...), what the epilogue reads besides, y (n, c, spatial...).

    kind: "max" or "average" (over the taps inside the input, with count_include_pad over those
    inside the padded input). pads: before each spatial axis, then after each. Output sizes are
    those of y, so ceil_mode needs no flag: taps past the end are left out. epilogue: Arg(0) is the
    result, Arg(k) operand k (strides 0 where broadcast).
    """

    kind: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    count_include_pad: bool = False
    epilogue: Expr | None = None


def cost(problem: Problem) -> Cost:
    """See `Family`."""
    assert isinstance(problem, PoolProblem)
    return Cost(mul(prod(problem.kernel), *problem.operands[-1].shape), traffic(problem))
