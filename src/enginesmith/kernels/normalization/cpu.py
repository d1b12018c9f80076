"""Normalization for CPUs: a row at a time, in cache: mean, then variance, then the result."""

from __future__ import annotations

from enginesmith.codegen.expressions import c_float, vector_dtypes, vector_expression, vmath
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
from enginesmith.kernels.normalization.problem import NormalizationProblem
from enginesmith.kernels.normalization.problem import cost as normalization_cost
from enginesmith.kernels.softmax.cpu import ACROSS
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, NormalizationProblem):
        return "not a normalization"
    rank = len(problem.operands[-1].strides)
    if any(o.block or len(o.strides) != rank for o in problem.operands):
        return "operands must be plain and of one rank"
    types = [o.dtype for o in problem.operands]
    if set(types) != {"float32"} or not vector_dtypes(problem.prologue, types):
        return "operands must be float32"
    if len(_nest(problem)[1]) != 1:
        return "the normalized axes are not one row in memory"
    return None


def _nest(problem: NormalizationProblem) -> tuple[list[Axis], list[Axis]]:
    """The kept axes and the normalized ones."""
    axes = axes_of(problem.operands[-1].shape, problem.operands)
    folded = sorted(a % len(axes) for a in problem.axes)
    nothing = [Axis(1, (0,) * len(problem.operands))]
    kept = [a for k, a in enumerate(axes) if k not in folded]
    return collapse(kept or nothing), collapse([axes[k] for k in folded] or nothing)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("rows"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, NormalizationProblem)
    outer, (row,) = _nest(problem)
    names, last = indices(outer), len(problem.operands) - 1
    ins = sorted(args_of(problem.prologue))
    extras = sorted(k + problem.inputs - 1 for k in args_of(problem.epilogue) if k)
    text = PARTIAL + ACROSS + vmath(problem.prologue, problem.epilogue)
    ins_text = ", ".join(f"vf a{k}" for k in ins)
    args = [f"a{k}" for k in range(problem.inputs)]
    text += (
        f"INLINE vf NAME_f({ins_text}) {{ return {vector_expression(problem.prologue, args)}; }}\n"
    )
    args = ["r"] + [f"a{k}" for k in range(problem.inputs, last)]
    parameters = ", ".join(["vf r", *(f"vf a{k}" for k in extras)])
    text += (
        f"INLINE vf NAME_g({parameters}) "
        f"{{ return {vector_expression(problem.epilogue, args)}; }}\n"
    )
    body = "".join(
        pointer(f"x{k}", k, "float32", offset(names, [a.strides[k] for a in outer]))
        for k in sorted({*ins, *extras})
    )
    body += pointer("y", last, "float32", offset(names, [a.strides[-1] for a in outer]),
                    const=False)  # fmt: skip
    body += _passes(problem, row, ins, extras)
    length = max(1, problem.typical(row.size))
    cut = split(problem, product([a.size for a in outer]), 1, max(1, CHUNK // 2 // length))
    text += signature("NAME", problem) + rows_text(outer, cut, body, 1) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _passes(problem: NormalizationProblem, row: Axis, ins: list[int], extras: list[int]) -> str:
    def read(k: int, at: str, count: str) -> str:
        s = row.strides[k]
        if s == 0:
            return f"splat(*x{k})"
        if s == 1:
            return f"load_n(x{k} + {at}, {count})" if count else f"load(x{k} + {at})"
        return f"gather_n(x{k} + ({at}) * {c_size(s)}, {c_size(s)}, {count or 'LANES'})"

    def x(at: str, count: str = "") -> str:
        return f"NAME_f({', '.join(read(k, at, count) for k in ins)})"

    def total(name: str, term: str) -> str:
        """C: float `name` = the sum of `term` (of vf v) over the row, in 4 accumulators,
        blockwise."""
        steps = " ".join(
            f"{{ vf v = {x(f'i + {u} * LANES')}; a[{u}] += {term}; }}" for u in range(4)
        )
        return f"""float {name};
{{ vf t = {{0}};
for (int64_t b = 0; b < n; b += 512 * LANES) {{
const int64_t e = imin(b + 512 * LANES, n);
vf a[4] = {{0}};
int64_t i = b;
for (; i + 4 * LANES <= e; i += 4 * LANES) {{ {steps} }}
for (; i + LANES <= e; i += LANES) {{ vf v = {x("i")}; a[0] += {term}; }}
if (i < e) {{
vf v = {x("i", "e - i")};
a[1] += vblend(lane_index() < (int32_t)(e - i), {term}, (vf){{0}});
}}
t += (a[0] + a[1]) + (a[2] + a[3]);
}}
{name} = across_sum(t) / (float)n; }}
"""

    def put(count: str) -> str:
        args = [f"({x('i', count)} - mean) * scale", *(read(k, "i", count) for k in extras)]
        value = f"NAME_g({', '.join(args)})"
        s = row.strides[-1]
        if s == 1:
            return f"store_n(y + i, {value}, {count});" if count else f"store(y + i, {value});"
        return f"scatter_n(y + i * {c_size(s)}, {c_size(s)}, {value}, {count or 'LANES'});"

    text = f"const int64_t n = {c_size(row.size)};\n"
    text += "const float mean = 0;\n" if problem.rms else total("mean", "v")
    text += total("variance", "(v - mean) * (v - mean)")
    return text + (
        f"const float scale = 1.f / __builtin_sqrtf(variance + {c_float(problem.eps)});\n"
        f"int64_t i = 0;\nfor (; i + LANES <= n; i += LANES) {put('')}\nif (i < n) {put('n - i')}\n"
    )


pack = nothing_packed
cost = normalization_cost
