"""Range."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Cost, Problem, mul
from enginesmith.kernels.nest import traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeProblem(Problem):
    """operands: start and delta (scalars: rank 0), y (rank 1), of one dtype: y[i] = start + i *
    delta."""


def cost(problem: Problem) -> Cost:
    """Work and traffic, see `Family`."""
    return Cost(mul(2, problem.operands[-1].shape[0]), traffic(problem))
