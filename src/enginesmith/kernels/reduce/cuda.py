"""Reductions for GPUs: a row kernel of one fold."""

from __future__ import annotations

from enginesmith.ir.expr import dtype_of
from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.cuda_rows import Fold, RowKernel, emit_rows, row_kernel
from enginesmith.kernels.cuda_rows_search import row_tactics
from enginesmith.kernels.nest import nothing_packed
from enginesmith.kernels.reduce.problem import KINDS, ReduceProblem, nest
from enginesmith.kernels.reduce.problem import cost as reduce_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ReduceProblem) or problem.kind not in KINDS:
        return "not a reduction"
    *inputs, y = problem.operands
    rank = len(inputs[0].strides)
    if any(o.block for o in problem.operands):
        return "operands must be plain"
    if len(y.strides) not in (rank, rank - len(problem.axes)):
        return "the output's rank does not fit the axes"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return row_tactics(_kernel(problem), target)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    return emit_rows(_kernel(problem), tactic)


def _kernel(problem: Problem) -> RowKernel:
    assert isinstance(problem, ReduceProblem)
    kept, reduced = nest(problem)
    integers = "float" not in dtype_of(problem.prologue, [o.dtype for o in problem.operands[:-1]])
    mean = "t / share" if integers else "t * share"
    finish = mean if problem.kind == "mean" else "t"
    fold = Fold("whole", problem.kind, "x", finish)
    return row_kernel(
        problem, kept, reduced, problem.prologue, [fold], "whole", problem.epilogue, each=False
    )


pack = nothing_packed
cost = reduce_cost
