"""Convolution in Triton, as a matrix product whose left factor is never written down ("implicit
GEMM"): see kernels/triton_tile.py.

Rows are the results' pixels (n, oh, ow), columns the output channels. k counts the kernel's taps
and, within a tap, input channels in steps of the tile's depth; the last step of a tap is filled up
with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import numpy as np

from enginesmith.codegen.triton_expressions import triton_lines
from enginesmith.codegen.triton_expressions import why_not as why_not_expression
from enginesmith.ir.expr import args_of
from enginesmith.kernels.base import ITEMSIZE, Operand, Size, Tactic, ceildiv, mul
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, TensorMap
from enginesmith.kernels.tile import Matrix, matrix
from enginesmith.kernels.triton_tile import (
    LINE,
    NAMES,
    Arguments,
    Ending,
    Packed,
    Shape,
    along,
    also_copied,
    copied_products,
    copyable,
    masked,
    place,
    shape_of,
    shapes,
    tiled,
    whole,
)
from enginesmith.kernels.triton_tile import why_not as why_not_product
from enginesmith.plan.target import Target

LEAST = 16
"""Pixels, output and input channels of the smallest product worth it."""


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None for convolutions of one group by constant weights, channels innermost."""
    if problem.transposed:
        return "transposed"
    if problem.groups != 1:
        return "groups"
    if problem.prologue is not None:
        if _windowed(problem):
            return "a prologue of more than single pixels"
        if reason := why_not_expression(problem.prologue, [o.dtype for o in _read(problem)]):
            return reason.replace("epilogue", "prologue")
    if not problem.w.constant:
        return "the weights are not constant"
    if problem.x.strides[1] != 1:
        return "the input's channels aren't innermost"
    pixels = problem.typical(mul(*_pixels(problem)))
    if min(pixels, problem.in_channels, problem.out_channels) < LEAST:
        return "too small"
    return why_not_product(problem)


def _windowed(problem: ConvProblem) -> bool:
    """Whether a result reads more than one pixel, or one that may be beyond a border."""
    return problem.kernel != (1, 1) or any(problem.pads)


def _read(problem: ConvProblem) -> tuple[Operand, ...]:
    """What the arguments of prologue and epilogue are, but for argument 0 of the epilogue."""
    return (problem.x, *problem.extras)


def why_not_copied(problem: ConvProblem) -> str | None:
    """None if the copy engine can read x: a 1x1 convolution's, without pads, pixels evenly
    spaced."""
    if _windowed(problem):
        return "a window"
    if problem.prologue is not None:
        return "a prologue"
    rows = _matrix(problem, 0).rows
    if len(rows) != 1 or not copyable(problem.x, rows[0][1]):
        return "pixels that aren't at multiples of 16 bytes"
    return None


