"""Normalization for GPUs: a row kernel of two folds, the mean and the mean square of what differs
from it."""

from __future__ import annotations

from enginesmith.codegen.cuda_expressions import cuda_float
from enginesmith.ir.expr import dtype_of
from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.cuda_rows import Fold, RowKernel, emit_rows, row_kernel
from enginesmith.kernels.cuda_rows_search import row_tactics
from enginesmith.kernels.nest import axes_of, nothing_packed
from enginesmith.kernels.normalization.problem import NormalizationProblem
from enginesmith.kernels.normalization.problem import cost as normalization_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, NormalizationProblem):
        return "not a normalization"
    rank = len(problem.operands[-1].strides)
    if any(o.block or len(o.strides) != rank for o in problem.operands):
        return "operands must be plain and of one rank"
    if "float" not in dtype_of(problem.prologue, [o.dtype for o in problem.operands[:-1]]):
        return "normalization of integers"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return row_tactics(_kernel(problem), target)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    return emit_rows(_kernel(problem), tactic)


def _kernel(problem: Problem) -> RowKernel:
    assert isinstance(problem, NormalizationProblem)
    axes = axes_of(problem.operands[-1].shape, problem.operands)
    folded = sorted(a % len(axes) for a in problem.axes)
    kept = [a for k, a in enumerate(axes) if k not in folded]
    kind = dtype_of(problem.prologue, [o.dtype for o in problem.operands[:-1]])
    eps = cuda_float(problem.eps, kind)
    scale = f"1 / sqrt(t * share + {eps})" if kind == "float64" else (f"rsqrtf(t * share + {eps})")
    if problem.rms:
        folds, result = [Fold("scale", "sum", "x * x", scale)], "x * scale"
    else:
        folds = [
            Fold("mean", "sum", "x", "t * share"),
            Fold("scale", "sum", "(x - mean) * (x - mean)", scale),
        ]
        result = "(x - mean) * scale"
    return row_kernel(
        problem, kept, [axes[k] for k in folded], problem.prologue, folds, result,
        problem.epilogue, problem.inputs - 1,
    )  # fmt: skip


pack = nothing_packed
cost = normalization_cost
