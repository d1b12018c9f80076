"""Running sums for CPUs: one line along the axis at a time."""

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
from enginesmith.kernels.cumsum.problem import CumSumProblem
from enginesmith.kernels.cumsum.problem import cost as cumsum_cost
from enginesmith.kernels.nest import (
    CHUNK,
    Axis,
    axes_of,
    collapse,
    indices,
    nothing_packed,
    offset,
    pointer,
    product,
    rows_text,
    signature,
    split,
)
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, CumSumProblem):
        return "not a running sum"
    x, y = problem.operands
    if x.block or y.block or x.dtype != y.dtype:
        return "operands must be plain and of one dtype"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("lines"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, CumSumProblem)
    x, y = problem.operands
    axes = axes_of(y.shape, problem.operands)
    line = axes.pop(problem.axis % len(axes))
    outer = collapse(axes or [Axis(1, (0, 0))])
    names = indices(outer)
    kind = "float" if x.dtype == "float16" else C_TYPES[x.dtype]
    x_at, y_at = (offset(names, [a.strides[k] for a in outer]) for k in (0, 1))
    n, s, t = c_size(line.size), c_size(line.strides[0]), c_size(line.strides[1])
    index = f"{n} - 1 - k" if problem.reverse else "k"
    steps = f"sum += x[i * {s}]; y[i * {t}] = sum;"
    if problem.exclusive:
        steps = f"const {kind} v = x[i * {s}]; y[i * {t}] = sum; sum += v;"
    body = pointer("x", 0, x.dtype, x_at) + pointer("y", 1, y.dtype, y_at, const=False)
    body += (
        f"{kind} sum = 0;\n"
        f"for (int64_t k = 0; k < {n}; ++k) {{ const int64_t i = {index}; {steps} }}\n"
    )
    chunk = max(1, CHUNK // 4 // max(1, problem.typical(line.size)))
    cut = split(problem, product([a.size for a in outer]), 1, chunk)
    text = signature("NAME", problem) + rows_text(outer, cut, body, 1) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


pack = nothing_packed
cost = cumsum_cost
