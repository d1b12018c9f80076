"""Arithmetic sequences for CPUs."""

from __future__ import annotations

from enginesmith.codegen.expressions import C_TYPES
from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Tactic,
    c_size,
    tactic,
)
from enginesmith.kernels.nest import (
    nothing_packed,
    pointer,
    rows_text,
    signature,
    split,
)
from enginesmith.kernels.range.problem import RangeProblem
from enginesmith.kernels.range.problem import cost as range_cost
from enginesmith.plan.target import Target


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


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    y = problem.operands[-1]
    kind = C_TYPES[y.dtype]
    body = pointer("start", 0, y.dtype, "0") + pointer("delta", 1, y.dtype, "0")
    body += pointer("y", 2, y.dtype, "0", const=False)
    body += (
        f"const {kind} a = *start, b = *delta;\n"
        f"for (int64_t j = j0; j < j1; ++j) y[j * {c_size(y.strides[0])}] = a + ({kind})j * b;\n"
    )
    cut = split(problem, 1, y.shape[0])
    text = signature("NAME", problem) + rows_text([], cut, body, y.shape[0]) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


pack = nothing_packed
cost = range_cost
