"""Resampling for GPUs: a thread makes the results of a few channels at one place.

Coordinates are computed in float32 by the same expressions as on CPUs, so that ties round alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as combinations

import numpy as np

from enginesmith.codegen.cuda_expressions import (
    cuda_float,
    cuda_functions,
    load_value,
    value_type,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import MULTIPROCESSORS, RUNS, grid_of, kernel_head
from enginesmith.kernels.cuda_planes import Planes, channel_width
from enginesmith.kernels.nest import nothing_packed
from enginesmith.kernels.resize.problem import COORDINATES, ROUNDING, TAPS, ResizeProblem
from enginesmith.kernels.resize.problem import cost as resize_cost
from enginesmith.plan.target import Target

THREADS = 128
"""Of a block."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ResizeProblem):
        return "not a resize"
    if problem.mode not in TAPS or problem.coordinates not in COORDINATES:
        return f"mode {problem.mode} with {problem.coordinates}"
    if problem.mode == "nearest" and problem.rounding not in ROUNDING:
        return f"nearest_mode {problem.rounding}"
    if problem.mode != "nearest" and "float" not in problem.operands[0].dtype:
        return f"{problem.mode} interpolation of {problem.operands[0].dtype}"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """vec: channels of a thread; group: its places along the last axis."""
    axis = _channels(problem)
    if axis is None:
        widths = [1]
    else:
        dense = max(channel_width(problem, k, axis) for k in (0, len(problem.operands) - 1))
        widths = [dense, dense // 2] if dense > 1 else [4, 1]
    assert isinstance(problem, ResizeProblem)
    groups = [1]
    if TAPS[problem.mode] ** len(problem.axes) <= 4 and axis != len(problem.operands[0].shape) - 1:
        groups = [2, 1]
    if problem.typical(Planes(problem, axis, widths[0]).total) < MULTIPROCESSORS * 1024:
        widths.reverse()
        groups.reverse()
    return tuple(tactic("taps", vec=v, group=g) for g in groups for v in widths)


def _channels(problem: Problem) -> int | None:
    """The axis whose elements share taps: one that is not resampled, the densest."""
    assert isinstance(problem, ResizeProblem)
    y = problem.operands[-1]
    own = [a for a, n in enumerate(y.shape) if a not in problem.axes and n != 1]
    return min(own, key=lambda a: problem.typical(y.strides[a]), default=None)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, ResizeProblem)
    planes = Planes(problem, _channels(problem), tactic["vec"], tactic["group"])
    body = planes.start(THREADS) + _body(problem, planes)
    text = RUNS + cuda_functions(problem.epilogue)
    text += "".join(_taps(problem, k) for k in range(len(problem.axes)))
    text += kernel_head(problem, planes.values, THREADS) + body + "}\n"
    launch = Launch(grid_of(planes.total, THREADS), THREADS, planes.values.launch)
    return CudaSource(text, (launch,))


def _taps(problem: ResizeProblem, k: int) -> str:
    """C++: NAME_taps<k>(i, in, out, at, w): places at[] in the input and weights w[] of output i
    along the k-th resampled axis."""
    scale, count = problem.scales[k], TAPS[problem.mode]
    s = "out / in" if scale is None else cuda_float(float(np.float32(scale)))
    head = (
        f"DEVICE void NAME_taps{k}(int index, int size, int size_out, int (&at)[{count}], "
        f"float (&w)[{count}]) {{\nconst float i = (float)index, in = (float)size, "
        f"out = (float)size_out;\nconst float s = {s}; (void)s; (void)in; (void)out;\n"
        f"float x = {COORDINATES[problem.coordinates]};\n"
    )
    if problem.mode == "nearest":
        rounded = ROUNDING[problem.rounding].replace("__builtin_", "")
        return head + f"at[0] = imax(0, imin((int){rounded}, size - 1));\nw[0] = 1;\n}}\n"
    if problem.mode == "linear":
        return head + (
            "x = x > 0 ? x : 0; x = x < in - 1 ? x : in - 1;\n"
            "at[0] = (int)x; at[1] = imin(at[0] + 1, size - 1);\n"
            "w[1] = x - (float)at[0]; w[0] = 1 - w[1];\n}\n"
        )
    a = cuda_float(problem.cubic_a)
    near = f"(({a} + 2) * t - ({a} + 3)) * t * t + 1"
    far = f"(({a} * t - 5 * {a}) * t + 8 * {a}) * t - 4 * {a}"
    return head + (
        "const float base = floorf(x), f = x - base; float t;\n"
        "UNROLL for (int k = 0; k < 4; ++k) at[k] = imax(0, imin((int)base + k - 1, size - 1));\n"
        f"t = 1 + f; w[0] = {far}; t = f; w[1] = {near};\n"
        f"t = 1 - f; w[2] = {near}; t = 2 - f; w[3] = {far};\n}}\n"
    )


def _body(problem: ResizeProblem, planes: Planes) -> str:
    """C++: the elements that each of the thread's places weighs, then its results."""
    y, last = problem.operands[-1], len(problem.operands[-1].shape) - 1
    loads, sums = "", ""
    for g in range(planes.group):
        names = list(planes.names)
        if g:
            size = planes.values.text(y.shape[last])
            loads += f"const int g{g} = imin(o{last} + {g}, {size} - 1);\n"
            names[last] = f"g{g}"
        load, total = _place(problem, planes, names, f"_{g}")
        loads += load
        finish = planes.finish(problem.epilogue, "r[k]", problem.operands[0].dtype, names)
        guard = f"if (o{last} + {g} == g{g}) " if g else ""
        sums += f"{guard}{{\n{total}{finish}}}\n"
    return loads + sums


def _place(
    problem: ResizeProblem, planes: Planes, names: Sequence[str], suffix: str
) -> tuple[str, str]:
    """C++: the taps of one place and their elements; r, the weighted sum of each channel."""
    x, y, count = problem.operands[0], problem.operands[-1], TAPS[problem.mode]
    text, terms = "", []
    for k, a in enumerate(problem.axes):
        sizes = f"{planes.values.text(x.shape[a])}, {planes.values.text(y.shape[a])}"
        text += f"int at{a}{suffix}[{count}]; float w{a}{suffix}[{count}];\n"
        text += f"NAME_taps{k}({names[a]}, {sizes}, at{a}{suffix}, w{a}{suffix});\n"
    for j, taps in enumerate(combinations(range(count), repeat=len(problem.axes))):
        tap = dict(zip(problem.axes, taps, strict=True))
        at = [f"at{a}{suffix}[{tap[a]}]" if a in tap else n for a, n in enumerate(names)]
        array = f"x{j}{suffix}"
        text += f"{CUDA_TYPES[x.dtype]} {array}[{planes.width}];\n"
        text += planes.load(0, array, f"p0 + ({planes.offset(0, at)})") + "\n"
        weight = " * ".join(f"w{a}{suffix}[{t}]" for a, t in tap.items())
        value = load_value(x.dtype, f"{array}[k]")
        terms.append(value if count == 1 or not weight else f"{value} * ({weight})")
    total = (
        f"{value_type(x.dtype)} r[{planes.width}];\n"
        f"UNROLL for (int k = 0; k < {planes.width}; ++k) r[k] = {' + '.join(terms)};\n"
    )
    return text, total


pack = nothing_packed
cost = resize_cost
