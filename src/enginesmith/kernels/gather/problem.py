"""Gather, GatherElements, GatherND, ScatterND and ScatterElements."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import ITEMSIZE, Cost, Problem, mul
from enginesmith.kernels.nest import traffic

KINDS = ("gather", "gather_elements", "gather_nd", "scatter_nd", "scatter_elements")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherProblem(Problem):
    """operands, all plain: data, indices (int64 or int32), for the scatters updates, then y.

    Shapes are ONNX's. Negative indices count from the end; those out of range read zeros, and write
    nothing. axis: of gather, *_elements. batch_dims: of gather_nd. reduction of the scatters: none
    (the last of several updates wins), add, mul, max or min.
    """

    kind: str
    axis: int = 0
    batch_dims: int = 0
    reduction: str = "none"


def cost(problem: Problem) -> Cost:
    """No arithmetic; what is read of data is as large as the result."""
    assert isinstance(problem, GatherProblem)
    if problem.kind.startswith("scatter"):
        return Cost(0, traffic(problem))
    y = problem.operands[-1]
    return Cost(0, mul(2 * ITEMSIZE[y.dtype], *y.shape))
