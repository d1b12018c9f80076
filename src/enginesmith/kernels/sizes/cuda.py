"""Sizes as data on GPUs: one tactic."""

from __future__ import annotations

from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import Values, kernel_head
from enginesmith.kernels.nest import nothing_packed
from enginesmith.kernels.sizes.problem import SizesProblem
from enginesmith.kernels.sizes.problem import cost as sizes_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    return None if problem.operands[0].dtype == "int64" else "not int64"


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("stores"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`. One thread stores all: there are about as many sizes as a tensor has axes."""
    assert isinstance(problem, SizesProblem)
    values = Values()
    stride = values.text(problem.operands[0].strides[0])
    stores = "".join(
        f"  p0[{i} * {stride}] = (int64_t){values.text(v)};\n" for i, v in enumerate(problem.values)
    )
    text = kernel_head(problem, values, 32)
    text += f"  grid_launch();\n  grid_wait();\n  if (threadIdx.x != 0) return;\n{stores}}}\n"
    return CudaSource(text, (Launch((1, 1, 1), 32, values.launch),))


pack = nothing_packed
cost = sizes_cost
