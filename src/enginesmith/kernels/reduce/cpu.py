"""Reductions for CPUs.

`lanes`: neighbouring outputs in the lanes of a vector; `row`: the lanes fold one row and are folded
at its end; `scalar`: element by element, for types other than float32. Float sums are folded in
blocks of `BLOCK` steps, whose sums are then added: the error grows with n / BLOCK, not with n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginesmith.codegen.expressions import (
    C_TYPES,
    scalar_expression,
    vector_dtypes,
    vector_expression,
    vmath,
)
from enginesmith.ir.expr import args_of, dtype_of
from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Size,
    Tactic,
    c_size,
    ceildiv,
    mul,
    tactic,
)
from enginesmith.kernels.nest import (
    CHUNK,
    PARTIAL,
    Axis,
    Split,
    blocked_axes,
    collapse,
    indices,
    nothing_packed,
    offset,
    pointer,
    product,
    rows_text,
    signature,
)
from enginesmith.kernels.reduce.problem import KINDS, ReduceProblem, nest
from enginesmith.kernels.reduce.problem import cost as reduce_cost
from enginesmith.plan.target import Target

BLOCK = 128
"""Steps of a fold before its result is added to the total."""

UNROLL = 4
"""Independent accumulators: what hides the latency of an addition."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ReduceProblem) or problem.kind not in KINDS:
        return "not a reduction"
    *inputs, y = problem.operands
    rank = len(inputs[0].strides)
    if any(o.block for o in problem.operands):
        if any(o.block != target.lanes or o.dtype != "float32" for o in problem.operands):
            return "blocked and plain operands are mixed"
        if tuple(sorted(problem.axes)) != (2, 3):
            return "blocked tensors are reduced over height and width only"
        if not isinstance(y.shape[1], int) or not _is_vector(problem):
            return "blocked tensors are float32 with a static number of channels"
    if len(y.strides) not in (rank, rank - len(problem.axes)):
        return "the output's rank does not fit the axes"
    return None


def _is_vector(problem: ReduceProblem) -> bool:
    types = [o.dtype for o in problem.operands[:-1]]
    used = args_of(problem.prologue)
    return (
        all(types[i] == "float32" for i in used)
        and problem.operands[-1].dtype == "float32"
        and vector_dtypes(problem.prologue, types)
        and vector_dtypes(problem.epilogue, ["float32"])
    )


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("fold"),)


@dataclass(frozen=True, slots=True)
class _Nest:
    """kept: axes of the outputs (strides of the inputs, then y); reduced: the folded axes."""

    kept: list[Axis]
    reduced: list[Axis]


def _nest(problem: ReduceProblem) -> _Nest:
    y = problem.operands[-1]
    if y.block:
        shape = problem.operands[0].shape
        axes = blocked_axes(shape, y.block, problem.operands, [1] * len(problem.operands))
        return _Nest([*collapse(axes[:2], axes[:2]), axes[4]], collapse(axes[2:4]))
    kept, reduced = nest(problem)
    return _Nest(collapse(kept), collapse(reduced))


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, ReduceProblem)
    nest = _nest(problem)
    used = sorted(args_of(problem.prologue))
    if not _is_vector(problem):
        return _scalar(problem, nest, used)
    last = nest.kept[-1]
    consecutive = {last.strides[k] for k in used} <= {0, 1} and 1 in last.strides
    if consecutive and last.strides[-1] == 1:
        return _lanes(problem, nest, used)
    return _row(problem, nest, used)


def _identity(kind: str) -> str:
    return {
        "max": "-__builtin_inff()", "min": "__builtin_inff()", "prod": "1.f",
    }.get(kind, "0.f")  # fmt: skip


