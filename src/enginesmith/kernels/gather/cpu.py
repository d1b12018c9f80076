"""Gathers and scatters for CPUs: one loop nest over (data, indices, result).

An element's index is a tuple of components; each is an entry of `indices` and steps along one axis
of `data`. Where the components do not change along the innermost axis, whole rows are copied.
"""

from __future__ import annotations

from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Size,
    Tactic,
    c_size,
    tactic,
)
from enginesmith.kernels.gather.nest import GatherNest, gather_nest
from enginesmith.kernels.gather.problem import KINDS, GatherProblem
from enginesmith.kernels.gather.problem import cost as gather_cost
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

_REDUCTIONS = {
    "none": "{x}",
    "add": "({y}) + ({x})",
    "mul": "({y}) * ({x})",
    "max": "({x}) > ({y}) ? ({x}) : ({y})",
    "min": "({x}) < ({y}) ? ({x}) : ({y})",
}


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, GatherProblem) or problem.kind not in KINDS:
        return "not a gather"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if problem.operands[1].dtype not in ("int64", "int32"):
        return f"indices of {problem.operands[1].dtype}"
    if problem.kind.endswith("_nd") and not isinstance(problem.operands[1].shape[-1], int):
        return "the length of the index tuples is not static"
    if problem.reduction not in _REDUCTIONS:
        return f"reduction {problem.reduction}"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("rows"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, GatherProblem)
    nest = gather_nest(problem)
    axes = collapse(nest.axes or [Axis(1, (0, 0, 0))])
    outer, row = axes[:-1], axes[-1]
    names = indices(outer)
    scatter = problem.kind.startswith("scatter")
    data, index = problem.operands[:2]
    last = len(problem.operands) - 1
    d, i, u = (offset(names, [a.strides[k] for a in outer]) for k in range(3))
    body = pointer("index", 1, index.dtype, i)
    body += pointer("x", last if scatter else 0, data.dtype, d, const=not scatter)
    body += pointer("y", 2, data.dtype, u, const=scatter)
    find = _find(nest, row)
    s, t = c_size(row.strides[0]), c_size(row.strides[2])
    place = f"x[at + j * {s}]"
    if scatter:
        value = _REDUCTIONS[problem.reduction].format(x=f"y[j * {t}]", y=place)
        step, miss = f"{place} = {value};", ""
    else:
        step, miss = f"y[j * {t}] = {place};", f"else y[j * {t}] = 0;"
    each = "for (int64_t j = j0; j < j1; ++j) "
    if row.strides[1] == 0:
        body += f"{find}if (ok) {each}{step}\n" + (f"else {each}y[j * {t}] = 0;\n" if miss else "")
    else:
        body += f"{each}{{\n{find}if (ok) {step} {miss}\n}}\n"
    cut = split(problem, product([a.size for a in outer]), row.size, CHUNK)
    text = signature("NAME", problem)
    if not scatter:
        text += rows_text(outer, cut, body, row.size) + "}\n"
        return KernelSource(text, (Phase(cut.tasks),))
    # Updates are applied in order by one thread, after all of data has been copied.
    tasks = f"begin = 0; end = {c_size(cut.tasks)};\n"
    text += tasks + rows_text(outer, cut, body, row.size) + "}\n"
    copy, copies = _copy(problem)
    return KernelSource(copy + text, (Phase(copies, "_copy"), Phase(1)))


def _find(nest: GatherNest, row: Axis) -> str:
    """C: `at`, the offset that the components select, and `ok`, whether they are in range."""
    text = "int64_t at = 0; int ok = 1;\n"
    step = "" if row.strides[1] == 0 else f" + j * {c_size(row.strides[1])}"
    for place, stride, size in nest.components:
        text += (
            f"{{ int64_t n = index[{c_size(place)}{step}]; n += n < 0 ? {c_size(size)} : 0; "
            f"ok &= n >= 0 && n < {c_size(size)}; at += n * {c_size(stride)}; }}\n"
        )
    return text


def _copy(problem: GatherProblem) -> tuple[str, Size]:
    """The phase that copies data to y, and its number of tasks."""
    data, y = problem.operands[0], problem.operands[-1]
    axes = collapse(axes_of(data.shape, [data, y]) or [Axis(1, (0, 0))])
    outer, row = axes[:-1], axes[-1]
    names = indices(outer)
    x_at, y_at = (offset(names, [a.strides[k] for a in outer]) for k in (0, 1))
    body = pointer("x", 0, data.dtype, x_at)
    body += pointer("y", len(problem.operands) - 1, y.dtype, y_at, const=False)
    s, t = (c_size(n) for n in row.strides)
    body += f"for (int64_t j = j0; j < j1; ++j) y[j * {t}] = x[j * {s}];\n"
    cut = split(problem, product([a.size for a in outer]), row.size, CHUNK)
    text = signature("NAME_copy", problem) + rows_text(outer, cut, body, row.size) + "}\n"
    return text, cut.tasks


pack = nothing_packed
cost = gather_cost
