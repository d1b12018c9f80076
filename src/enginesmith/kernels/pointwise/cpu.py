"""Pointwise kernels for CPUs: one loop nest, vectorised along the innermost axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginesmith.codegen.expressions import (
    C_TYPES,
    scalar_expression,
    vector_dtypes,
    vector_expression,
    vmath,
)
from enginesmith.ir.expr import args_of, count_ops, dtype_of, evaluate
from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Tactic,
    c_size,
    tactic,
)
from enginesmith.kernels.nest import (
    PARTIAL,
    Axis,
    axes_of,
    blocked_axes,
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
from enginesmith.kernels.pointwise.problem import PointwiseProblem
from enginesmith.kernels.pointwise.problem import cost as pointwise_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, PointwiseProblem):
        return "not a pointwise problem"
    *inputs, output = problem.operands
    if output.block:
        for i, operand in enumerate(inputs):
            if operand.block not in (0, output.block):
                return f"input {i} is blocked by {operand.block}, the output by {output.block}"
            if not operand.block and any(s != 0 for s in operand.strides):
                return f"input {i} is plain and no scalar, but the output is blocked"
        if output.block != target.lanes or not _is_vector(problem):
            return "blocked tensors are float32 in blocks of one vector"
        if not isinstance(output.shape[1], int):
            return "blocked tensors have a static number of channels"
    elif any(o.block for o in inputs):
        return "the output is plain, but an input is blocked"
    elif any(len(o.strides) != len(output.strides) for o in inputs):
        return "operands differ in rank"
    return None


def _is_vector(problem: PointwiseProblem) -> bool:
    types = [o.dtype for o in problem.operands]
    used = all(types[i] == "float32" for i in args_of(problem.expr))
    return used and types[-1] == "float32" and vector_dtypes(problem.expr, types)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("loops"),)


@dataclass(frozen=True, slots=True)
class _Nest:
    """outer: loops around a row. A row walks the axis `row`; `wide`: each step of it is one whole
    vector (the lane axis), else it goes along consecutive elements. mask: lanes past the last
    channel must be cleared; `channel` is then the outer axis of channel blocks."""

    outer: list[Axis]
    row: Axis
    wide: bool
    lane: Axis | None = None
    channel: int | None = None
    channels: int = 0


def _nest(problem: PointwiseProblem, target: Target) -> _Nest:
    output = problem.operands[-1]
    if not output.block:
        axes = axes_of(output.shape, problem.operands)
        unit = [a for a in axes if a.strides[-1] == 1 and a.size != 1]
        if unit and axes[-1].strides[-1] != 1:  # walk along the output's consecutive elements
            axes.remove(unit[-1])
            axes.append(unit[-1])
        axes = collapse(axes or [Axis(1, (0,) * len(problem.operands))])
        row = axes[-1]
        wide = row.size == target.lanes and len(axes) > 1 and set(row.strides) <= {0, 1}
        if wide and _is_vector(problem) and row.strides[-1] == 1:
            return _Nest(axes[:-2], axes[-2], True, row)
        return _Nest(axes[:-1], row, False)
    lanes = [1 if o.block else 0 for o in problem.operands]
    axes = blocked_axes(output.shape, output.block, problem.operands, lanes)
    channels = output.shape[1]
    assert isinstance(channels, int)
    masked = channels % output.block != 0 and not _keeps_zero(problem)
    axes = collapse(axes, keep=(axes[1],) if masked else ())
    channel = None
    if masked:
        blocks = blocked_axes(output.shape, output.block, problem.operands, lanes)[1]
        channel = axes.index(blocks)
    if axes[-1].size == output.block and len(axes) > 1 and channel != len(axes) - 2:
        return _Nest(axes[:-2], axes[-2], True, axes[-1], channel, channels)
    return _Nest(axes[:-1], axes[-1], False, None, channel, channels)


def _keeps_zero(problem: PointwiseProblem) -> bool:
    """True if padded lanes come out as 0 by themselves: f(0, 0, ...) = 0 and no plain scalar."""
    used = args_of(problem.expr)
    if any(not problem.operands[i].block for i in used):
        return False
    with np.errstate(all="ignore"):
        zeros = [np.zeros((), np.float32)] * (len(problem.operands) - 1)
        return bool(np.all(evaluate(problem.expr, zeros) == 0))


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, PointwiseProblem)
    nest = _nest(problem, target)
    vector = _is_vector(problem)
    per_step = target.lanes if nest.wide else 1
    weight = 1 + count_ops(problem.expr) // 8
    chunk = max(256, 16384 // per_step // weight)
    cut = split(problem, product([a.size for a in nest.outer]), nest.row.size, chunk)
    names = indices(nest.outer)
    used = sorted(args_of(problem.expr))
    body = ""
    for k in [*used, len(problem.operands) - 1]:
        at = offset(names, [a.strides[k] for a in nest.outer])
        name = "y" if k == len(problem.operands) - 1 else f"x{k}"
        body += pointer(name, k, problem.operands[k].dtype, at, const=name != "y")
    body += _mask(nest)
    body += (_vector_row if vector else _scalar_row)(problem, nest, used)
    text = (PARTIAL if vector else "") + vmath(problem.expr) + _function(problem, used, vector)
    text += signature("NAME", problem) + rows_text(nest.outer, cut, body, nest.row.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _function(problem: PointwiseProblem, used: Sequence[int], vector: bool) -> str:
    """The expression as an inline function NAME_f of the operands it reads."""
    dtypes = [o.dtype for o in problem.operands]
    args = [f"a{k}" for k in range(len(problem.operands))]
    if vector:
        parameters = ", ".join(f"vf a{k}" for k in used) or "void"
        result, text = "vf", vector_expression(problem.expr, args[:-1])
    else:
        parameters = ", ".join(f"{C_TYPES[dtypes[k]]} a{k}" for k in used) or "void"
        result = C_TYPES[dtype_of(problem.expr, dtypes)]
        text = scalar_expression(problem.expr, args[:-1], dtypes[:-1])
    return f"INLINE {result} NAME_f({parameters}) {{ return {text}; }}\n"


def _mask(nest: _Nest) -> str:
    if nest.channel is None:
        return ""
    # Full blocks before the last keep everything; the last keeps its channels.
    return f"const vi keep = lane_index() < (int32_t)({nest.channels} - i{nest.channel} * LANES);\n"


def _masked(nest: _Nest, value: str) -> str:
    return value if nest.channel is None else f"(vf)(keep & (vi){value})"


def _vector_row(problem: PointwiseProblem, nest: _Nest, used: Sequence[int]) -> str:
    if nest.wide:
        return _wide_row(problem, nest, used)
    strides = nest.row.strides
    hoisted = "".join(f"const vf c{k} = splat(*x{k});\n" for k in used if strides[k] == 0)

    def call(load: str, count: str) -> str:
        args = []
        for k in used:
            s = strides[k]
            if s == 0:
                args.append(f"c{k}")
            elif s == 1:
                args.append(f"{load}(x{k} + j{count})")
            else:
                n = count or ", LANES"
                args.append(f"gather_n(x{k} + j * {c_size(s)}, {c_size(s)}{n})")
        return _masked(nest, f"NAME_f({', '.join(args)})")

    s = c_size(strides[-1])
    if strides[-1] == 1:
        full, part = "store(y + j, {})", "store_n(y + j, {}, j1 - j)"
    else:
        full = f"scatter_n(y + j * {s}, {s}, {{}}, LANES)"
        part = f"scatter_n(y + j * {s}, {s}, {{}}, j1 - j)"
    return (
        f"{hoisted}int64_t j = j0;\n"
        f"for (; j + LANES <= j1; j += LANES) {full.format(call('load', ''))};\n"
        f"if (j < j1) {part.format(call('load_n', ', j1 - j'))};\n"
    )


def _wide_row(problem: PointwiseProblem, nest: _Nest, used: Sequence[int]) -> str:
    assert nest.lane is not None
    hoisted, args = "", []
    for k in used:
        s = nest.row.strides[k]
        load = f"load(x{k}" if nest.lane.strides[k] == 1 else f"splat(*(x{k}"
        close = ")" if nest.lane.strides[k] == 1 else "))"
        if s == 0:
            hoisted += f"const vf c{k} = {load}{close};\n"
            args.append(f"c{k}")
        else:
            args.append(f"{load} + j * {c_size(s)}{close}")
    value = _masked(nest, f"NAME_f({', '.join(args)})")
    s = c_size(nest.row.strides[-1])
    return f"{hoisted}for (int64_t j = j0; j < j1; ++j) store(y + j * {s}, {value});\n"


def _scalar_row(problem: PointwiseProblem, nest: _Nest, used: Sequence[int]) -> str:
    args = ", ".join(f"x{k}[j * {c_size(nest.row.strides[k])}]" for k in used)
    y = f"y[j * {c_size(nest.row.strides[-1])}]"
    return f"for (int64_t j = j0; j < j1; ++j) {y} = NAME_f({args});\n"


pack = nothing_packed
cost = pointwise_cost
