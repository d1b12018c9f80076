"""Softmax for CPUs: three passes over a row that stays in cache (maximum; exp and sum; scale).

The row lies in the lanes of vectors, or, where its elements are apart but those of neighbouring
rows are consecutive, LANES rows are done at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from enginesmith.codegen.expressions import vector_dtypes, vector_expression, vmath
from enginesmith.codegen.vmath import math_text
from enginesmith.ir.expr import args_of
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
    PARTIAL,
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
from enginesmith.kernels.softmax.problem import SoftmaxProblem
from enginesmith.kernels.softmax.problem import cost as softmax_cost
from enginesmith.plan.target import Target

ACROSS = """
#ifndef ES_across
#define ES_across
/* The sum and the maximum of all lanes. */
INLINE float across_sum(vf t) {
  for (int h = LANES / 2; h; h /= 2) for (int i = 0; i < h; ++i) t[i] += t[i + h];
  return t[0];
}
INLINE float across_max(vf t) {
  float m = t[0];
  for (int i = 1; i < LANES; ++i) m = t[i] > m ? t[i] : m;
  return m;
}
#endif
"""
"""C text: folds of a vector."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, SoftmaxProblem):
        return "not a softmax"
    rank = len(problem.operands[-1].strides)
    if any(o.block or len(o.strides) != rank for o in problem.operands):
        return "operands must be plain and of one rank"
    if not vector_dtypes(problem.prologue, [o.dtype for o in problem.operands[:-1]]) or (
        problem.operands[-1].dtype != "float32"
    ):
        return "operands must be float32"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("rows"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, SoftmaxProblem)
    axes = axes_of(problem.operands[-1].shape, problem.operands)
    row = axes.pop(problem.axis % len(axes))
    nothing = Axis(1, (0,) * len(problem.operands))
    kept = collapse(axes or [nothing])
    used = sorted(args_of(problem.prologue))
    last = kept[-1]
    side_by_side = (
        {last.strides[k] for k in used} <= {0, 1} and last.strides[-1] == 1 and last.size != 1
    )
    parameters = ", ".join(f"vf a{k}" for k in used)
    args = [f"a{k}" for k in range(len(problem.operands) - 1)]
    text = (
        PARTIAL + ACROSS + vmath(problem.prologue) + math_text(["v_exp", "v_log"])
        + f"INLINE vf NAME_f({parameters}) "
        f"{{ return {vector_expression(problem.prologue, args)}; }}\n"
    )  # fmt: skip
    cost = problem.typical(row.size)
    if side_by_side and row.strides[-1] != 1:
        outer, body = kept[:-1], _columns(problem, used, kept[:-1], last, row)
        inner, chunk = last.size, max(64, CHUNK // 4 // max(1, cost) // 16 * 16)
    else:
        outer, body = kept, _row(problem, used, kept, row)
        inner, chunk = 1, max(1, CHUNK // 4 // max(1, cost))
    cut = split(problem, product([a.size for a in outer]), inner, chunk)
    text += signature("NAME", problem) + rows_text(outer, cut, body, inner) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _pointers(problem: SoftmaxProblem, used: Sequence[int], outer: list[Axis]) -> str:
    names, last = indices(outer), len(problem.operands) - 1
    text = "".join(
        pointer(f"x{k}", k, "float32", offset(names, [a.strides[k] for a in outer])) for k in used
    )
    at = offset(names, [a.strides[-1] for a in outer])
    return text + pointer("y", last, "float32", at, const=False)


def _row(problem: SoftmaxProblem, used: Sequence[int], outer: list[Axis], row: Axis) -> str:
    def value(count: str) -> str:
        parts = []
        for k in used:
            s = row.strides[k]
            if s == 0:
                parts.append(f"splat(*x{k})")
            elif s == 1:
                parts.append(f"load_n(x{k} + i, {count})" if count else f"load(x{k} + i)")
            else:
                parts.append(f"gather_n(x{k} + i * {c_size(s)}, {c_size(s)}, {count or 'LANES'})")
        return f"NAME_f({', '.join(parts)})"

    n, rest = c_size(row.size), "n - i"
    s = c_size(row.strides[-1])
    if row.strides[-1] == 1:
        put, put_n, get, get_n = (
            "store(y + i, {})", "store_n(y + i, {}, n - i)", "load(y + i)", "load_n(y + i, n - i)"
        )  # fmt: skip
    else:
        put, put_n = (f"scatter_n(y + i * {s}, {s}, {{}}, {c})" for c in ("LANES", rest))
        get, get_n = (f"gather_n(y + i * {s}, {s}, {c})" for c in ("LANES", rest))
    tail = "lane_index() < (int32_t)(n - i)"
    lowest = "splat(-__builtin_inff())"
    text = _pointers(problem, used, outer) + f"const int64_t n = {n};\n"
    text += f"""vf hi = {lowest}, sum = {{0}}, more = {{0}};
int64_t i = 0;
for (; i + LANES <= n; i += LANES) hi = vmax(hi, {value("")});
if (i < n) hi = vmax(hi, vblend({tail}, {value(rest)}, {lowest}));
vf top = splat(across_max(hi));
"""
    if problem.log:
        return (
            text
            + f"""i = 0;
for (; i + LANES <= n; i += LANES) sum += v_exp({value("")} - top);
if (i < n) sum += vblend({tail}, v_exp({value(rest)} - top), more);
top += v_log(splat(across_sum(sum)));
for (i = 0; i + LANES <= n; i += LANES) {put.format(f"{value('')} - top")};
if (i < n) {put_n.format(f"{value(rest)} - top")};
"""
        )
    return (
        text
        + f"""i = 0;
for (; i + 2 * LANES <= n; i += LANES) {{
vf e = v_exp({value("")} - top); {put.format("e")}; sum += e;
i += LANES; e = v_exp({value("")} - top); {put.format("e")}; more += e;
}}
for (; i + LANES <= n; i += LANES) {{
vf e = v_exp({value("")} - top); {put.format("e")}; sum += e;
}}
if (i < n) {{
vf e = v_exp({value(rest)} - top);
{put_n.format("e")}; more += vblend({tail}, e, (vf){{0}});
}}
const vf scale = splat(1.f / across_sum(sum + more));
for (i = 0; i + LANES <= n; i += LANES) {put.format(f"{get} * scale")};
if (i < n) {put_n.format(f"{get_n} * scale")};
"""
    )


def _columns(
    problem: SoftmaxProblem, used: Sequence[int], outer: list[Axis], last: Axis, row: Axis
) -> str:
    """LANES neighbouring rows at once; `row` is walked element by element."""
    s = c_size(row.strides[-1])

    def passes(count: str) -> str:
        parts = []
        for k in used:
            at = f"x{k} + i * {c_size(row.strides[k])}"
            if last.strides[k] == 0:
                parts.append(f"splat(*({at}))")
            else:
                parts.append(f"load_n({at} + j, {count})" if count else f"load({at} + j)")
        value = f"NAME_f({', '.join(parts)})"
        put = (
            f"store_n(y + i * {s} + j, {{}}, {count})" if count else f"store(y + i * {s} + j, {{}})"
        )
        get = f"load_n(y + i * {s} + j, {count})" if count else f"load(y + i * {s} + j)"
        each = "for (int64_t i = 0; i < n; ++i) "
        head = f"vf top = splat(-__builtin_inff()), sum = {{0}};\n{each}top = vmax(top, {value});\n"
        if problem.log:
            return head + (
                f"{each}sum += v_exp({value} - top);\ntop += v_log(sum);\n"
                f"{each}{put.format(f'{value} - top')};\n"
            )
        return head + (
            f"{each}{{ vf e = v_exp({value} - top); {put.format('e')}; sum += e; }}\n"
            f"sum = 1.f / sum;\n{each}{put.format(f'{get} * sum')};\n"
        )

    return (
        _pointers(problem, used, outer)
        + f"const int64_t n = {c_size(row.size)};\nint64_t j = j0;\n"
        + f"for (; j + LANES <= j1; j += LANES) {{\n{passes('')}}}\n"
        + f"if (j < j1) {{\n{passes('j1 - j')}}}\n"
    )


pack = nothing_packed
cost = softmax_cost
