"""Softmax for GPUs: a row kernel of two folds, the maximum and the sum of exponentials."""

from __future__ import annotations

from enginesmith.codegen.cuda_expressions import cuda_expression, cuda_functions
from enginesmith.ir.expr import Arg, Const, Expr, call, dtype_of
from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.cuda_rows import Fold, RowKernel, emit_rows, row_kernel
from enginesmith.kernels.cuda_rows_search import row_tactics
from enginesmith.kernels.nest import axes_of, nothing_packed
from enginesmith.kernels.softmax.problem import SoftmaxProblem
from enginesmith.kernels.softmax.problem import cost as softmax_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, SoftmaxProblem):
        return "not a softmax"
    rank = len(problem.operands[-1].strides)
    if any(o.block or len(o.strides) != rank for o in problem.operands):
        return "operands must be plain and of one rank"
    if "float" not in dtype_of(problem.prologue, [o.dtype for o in problem.operands[:-1]]):
        return "softmax of integers"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return row_tactics(_kernel(problem), target)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    return emit_rows(_kernel(problem), tactic)


def _kernel(problem: Problem) -> RowKernel:
    assert isinstance(problem, SoftmaxProblem)
    axes = axes_of(problem.operands[-1].shape, problem.operands)
    row = axes.pop(problem.axis % len(axes))
    kind = dtype_of(problem.prologue, [o.dtype for o in problem.operands[:-1]])
    fast = problem.operands[-1].dtype in ("float16", "bfloat16")

    def text(tree: Expr, arg: str) -> str:
        return cuda_expression(tree, [arg], [kind], fast)

    power = text(call("exp", Arg(0)), "(x - top)")
    total = text(call("div", Const(1.0, kind), Arg(0)), "t")
    result = f"{power} * total"
    if problem.log:
        total, result = text(call("log", Arg(0)), "t"), "x - top - total"
    folds = [Fold("top", "max", "x"), Fold("total", "sum", power, total)]
    functions = cuda_functions(call("exp", Arg(0)), call("log", Arg(0)))
    return row_kernel(problem, axes, [row], problem.prologue, folds, result, functions=functions)


pack = nothing_packed
cost = softmax_cost
