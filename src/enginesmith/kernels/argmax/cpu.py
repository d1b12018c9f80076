"""ArgMax and ArgMin for CPUs: one line along the axis at a time."""

from __future__ import annotations

from enginesmith.codegen.expressions import C_TYPES
from enginesmith.kernels.argmax.problem import ArgMaxProblem
from enginesmith.kernels.argmax.problem import cost as argmax_cost
from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Tactic,
    c_size,
    tactic,
)
from enginesmith.kernels.nest import (
    CHUNK,
    Axis,
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
    if not isinstance(problem, ArgMaxProblem):
        return "not an argmax"
    x, y = problem.operands
    if x.block or y.block or y.dtype != "int64":
        return "operands must be plain, the result int64"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("lines"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, ArgMaxProblem)
    x, y = problem.operands
    rank = len(x.strides)
    axis = problem.axis % rank
    kept = [k for k in range(rank) if k != axis]
    same_rank = len(y.strides) == rank
    axes = [
        Axis(x.shape[k], (x.strides[k], y.strides[k if same_rank else at]))
        for at, k in enumerate(kept)
    ]
    outer = collapse(axes or [Axis(1, (0, 0))])
    names = indices(outer)
    x_at, y_at = (offset(names, [a.strides[k] for a in outer]) for k in (0, 1))
    sign = ("<" if problem.minimum else ">") + ("=" if problem.last else "")
    s = c_size(x.strides[axis])
    body = pointer("x", 0, x.dtype, x_at) + pointer("y", 1, "int64", y_at, const=False)
    body += (
        f"int64_t best = 0; {C_TYPES[x.dtype]} top = *x;\n"
        f"for (int64_t k = 1; k < {c_size(x.shape[axis])}; ++k)\n"
        f"if (x[k * {s}] {sign} top) {{ top = x[k * {s}]; best = k; }}\n*y = best;\n"
    )
    chunk = max(1, CHUNK // 2 // max(1, problem.typical(x.shape[axis])))
    cut = split(problem, product([a.size for a in outer]), 1, chunk)
    text = signature("NAME", problem) + rows_text(outer, cut, body, 1) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


pack = nothing_packed
cost = argmax_cost
