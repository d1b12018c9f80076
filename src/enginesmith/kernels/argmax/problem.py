"""ArgMax and ArgMin."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Cost, Problem
from enginesmith.kernels.nest import product, traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgMaxProblem(Problem):
    """operands: x, y (int64), plain; y's shape is x's with `axis` of size 1 or absent.
    minimum: of the smallest element. last: of the last of equals, not the first."""

    axis: int
    minimum: bool = False
    last: bool = False


def cost(problem: Problem) -> Cost:
    """Work and traffic, see `Family`."""
    return Cost(product(problem.operands[0].shape), traffic(problem))
