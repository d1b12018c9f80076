"""What is left of shape arithmetic that reaches data: sizes written into a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Cost, Problem, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class SizesProblem(Problem):
    """One operand: y (n,), int64, plain. y[i] = values[i]."""

    values: tuple[Size, ...]


def cost(problem: Problem) -> Cost:
    """Work and traffic, see `Family`."""
    assert isinstance(problem, SizesProblem)
    return Cost(0, 8 * len(problem.values))
