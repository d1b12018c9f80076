"""Arithmetic sequences for GPUs."""

from __future__ import annotations

from enginesmith.codegen.cuda_expressions import load_value, store_value, value_type
from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import Values, grid_of, kernel_head
from enginesmith.kernels.nest import nothing_packed
from enginesmith.kernels.range.problem import RangeProblem
from enginesmith.kernels.range.problem import cost as range_cost
from enginesmith.plan.target import Target

THREADS = 256


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, RangeProblem):
        return "not a range"
    if len({o.dtype for o in problem.operands}) != 1:
        return "operands differ in dtype"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("count"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    y, values = problem.operands[-1], Values()
    kind = value_type(y.dtype)
    start, delta = load_value(y.dtype, "*p0"), load_value(y.dtype, "*p1")
    value = store_value(y.dtype, f"({kind})({start} + ({kind})i * {delta})")
    text = f"""  grid_launch();
  grid_wait();
  const int i = blockIdx.x * {THREADS} + threadIdx.x;
  if (i < {values.value(y.shape[0])}) p2[i * {values.text(y.strides[0])}] = {value};
}}
"""
    text = kernel_head(problem, values, THREADS) + text
    return CudaSource(text, (Launch(grid_of(y.shape[0], THREADS), THREADS, values.launch),))


pack = nothing_packed
cost = range_cost
