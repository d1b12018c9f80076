"""CumSum."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Cost, Problem
from enginesmith.kernels.nest import product, traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class CumSumProblem(Problem):
    """operands: x, y, plain, of one shape and dtype (GPUs: or both floating-point). exclusive: the
    element itself is left out; reverse: summed from the end."""

    axis: int
    exclusive: bool = False
    reverse: bool = False


def cost(problem: Problem) -> Cost:
    """Work and traffic, see `Family`."""
    return Cost(product(problem.operands[-1].shape), traffic(problem))