def _pixels(problem: ConvProblem) -> tuple[Size, Size, Size]:
    n, _, oh, ow = problem.y.shape
    return n, oh, ow


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """Shapes of tiles, the most promising first."""
    (kh, kw), ic, dtype = problem.kernel, problem.in_channels, problem.x.dtype
    pixels = problem.typical(mul(*_pixels(problem)))
    depth = LINE // ITEMSIZE[dtype]
    if ceil(ic / depth) * depth > 1.3 * ceil(ic / (depth // 2)) * (depth // 2):
        depth //= 2  # fewer zeros
    k = kh * kw * ceil(ic / depth) * depth
    found = shapes(pixels, problem.out_channels, k, 1, dtype, target, depth)
    if why_not_copied(problem) is None:
        found = also_copied(found, pixels, problem.out_channels, target)
    return tuple(s.tactic for s in found)


def _matrix(problem: ConvProblem, slot: int) -> Matrix:
    """y, an extra, or x of a 1x1 convolution without pads: rows are y's pixels."""
    operand = problem.operands[slot]
    strides = (0,) * (4 - len(operand.strides)) + operand.strides
    sn, sc, sh, sw = strides
    if slot == 0:
        sh, sw = mul(problem.strides[0], sh), mul(problem.strides[1], sw)
    return matrix(operand, slot, ([], list(_pixels(problem))), ([], [sn, sh, sw]), sc)


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> CudaSource:
    """One kernel; a block makes one tile."""
    s, arguments = shape_of(tactic), Arguments(problem, {1: problem.x.dtype})
    m, n = mul(*_pixels(problem)), problem.out_channels
    rows, columns = arguments.size(m), arguments.size(n)
    body = ["at = rm" if whole(m, s.rows) else f"at = tl.minimum(rm, {rows} - 1)"]
    body += _products(problem, s, arguments)
    extras = {i - 1: _matrix(problem, i) for i in range(2, len(problem.operands) - 1)}
    in_rows = "" if whole(m, s.rows) else f"rm < {rows}"
    in_columns = "" if whole(n, s.columns) else f"rn < {columns}"
    y = _matrix(problem, len(problem.operands) - 1)
    ending = Ending(problem.epilogue, extras, y, arguments, in_rows, in_columns)
    body += ending.lines("sums", "0")
    tiles = ceildiv(m, s.rows), ceildiv(n, s.columns), 1
    return tiled(s, arguments, (rows, columns), tiles, body, target)


def _packed(problem: ConvProblem, s: Shape) -> Packed:
    """How the weights lie: rows count taps and input channels, whole steps for each tap."""
    kh, kw = problem.kernel
    depth = kh * kw * ceil(problem.in_channels / s.depth) * s.depth
    return Packed(s, problem.x.dtype, depth, problem.out_channels)


def _products(problem: ConvProblem, s: Shape, arguments: Arguments) -> list[str]:
    """Statements that compute `sums`; `at`: rows that exist."""
    (kh, kw), ic = problem.kernel, problem.in_channels
    taps, steps = kh * kw, ceil(ic / s.depth)
    packed = _packed(problem, s)
    if s.copied:
        ((m, stride),) = _matrix(problem, 0).rows
        left = TensorMap(0, packed.dtype, (ic, m), (stride,), (s.depth, s.rows))
        turned = packed.dtype == "float32"
        return copied_products(s, arguments, left, packed.map, turned, arguments.size(ic))
    mask = "" if whole(ic, s.depth) else f"(channel < {arguments.size(ic)})[None, :]"
    if not _windowed(problem):
        x = _matrix(problem, 0)
        before = [f"a = p0{along(x.rows, arguments, 'at', '[:, None]')}"]
        inside = [f"channel = k * {s.depth} + rk"]
        load = f"tl.load(a + channel[None, :]{masked(mask)})"
    else:
        before, inside, checks = _window(problem, s, steps, arguments)
        load = f"tl.load(p0 + a[:, None] + channel[None, :]{masked(checks, mask)})"
    row, column = (((0, stride),) for stride in packed.strides)
    return [
        *before,
        f"b = p1{along(row, arguments, 'rk', '[:, None]')}"
        f"{along(column, arguments, 'rn', '[None, :]')}",
        f"sums = tl.zeros(({s.rows}, {s.columns}), tl.float32)",
        f"for k in range(0, {arguments.count(taps * steps)}):",
        *(f"    {line}" for line in inside),
        f"    x = {load}",
        *(f"    {line}" for line in _prologue(problem, arguments, mask)),
        "    w = tl.load(b)",
        "    sums = tl.dot(x, w, sums)",  # of float32: rounded to TF32
        f"    b += {place(row, arguments, str(s.depth))}",
    ]


def _prologue(problem: ConvProblem, arguments: Arguments, mask: str) -> list[str]:
    """Statements that apply the prologue to `x`. mask: of the channels that exist."""
    if problem.prologue is None:
        return []
    names, lines = {0: "x"}, []
    for k in sorted(args_of(problem.prologue)):
        operand = problem.operands[1 + k] if k else problem.x
        value = "x"
        if k:
            m, names[k] = _matrix(problem, 1 + k), f"c{k}"
            columns = ((0, m.column),)
            value = (
                f"tl.load(p{1 + k}{along(m.rows, arguments, 'at', '[:, None]')}"
                f"{along(columns, arguments, 'channel', '[None, :]')}{masked(mask)})"
            )
        if k or operand.dtype != "float32":
            widened = "" if operand.dtype == "float32" else ".to(tl.float32)"
            lines.append(f"{names[k]} = {value}{widened}")
    args = [names.get(k, "") for k in range(max(names) + 1)]
    more, result = triton_lines(problem.prologue, args, "q")
    # Zeros beyond the last channel may have become anything, even what is no number.
    result = f"tl.where({mask}, {result}, 0.0)" if mask else result
    return [*lines, *more, f"x = ({result}).to({NAMES[problem.x.dtype]})"]


def _window(
    problem: ConvProblem, s: Shape, steps: int, arguments: Arguments
) -> tuple[list[str], list[str], str]:
    """(statements before the loop over k, in it, and the mask of the rows within the borders).
    They find `channel`, and `a`, where each row's pixel lies at this tap."""
    _, oh, ow = _pixels(problem)
    (_, _, h, w), (sn, _, sh, sw) = problem.x.shape, problem.x.strides
    (top, left, bottom, right), (_, kw) = problem.pads, problem.kernel
    size, number = arguments.size, arguments.count
    height, width = number(oh), number(ow)
    before = [
        f"image = at // ({height} * {width}) * {size(sn)}",
        f"row0 = at // {width} % {height} * {problem.strides[0]} - {top}",
        f"column0 = at % {width} * {problem.strides[1]} - {left}",
    ]
    find = ["tap, channel = k, rk"]
    if steps > 1:
        count = number(steps)
        find = [f"tap = k // {count}", f"channel = k % {count} * {s.depth} + rk"]
    inside = [
        *find,
        f"ih = row0 + tap // {kw} * {problem.dilations[0]}",
        f"iw = column0 + tap % {kw} * {problem.dilations[1]}",
        f"a = image + ih * {size(sh)} + iw * {size(sw)}",
    ]
    checks = []
    if top or bottom:
        checks.append(f"(ih >= 0) & (ih < {number(h)})")
    if left or right:
        checks.append(f"(iw >= 0) & (iw < {number(w)})")
    return before, inside, f"({' & '.join(checks)})[:, None]" if checks else ""


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The weights, see `_packed`."""
    s = shape_of(tactic)
    oc, ic, kh, kw = constants[1].shape
    depth = ceil(ic / s.depth) * s.depth
    full = np.zeros((kh * kw, depth, oc), constants[1].dtype)
    full[:, :ic] = constants[1].transpose(2, 3, 1, 0).reshape(kh * kw, ic, oc)
    return {1: _packed(problem, s).pack(full.reshape(kh * kw * depth, oc))}
