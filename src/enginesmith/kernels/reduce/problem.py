"""Fold a tensor along some axes."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr, count_ops
from enginesmith.kernels.base import Cost, Problem, mul
from enginesmith.kernels.nest import RESULT, Axis, traffic

KINDS = ("sum", "mean", "max", "min", "prod")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceProblem(Problem):
    """operands: inputs of one shape (strides 0 where broadcast), then y, whose shape is the inputs'
    with the reduced axes of size 1 or absent. y = epilogue(fold of prologue(inputs) over `axes`).

    prologue: over the inputs; epilogue: Arg(0) is the fold. A sum of squares has prologue
    mul(Arg(0), Arg(0)), its root as an l2 norm an epilogue sqrt(Arg(0)). Blocked: axes (2, 3) only.
    """

    kind: str
    axes: tuple[int, ...]
    prologue: Expr = RESULT
    epilogue: Expr = RESULT


def nest(problem: ReduceProblem) -> tuple[list[Axis], list[Axis]]:
    """The kept and the reduced axes of plain operands, none of them empty lists."""
    *inputs, y = problem.operands
    shape, folded = inputs[0].shape, sorted(problem.axes)
    kept_axes = [k for k in range(len(shape)) if k not in folded]
    same_rank = len(y.strides) == len(shape)
    kept = [
        Axis(shape[k], (*(o.strides[k] for o in inputs), y.strides[k if same_rank else at]))
        for at, k in enumerate(kept_axes)
    ]
    reduced = [Axis(shape[k], (*(o.strides[k] for o in inputs), 0)) for k in folded]
    nothing = [Axis(1, (0,) * len(problem.operands))]
    return kept or nothing, reduced or nothing


def cost(problem: Problem) -> Cost:
    """See `Family`."""
    assert isinstance(problem, ReduceProblem)
    work = 1 + count_ops(problem.prologue)
    return Cost(mul(work, *problem.operands[0].shape), traffic(problem))
