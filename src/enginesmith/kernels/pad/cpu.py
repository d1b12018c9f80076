"""Padding for CPUs: rows with the inside copied and the borders looked up."""

from __future__ import annotations

from enginesmith.codegen.expressions import C_TYPES, scalar_expression
from enginesmith.ir.expr import Const
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
    axes_of,
    indices,
    nothing_packed,
    offset,
    pointer,
    product,
    rows_text,
    signature,
    split,
)
from enginesmith.kernels.pad.problem import PadProblem
from enginesmith.kernels.pad.problem import cost as pad_cost
from enginesmith.plan.target import Target

_MODES = {
    "constant": "i",
    "edge": "imax(0, imin(i, n - 1))",
    "wrap": "((i % n) + n) % n",
    "reflect": "NAME_reflect(i, n)",
}
"""Where output i (counted from the first input element) is read; outside 0 .. n - 1: the value."""

_REFLECT = """
INLINE int64_t NAME_reflect(int64_t i, int64_t n) {
  if (n == 1) return 0;
  i = i < 0 ? -i : i;
  i %= 2 * (n - 1);
  return i < n ? i : 2 * (n - 1) - i;
}
"""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, PadProblem) or problem.mode not in _MODES:
        return "not a padding"
    x, y = problem.operands
    if x.block or y.block or x.dtype != y.dtype or len(x.strides) != len(y.strides):
        return "operands must be plain, of one rank and dtype"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("rows"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, PadProblem)
    x, y = problem.operands
    axes = axes_of(y.shape, [x, y]) or [Axis(1, (0, 0))]
    outer, row = axes[:-1], axes[-1]
    names = indices(outer)
    kind = C_TYPES[x.dtype]
    value = scalar_expression(Const(problem.value, x.dtype), (), ())
    body = pointer("y", 1, y.dtype, offset(names, [a.strides[1] for a in outer]), const=False)
    body += f"const {kind} value = {value};\nint inside = 1; int64_t base = 0;\n"
    for k, name in enumerate(names):
        body += (
            f"{{ const int64_t at = NAME_at({name} - {c_size(problem.before[k])}, "
            f"{c_size(x.shape[k])}); inside &= at >= 0 && at < {c_size(x.shape[k])}; "
            f"base += at * {c_size(x.strides[k])}; }}\n"
        )
    s, t = c_size(row.strides[0]), c_size(row.strides[1])
    n = c_size(x.shape[-1]) if x.shape else "1"
    before = c_size(problem.before[-1]) if problem.before else "0"
    outside = f"at >= 0 && at < {n} ? x[at * {s}] : value"
    look = f"{{ const int64_t at = NAME_at(j - {before}, {n}); y[j * {t}] = {outside}; }}"
    body += f"""if (!inside) {{ for (int64_t j = j0; j < j1; ++j) y[j * {t}] = value; }}
else {{
const {kind} *x = (const {kind} *)p[0] + base;
const int64_t first = imax(j0, imin({before}, j1)), last = imax(first, imin({before} + {n}, j1));
for (int64_t j = j0; j < first; ++j) {look}
for (int64_t j = first; j < last; ++j) y[j * {t}] = x[(j - {before}) * {s}];
for (int64_t j = last; j < j1; ++j) {look}
}}
"""
    cut = split(problem, product([a.size for a in outer]), row.size, CHUNK)
    text = _REFLECT if problem.mode == "reflect" else ""
    text += f"INLINE int64_t NAME_at(int64_t i, int64_t n) {{ return {_MODES[problem.mode]}; }}\n"
    text += signature("NAME", problem) + rows_text(outer, cut, body, row.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


pack = nothing_packed
cost = pad_cost
