"""Pooling for CPUs: a window per output, whole channel blocks at once where the layout is
blocked."""

from __future__ import annotations

from math import prod

from enginesmith.codegen.expressions import (
    C_TYPES,
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
    declare_sizes,
    mul,
    tactic,
)
from enginesmith.kernels.nest import (
    PARTIAL,
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
from enginesmith.kernels.pool.problem import PoolProblem
from enginesmith.kernels.pool.problem import cost as pool_cost
from enginesmith.plan.target import Target

_LOWEST = {
    "float32": "-__builtin_inff()",
    "float64": "-__builtin_inf()",
    "int8": "-128",
    "uint8": "0",
}


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, PoolProblem):
        return "not a pooling problem"
    x, y = problem.operands[0], problem.operands[-1]
    if x.dtype not in _LOWEST or (problem.kind == "average" and not x.dtype.startswith("float")):
        return f"{problem.kind} pooling of {x.dtype}"
    if x.block != y.block:
        return "input and output differ in layout"
    if x.block:
        if x.block != target.lanes or x.dtype != "float32":
            return "blocked tensors are float32 in blocks of one vector"
        if not isinstance(y.shape[1], int):
            return "blocked tensors have a static number of channels"
    if problem.epilogue is not None:
        types = [o.dtype for o in problem.operands]
        if x.block and not vector_dtypes(problem.epilogue, types):
            return "the epilogue is not float32"
        extras = [problem.operands[k] for k in args_of(problem.epilogue) if k]
        if any(o.block != x.block and any(s != 0 for s in o.strides) for o in extras):
            return "an operand of the epilogue lies in another layout"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("windows"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, PoolProblem)
    y = problem.operands[-1]
    sizes = [y.shape[0], ceildiv(y.shape[1], y.block or 1), *y.shape[2:]]
    axes = [Axis(n, tuple(o.strides[k] for o in problem.operands)) for k, n in enumerate(sizes)]
    outer, row = axes[:-1], axes[-1]
    work = (y.block or 1) * prod(problem.kernel)
    cut = split(problem, product([a.size for a in outer]), row.size, max(16, 65536 // work))
    body = _row(problem, outer)
    text = (PARTIAL if y.block else "") + vmath(problem.epilogue) + _taps(problem)
    text += signature("NAME", problem) + rows_text(outer, cut, body, row.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _types(problem: PoolProblem) -> tuple[str, str]:
    """The C type of a value and how one is read from the address in {}."""
    x = problem.operands[0]
    return ("vf", "load({})") if x.block else (C_TYPES[x.dtype], "*({})")


def _taps(problem: PoolProblem) -> str:
    """NAME_taps: folds the taps [t0, t1) of every axis of the window at x into the result."""
    x = problem.operands[0]
    kind, read = _types(problem)
    rank = len(problem.kernel)
    lowest = _LOWEST[x.dtype] if problem.kind == "max" else "0"
    initial = f"splat({lowest})" if x.block else lowest
    ranges = ", ".join(f"int64_t t{k}, int64_t u{k}" for k in range(rank))
    at = offset(
        [f"k{k}" for k in range(rank)],
        [mul(problem.dilations[k], x.strides[2 + k]) for k in range(rank)],
    )
    loops = "".join(f"for (int64_t k{k} = t{k}; k{k} < u{k}; ++k{k}) " for k in range(rank))
    value = read.format(f"x + ({at})")
    if problem.kind == "average":
        fold = f"r += {value};"
    elif x.block:
        fold = f"r = vmax(r, {value});"
    else:
        fold = f"{{ {kind} v = {value}; r = v > r ? v : r; }}"
    return (
        f"INLINE {kind} NAME_taps(const {C_TYPES[x.dtype]} *x, const int64_t *d, {ranges}) "
        f"{{\n{declare_sizes(problem.slots)}{kind} r = {initial};\n{loops}{fold}\nreturn r; }}\n"
    )


def _row(problem: PoolProblem, outer: list[Axis]) -> str:
    """One row of outputs along the last axis."""
    x, y = problem.operands[0], problem.operands[-1]
    rank = len(problem.kernel)
    kind, _ = _types(problem)
    names = indices(outer)
    text = pointer("x", 0, x.dtype, offset(names[:2], x.strides[:2]))
    last = len(problem.operands) - 1
    text += pointer("y", last, y.dtype, offset(names, y.strides[:-1]), const=False)
    for k in range(rank - 1):
        text += _range(problem, k, f"i{2 + k}")
    inner = rank - 1
    text += "for (int64_t j = j0; j < j1; ++j) {\n" + _range(problem, inner, "j")
    start = offset([f"s{k}" for k in range(rank)], x.strides[2:])
    ranges = [f"t{k}, u{k}" for k in range(rank)]
    whole = [*ranges[:-1], f"0, {problem.kernel[inner]}"]
    text += (
        f"{kind} r = u{inner} - t{inner} == {problem.kernel[inner]}\n"
        f"? NAME_taps(x + ({start}), d, {', '.join(whole)})\n"
        f": NAME_taps(x + ({start}), d, {', '.join(ranges)});\n"
    )
    if problem.kind == "average":
        counts = " * ".join(f"c{k}" for k in range(rank))
        text += f"r = r / ({C_TYPES[x.dtype]})imax({counts}, 1);\n"
    text += _finish(problem, names)
    return text + "}\n"


def _range(problem: PoolProblem, k: int, index: str) -> str:
    """C: s = where the window of axis k starts, [t, u) = its taps inside the input, c = the number
    of taps an average counts."""
    size = c_size(problem.operands[0].shape[2 + k])
    taps, dilation = problem.kernel[k], problem.dilations[k]
    rank = len(problem.kernel)

    def below(limit: str) -> str:  # taps whose position is below `limit`
        return f"imin({taps}, imax(0, {limit} - s{k} + {dilation - 1}) / {dilation})"

    text = (
        f"const int64_t s{k} = {index} * {problem.strides[k]} - {problem.pads[k]};\n"
        f"const int64_t t{k} = imax(0, -s{k} + {dilation - 1}) / {dilation};\n"
        f"const int64_t u{k} = {below(size)};\n"
    )
    if problem.kind == "average":
        counted = f"imax(0, u{k} - t{k})"
        if problem.count_include_pad:
            counted = below(f"({size} + {problem.pads[rank + k]})")
        text += f"const int64_t c{k} = {counted};\n"
    return text


def _finish(problem: PoolProblem, names: list[str]) -> str:
    """The epilogue, the cleared lanes and the store."""
    x, y = problem.operands[0], problem.operands[-1]
    value = "r"
    at = f"y + j * {c_size(y.strides[-1])}"
    if problem.epilogue is not None:
        args = ["r"]
        for o_index, o in enumerate(problem.operands[1:], 1):
            place = offset([*names, "j"], o.strides)
            base = f"(({C_TYPES[o.dtype]} *)p[{o_index}] + ({place}))"
            args.append(f"*{base}" if not x.block else f"{'load' if o.block else 'splat(*'}({base}"
                        + (")" if o.block else "))"))  # fmt: skip
        if x.block:
            value = vector_expression(problem.epilogue, args)
        else:
            types = [o.dtype for o in problem.operands]
            value = scalar_expression(problem.epilogue, args, types)
    if not x.block:
        return f"*({at}) = {value};\n"
    channels = y.shape[1]
    assert isinstance(channels, int)
    if channels % y.block == 0:
        return f"store({at}, {value});\n"
    keep = f"(lane_index() < (int32_t)({channels} - i1 * LANES))"
    return f"store({at}, (vf)({keep} & (vi){value}));\n"


pack = nothing_packed
cost = pool_cost