def _helpers(problem: ReduceProblem, used: Sequence[int]) -> str:
    """NAME_f, the prologue, NAME_fold, one step, and NAME_done, the epilogue."""
    kind = problem.kind
    fold = {"max": "vmax(a, b)", "min": "vmin(a, b)", "prod": "a * b"}.get(kind, "a + b")
    args = [f"a{k}" for k in range(len(problem.operands) - 1)]
    parameters = ", ".join(f"vf a{k}" for k in used) or "void"
    return (
        PARTIAL + vmath(problem.prologue, problem.epilogue) + f"INLINE vf NAME_f({parameters}) "
        f"{{ return {vector_expression(problem.prologue, args)}; }}\n"
        f"INLINE vf NAME_fold(vf a, vf b) {{ return {fold}; }}\n"
        f"INLINE vf NAME_done(vf r) {{ return {vector_expression(problem.epilogue, ['r'])}; }}\n"
    )


def _count(reduced: Sequence[Axis]) -> str:
    return c_size(product([a.size for a in reduced]))


def _split(problem: ReduceProblem, rows: Size, row: Size, cost: int, step: int) -> Split:
    """Tasks of about CHUNK * 2 folded elements; cost: elements folded for one output of a row."""
    length = max(1, problem.typical(row))
    budget = max(1, 2 * CHUNK // max(1, cost))
    if length > budget and length > step:
        piece = max(step, budget // step * step)
        return Split(1, piece, mul(rows, ceildiv(row, piece)))
    group = max(1, budget // length)
    return Split(group, 0, ceildiv(rows, group))


def _loops(axes: Sequence[Axis], names: Sequence[str]) -> str:
    return "".join(
        f"for (int64_t {n} = 0; {n} < {c_size(a.size)}; ++{n}) "
        for n, a in zip(names, axes, strict=True)
    )


def _inputs(problem: ReduceProblem, used: Sequence[int], outer: list[Axis]) -> str:
    names = indices(outer)
    return "".join(
        pointer(f"x{k}", k, "float32", offset(names, [a.strides[k] for a in outer])) for k in used
    )


def _lanes(problem: ReduceProblem, nest: _Nest, used: Sequence[int]) -> KernelSource:
    """The last kept axis in lanes: UNROLL vectors of outputs at a time, then one vector with UNROLL
    accumulators along the folded axis."""
    outer, last = nest.kept[:-1], nest.kept[-1]
    fold_outer, inner = nest.reduced[:-1], nest.reduced[-1]
    r_names = [f"r{k}" for k in range(len(fold_outer))]

    def value(vector: int, step: str, load: str) -> str:
        parts = []
        for k in used:
            strides = [a.strides[k] for a in fold_outer] + [inner.strides[k]]
            at = offset([*r_names, f"({step})"], strides)
            if last.strides[k] == 0:
                parts.append(f"splat(x{k}[{at}])")
            else:
                parts.append(load.format(f"x{k} + j + {vector} * LANES + {at}"))
        return f"NAME_f({', '.join(parts)})"

    def fold(vectors: int, load: str, store: str) -> str:
        total = max(vectors, 1)
        many = UNROLL if vectors == 1 else 1
        loops = _loops(fold_outer, r_names)
        lines = [f"vf t[{total}]; UNROLL for (int v = 0; v < {total}; ++v) t[v] = splat(IDENTITY);"]
        lines.append(f"{loops}for (int64_t b = 0; b < {c_size(inner.size)}; b += {BLOCK}) {{")
        lines.append(f"const int64_t e = imin(b + {BLOCK}, {c_size(inner.size)}); int64_t r = b;")
        n = total * many
        lines.append(f"vf a[{n}]; UNROLL for (int v = 0; v < {n}; ++v) a[v] = splat(IDENTITY);")
        if many > 1:
            steps = " ".join(
                f"a[{u}] = NAME_fold(a[{u}], {value(0, f'r + {u}', load)});" for u in range(many)
            )
            lines.append(f"for (; r + {many} <= e; r += {many}) {{ {steps} }}")
        steps = " ".join(
            f"a[{v * many}] = NAME_fold(a[{v * many}], {value(v, 'r', load)});"
            for v in range(total)
        )
        lines.append(f"for (; r < e; ++r) {{ {steps} }}")
        for v in range(total):
            lines.extend(f"t[{v}] = NAME_fold(t[{v}], a[{v * many + u}]);" for u in range(many))
        lines.append("}")
        scale = f" / (float){_count(nest.reduced)}" if problem.kind == "mean" else ""
        for v in range(total):
            result = f"NAME_done(t[{v}]{scale})"
            lines.append(store.format(at=f"y + j + {v} * LANES", value=result))
        return "\n".join(lines).replace("IDENTITY", _identity(problem.kind)) + "\n"

    y = problem.operands[-1]
    names = indices(outer)
    at = offset(names, [a.strides[-1] for a in outer])
    body = _inputs(problem, used, outer) + pointer(
        "y", len(problem.operands) - 1, "float32", at, const=False
    )
    if y.block:
        body += "const int64_t j = 0;\n" + fold(1, "load({})", _blocked_store(problem))
    else:
        body += (
            f"int64_t j = j0;\nfor (; j + {UNROLL} * LANES <= j1; j += {UNROLL} * LANES) {{\n"
            + fold(UNROLL, "load({})", "store({at}, {value});")
            + "}\nfor (; j + LANES <= j1; j += LANES) {\n"
            + fold(1, "load({})", "store({at}, {value});")
            + "}\nif (j < j1) {\n"
            + fold(1, "load_n({}, j1 - j)", "store_n({at}, {value}, j1 - j);")
            + "}\n"
        )
    cost = problem.typical(product([a.size for a in nest.reduced]))
    cut = _split(problem, product([a.size for a in outer]), last.size, cost, 64)
    text = _helpers(problem, used) + signature("NAME", problem)
    text += rows_text(outer, cut, body, last.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _blocked_store(problem: ReduceProblem) -> str:
    """Lanes past the last channel are cleared. Axis 1 of the nest counts channel blocks."""
    channels, block = problem.operands[-1].shape[1], problem.operands[-1].block
    assert isinstance(channels, int)
    if channels % block == 0:
        return "store({at}, {value});"
    keep = f"(lane_index() < (int32_t)({channels} - i1 * LANES))"
    return f"store({{at}}, (vf)({keep} & (vi){{value}}));"


def _row(problem: ReduceProblem, nest: _Nest, used: Sequence[int]) -> KernelSource:
    """The folded axis in lanes; one output at a time."""
    fold_outer, inner = nest.reduced[:-1], nest.reduced[-1]
    r_names = [f"r{k}" for k in range(len(fold_outer))]
    outer, last = nest.kept[:-1], nest.kept[-1]

    def value(at: str, count: str) -> str:
        parts = []
        for k in used:
            s = inner.strides[k]
            place = offset(["j", *r_names, f"({at})"],
                           [last.strides[k], *(a.strides[k] for a in fold_outer), s])  # fmt: skip
            if s == 0:
                parts.append(f"splat(x{k}[{place}])")
            elif s == 1:
                parts.append(f"load_n(x{k} + {place}, {count})" if count
                             else f"load(x{k} + {place})")  # fmt: skip
            else:
                parts.append(f"gather_n(x{k} + {place}, {c_size(s)}, {count or 'LANES'})")
        return f"NAME_f({', '.join(parts)})"

    step = f"{UNROLL} * LANES"
    size = c_size(inner.size)
    steps = "\n".join(
        f"a[{u}] = NAME_fold(a[{u}], {value(f'r + {u} * LANES', '')});" for u in range(UNROLL)
    )
    scale = f" / (float){_count(nest.reduced)}" if problem.kind == "mean" else ""
    body = _inputs(problem, used, outer)
    at = offset(indices(outer), [a.strides[-1] for a in outer])
    body += pointer("y", len(problem.operands) - 1, "float32", at, const=False)
    body += f"""for (int64_t j = j0; j < j1; ++j) {{
vf t = splat({_identity(problem.kind)});
{_loops(fold_outer, r_names)}for (int64_t b = 0; b < {size}; b += {BLOCK} * {step}) {{
const int64_t e = imin(b + {BLOCK} * {step}, {size}); int64_t r = b;
vf a[{UNROLL}]; UNROLL for (int v = 0; v < {UNROLL}; ++v) a[v] = splat({_identity(problem.kind)});
for (; r + {step} <= e; r += {step}) {{
{steps}
}}
for (; r + LANES <= e; r += LANES) a[0] = NAME_fold(a[0], {value("r", "")});
if (r < e) a[1] = NAME_fold(a[1], vblend(lane_index() < (int32_t)(e - r),
  {value("r", "e - r")}, splat({_identity(problem.kind)})));
t = NAME_fold(t, NAME_fold(NAME_fold(a[0], a[1]), NAME_fold(a[2], a[3])));
}}
float whole = NAME_across(t){scale};
y[j * {c_size(last.strides[-1])}] = NAME_done(splat(whole))[0];
}}
"""
    across = (
        "INLINE float NAME_across(vf t) {\n  for (int h = LANES / 2; h; h /= 2) {\n    vf u = t;\n"
        "    for (int i = 0; i < h; ++i) u[i] = t[i + h];\n    t = NAME_fold(t, u);\n  }\n"
        "  return t[0];\n}\n"
    )
    cost = problem.typical(product([a.size for a in nest.reduced]))
    cut = _split(problem, product([a.size for a in outer]), last.size, cost, 1)
    text = _helpers(problem, used) + across + signature("NAME", problem)
    text += rows_text(outer, cut, body, last.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _scalar(problem: ReduceProblem, nest: _Nest, used: Sequence[int]) -> KernelSource:
    """One element at a time, in the prologue's type."""
    types = [o.dtype for o in problem.operands[:-1]]
    kind = dtype_of(problem.prologue, types)
    c = C_TYPES[kind] if kind != "float16" else "float"
    outer, last = nest.kept[:-1], nest.kept[-1]
    r_names = [f"r{k}" for k in range(len(nest.reduced))]
    args = ["0"] * len(types)
    body = ""
    for k in used:
        at = offset(indices(outer), [a.strides[k] for a in outer])
        body += pointer(f"x{k}", k, types[k], at)
        place = offset(["j", *r_names], [last.strides[k], *(a.strides[k] for a in nest.reduced)])
        args[k] = f"x{k}[{place}]"
    y = problem.operands[-1]
    at = offset(indices(outer), [a.strides[-1] for a in outer])
    body += pointer("y", len(problem.operands) - 1, y.dtype, at, const=False)
    fold = {"max": "v > r ? v : r", "min": "v < r ? v : r", "prod": "r * v"}.get(
        problem.kind, "r + v"
    )
    if problem.kind in ("max", "min"):
        fold = f"started ? ({fold}) : v"
    scale = f" / ({c}){_count(nest.reduced)}" if problem.kind == "mean" else ""
    result = scalar_expression(problem.epilogue, ["whole"], [kind])
    body += f"""for (int64_t j = j0; j < j1; ++j) {{
{c} r = {1 if problem.kind == "prod" else 0}; int started = 0;
{_loops(nest.reduced, r_names)}{{
{c} v = {scalar_expression(problem.prologue, args, types)};
r = {fold}; started = 1;
}}
const {C_TYPES[kind]} whole = r{scale};
y[j * {c_size(last.strides[-1])}] = {result};
}}
"""
    cost = problem.typical(product([a.size for a in nest.reduced]))
    cut = _split(problem, product([a.size for a in outer]), last.size, 4 * cost, 1)
    text = vmath(problem.prologue, problem.epilogue) + signature("NAME", problem)
    text += rows_text(outer, cut, body, last.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


pack = nothing_packed
cost = reduce_cost
