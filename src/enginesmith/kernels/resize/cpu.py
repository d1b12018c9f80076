"""Resampling for CPUs: every output is a weighted sum of 1, 2 or 4 taps per axis.

The taps of the last axis are tabulated once a task, those of the others computed once a row.
Coordinates are computed in float32, as ONNX Runtime does, so that ties round alike.
"""

from __future__ import annotations

from itertools import product as combinations

import numpy as np

from enginesmith.codegen.expressions import (
    C_TYPES,
    c_float,
    scalar_expression,
    vector_dtypes,
    vector_expression,
    vmath,
)
from enginesmith.ir.expr import args_of
from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Tactic,
    c_size,
    ceildiv,
    mul,
    tactic,
)
from enginesmith.kernels.nest import (
    CHUNK,
    PARTIAL,
    RESULT,
    Axis,
    indices,
    nothing_packed,
    offset,
    pointer,
    product,
    rows_text,
    signature,
    split,
)
from enginesmith.kernels.resize.problem import COORDINATES, ROUNDING, TAPS, ResizeProblem
from enginesmith.kernels.resize.problem import cost as resize_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ResizeProblem):
        return "not a resize"
    if problem.mode not in TAPS or problem.coordinates not in COORDINATES:
        return f"mode {problem.mode} with {problem.coordinates}"
    if problem.mode == "nearest" and problem.rounding not in ROUNDING:
        return f"nearest_mode {problem.rounding}"
    x, y = problem.operands[0], problem.operands[-1]
    types = [o.dtype for o in problem.operands]
    if problem.mode != "nearest" and set(types) != {"float32"}:
        return f"{problem.mode} interpolation of {x.dtype}"
    if x.block != y.block:
        return "input and output differ in layout"
    extras = [problem.operands[k] for k in args_of(problem.epilogue) if k]
    if any(o.block != x.block and any(s != 0 for s in o.strides) for o in extras):
        return "an operand of the epilogue lies in another layout"
    if not x.block:
        return None
    if x.block != target.lanes or not vector_dtypes(problem.epilogue, types):
        return "blocked tensors are float32 in blocks of one vector"
    if not set(problem.axes) <= {2, 3} or not isinstance(y.shape[1], int):
        return "blocked tensors are resized along height and width"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("taps"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, ResizeProblem)
    y = problem.operands[-1]
    sizes = list(y.shape) or [1]
    if y.block:
        sizes[1] = ceildiv(y.shape[1], y.block)
    axes = [Axis(n, ()) for n in sizes]
    outer, row = axes[:-1], axes[-1]
    rank = len(axes)
    count = TAPS[problem.mode]
    chunk = max(64, CHUNK // (y.block or 1) // count)
    cut = split(problem, product([a.size for a in outer]), row.size, chunk)
    body, before = _row(problem, outer), ""
    if rank - 1 in problem.axes:
        before = _table(problem, rank - 1, c_size(row.size))
    text = (PARTIAL if y.block else "") + vmath(problem.epilogue)
    text += "".join(_taps(problem, k) for k in range(len(problem.axes)))
    text += signature("NAME", problem) + before + rows_text(outer, cut, body, row.size) + "}\n"
    scratch = mul(count * 12, row.size) if before else 0
    return KernelSource(text, (Phase(cut.tasks),), scratch)


def _taps(problem: ResizeProblem, k: int) -> str:
    """C: NAME_taps<k>(i, in, out, at, w): places at[] in the input and weights w[] of output i."""
    scale = problem.scales[k]
    s = "out / in" if scale is None else c_float(float(np.float32(scale)))
    head = (
        f"INLINE void NAME_taps{k}(int64_t index, int64_t size, int64_t size_out, int64_t *at, "
        f"float *w) {{\nconst float i = (float)index, in = (float)size, out = (float)size_out;\n"
        f"const float s = {s}; (void)s;\n"
        f"float x = {COORDINATES[problem.coordinates]};\n"
    )
    if problem.mode == "nearest":
        return head + (
            f"at[0] = imax(0, imin((int64_t){ROUNDING[problem.rounding]}, size - 1));\n"
            "w[0] = 1;\n}\n"
        )
    if problem.mode == "linear":
        return head + (
            "x = x > 0 ? x : 0; x = x < in - 1 ? x : in - 1;\n"
            "at[0] = (int64_t)x; at[1] = imin(at[0] + 1, size - 1);\n"
            "w[1] = x - (float)at[0]; w[0] = 1 - w[1];\n}\n"
        )
    a = c_float(problem.cubic_a)
    near = f"(({a} + 2) * t - ({a} + 3)) * t * t + 1"
    far = f"(({a} * t - 5 * {a}) * t + 8 * {a}) * t - 4 * {a}"
    return head + (
        "const float base = __builtin_floorf(x), f = x - base; float t;\n"
        "for (int k = 0; k < 4; ++k) at[k] = imax(0, imin((int64_t)base + k - 1, size - 1));\n"
        f"t = 1 + f; w[0] = {far}; t = f; w[1] = {near};\n"
        f"t = 1 - f; w[2] = {near}; t = 2 - f; w[3] = {far};\n}}\n"
    )


def _sizes(problem: ResizeProblem, axis: int) -> str:
    x, y = problem.operands[0], problem.operands[-1]
    return f"{c_size(x.shape[axis])}, {c_size(y.shape[axis])}"


def _table(problem: ResizeProblem, axis: int, size: str) -> str:
    """C: the taps of the last axis in scratch: `place` (already times the stride) and `weight`."""
    count, k = TAPS[problem.mode], problem.axes.index(axis)
    stride = c_size(problem.operands[0].strides[axis])
    return f"""int64_t *place = (int64_t *)scratch;
float *weight = (float *)(place + {count} * {size});
if (begin < end) for (int64_t j = 0; j < {size}; ++j) {{
NAME_taps{k}(j, {_sizes(problem, axis)}, place + {count} * j, weight + {count} * j);
for (int t = 0; t < {count}; ++t) place[{count} * j + t] *= {stride};
}}
"""


def _row(problem: ResizeProblem, outer: list[Axis]) -> str:
    """One row: the outer axes' taps become `count` ^ axes row pointers, each with its weight."""
    x, y = problem.operands[0], problem.operands[-1]
    names, count, last = indices(outer), TAPS[problem.mode], len(outer)
    resized = [a for a in sorted(problem.axes) if a != last]
    fixed = [a for a in range(last) if a not in resized]
    text = pointer("x", 0, x.dtype,
                   offset([names[a] for a in fixed], [x.strides[a] for a in fixed]))  # fmt: skip
    at = offset(names, y.strides[:last])
    text += pointer("y", len(problem.operands) - 1, y.dtype, at, const=False)
    for a in resized:
        k = problem.axes.index(a)
        text += (
            f"int64_t at{a}[{count}]; float w{a}[{count}];\n"
            f"NAME_taps{k}(i{a}, {_sizes(problem, a)}, at{a}, w{a});\n"
        )
    rows: list[tuple[str, str]] = []
    for taps in combinations(range(count), repeat=len(resized)):
        place = offset([f"at{a}[{t}]" for a, t in zip(resized, taps, strict=True)],
                       [x.strides[a] for a in resized])  # fmt: skip
        weight = " * ".join(f"w{a}[{t}]" for a, t in zip(resized, taps, strict=True))
        rows.append((f"x{len(rows)}", weight))
        text += f"const {C_TYPES[x.dtype]} *x{len(rows) - 1} = x + ({place});\n"
        if weight and count > 1:
            text += f"const float f{len(rows) - 1} = {weight};\n"
    text += "for (int64_t j = j0; j < j1; ++j) {\n" + _value(problem, rows, last)
    return text + _finish(problem, names) + "}\n"


def _value(problem: ResizeProblem, rows: list[tuple[str, str]], last: int) -> str:
    """C: `r`, the weighted sum of all taps."""
    x, count = problem.operands[0], TAPS[problem.mode]
    kind = "vf" if x.block else C_TYPES[x.dtype]

    def read(address: str) -> str:
        return f"load({address})" if x.block else f"*({address})"

    tabulated = last in problem.axes
    if not tabulated:
        along = [(f"j * {c_size(x.strides[-1])}" if x.strides else "0", "")]
    else:
        along = [(f"place[{count} * j + {t}]", f"weight[{count} * j + {t}]") for t in range(count)]
    sums = []
    for k, (name, weight) in enumerate(rows):
        terms = [
            read(f"{name} + {place}") + (f" * {w}" if w and count > 1 else "") for place, w in along
        ]
        total = " + ".join(terms)
        sums.append(f"({total}) * f{k}" if weight and count > 1 else f"({total})")
    return f"{kind} r = {' + '.join(sums)};\n"


def _finish(problem: ResizeProblem, names: list[str]) -> str:
    """The epilogue, the cleared lanes and the store."""
    x, y = problem.operands[0], problem.operands[-1]
    args, types = ["r"], [o.dtype for o in problem.operands]
    for k, o in enumerate(problem.operands[1:-1], 1):
        base = f"(({C_TYPES[o.dtype]} *)p[{k}] + ({offset([*names, 'j'], o.strides)}))"
        if not x.block:
            args.append(f"*{base}")
        else:
            args.append(f"load({base})" if o.block else f"splat(*{base})")
    step = c_size(y.strides[-1]) if y.strides else "0"
    if not x.block:
        return f"y[j * {step}] = {scalar_expression(problem.epilogue, args, types)};\n"
    value = vector_expression(problem.epilogue, args)
    channels = y.shape[1]
    assert isinstance(channels, int)
    if channels % y.block and problem.epilogue != RESULT:
        keep = f"(lane_index() < (int32_t)({channels} - i1 * LANES))"
        value = f"(vf)({keep} & (vi){value})"
    return f"store(y + j * {step}, {value});\n"


pack = nothing_packed
cost = resize_cost
