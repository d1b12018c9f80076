"""Convolution on tensor cores by `mma.sync`, as a matrix product whose left factor is never written
down ("implicit GEMM"): see kernels/tile_mma.py.

Rows are the results' pixels (n, oh, ow), columns the output channels, k counts (kernel row, kernel
column, input channel). A row's part of k at one tap is consecutive in memory where channels are
innermost. A 1x1 convolution without pads and strides is a plain product.

Groups are separate products. Narrow ones are multiplied several at once, `merge` groups as one with
zeros between them: wasted arithmetic costs less than tiles that are nearly empty.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.ir.expr import args_of
from enginesmith.kernels.base import Size, Tactic, mul
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.cuda_nest import factor
from enginesmith.kernels.tile import Epilogue, Matrix, Roles, matrix
from enginesmith.kernels.tile_loads import Packed, Prologue, Rows, Tile, Window
from enginesmith.kernels.tile_mma import TYPES, Product, shape_of
from enginesmith.kernels.tile_mma import pack as pack_tiles
from enginesmith.kernels.tile_shapes import shapes
from enginesmith.plan.target import Target

MERGED = 32
"""Output channels that narrow groups are merged to."""


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None for convolutions by constant weights of a type that tensor cores multiply."""
    x, w = problem.x, problem.w
    if problem.transposed:
        return "transposed"
    if x.dtype != w.dtype or x.dtype not in TYPES:
        return f"factors of {x.dtype} and {w.dtype}"
    if not w.constant:
        return "the weights are not constant"
    if problem.prologue is not None and (problem.groups != 1 or any(problem.pads)):
        return "a prologue needs one group and no pads"
    return None


def merged(problem: ConvProblem) -> int:
    """How many groups are multiplied at once."""
    count = 1
    while problem.groups % (2 * count) == 0 and 2 * count * problem.group_out <= MERGED:
        count *= 2
    return count


def _padded(values: tuple[Size, ...]) -> tuple[Size, ...]:
    """Strides or sizes of (n, c, h, w) of an operand whose leading axes are missing."""
    return (0,) * (4 - len(values)) + values


def _matrix(problem: ConvProblem, slot: int, channels: int) -> Matrix:
    """y, an extra, or x of a 1x1 convolution: rows are y's pixels, columns the channels of one of
    the products; `channels` of them, which count from 0 again in each."""
    operand, (n, _, oh, ow) = problem.operands[slot], problem.y.shape
    sn, sc, sh, sw = _padded(operand.strides)
    if slot == 0:
        sh, sw = mul(problem.strides[0], sh), mul(problem.strides[1], sw)
    groups = problem.groups // merged(problem)
    return matrix(operand, slot, ([groups], [n, oh, ow]), ([mul(channels, sc)], [sn, sh, sw]), sc)


def _sizes(problem: ConvProblem) -> tuple[tuple[Size, Size, Size], int]:
    """(m, n, k), number of products."""
    n, _, oh, ow = problem.y.shape
    kh, kw = problem.kernel
    count = merged(problem)
    depth = kh * kw * problem.group_in * count
    return (mul(n, oh, ow), problem.group_out * count, depth), problem.groups // count


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """Shapes of tiles, the most promising first."""
    sizes, batch = _sizes(problem)
    m, n, k = (problem.typical(s) for s in sizes)
    vector = factor(sizes[1], 8)
    found = shapes(m, n, k, batch, problem.x.dtype, vector, target, problem.tf32)
    return tuple(s.tactic for s in found)


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> CudaSource:
    """One kernel."""
    shape, values = shape_of(tactic), Roles()
    sizes, batch = _sizes(problem)
    columns = problem.group_out * merged(problem)
    last = len(problem.operands) - 1
    extras = {i - 1: _matrix(problem, i, columns) for i in range(2, last)}
    epilogue = Epilogue(problem.epilogue, extras, _matrix(problem, last, columns), sizes[1], values)
    a = _loader(problem, shape.tile("a", problem.x.dtype))
    b = Packed(shape.tile("b", problem.x.dtype), 1)
    return Product(problem, shape, a, b, epilogue, values, sizes, batch, problem.tf32).source()


def _loader(problem: ConvProblem, tile: Tile) -> Rows:
    """Reads x."""
    channels = problem.group_in * merged(problem)
    (_, _, depth), _ = _sizes(problem)
    x = _matrix(problem, 0, channels)
    window = _window(problem, channels)
    if any(window.checked):  # rows are found by `window`; all their strides matter
        strides = tuple((n, s) for n, s in zip((2, 2, 2), window.x_strides, strict=True))
        vector = Matrix(0, x.dtype, x.alignment, x.batch, strides, x.column).vector(16 // tile.item)
    else:
        steps = window.x_strides[1:] if window.taps > 1 else ()
        vector = min([x.vector(16 // tile.item), *(factor(s, 8) for s in steps)])
    prologue = None
    if problem.prologue is not None:
        used = args_of(problem.prologue) - {0}
        prologue = Prologue(problem.prologue, {k: _matrix(problem, 1 + k, channels) for k in used})
    whole = channels * window.taps % tile.bk == 0
    return Rows(tile, x, min(vector, factor(channels, 8)), depth, whole, window, prologue)


def _window(problem: ConvProblem, channels: int) -> Window:
    """The taps."""
    xn, _, xh, xw = problem.x.strides
    top, left, bottom, right = problem.pads
    (_, _, h, w), (_, _, oh, ow) = problem.x.shape, problem.y.shape
    return Window(
        problem.kernel, problem.strides, (top, left), problem.dilations,
        (top > 0 or bottom > 0, left > 0 or right > 0), channels, (h, w), (oh, ow), (xn, xh, xw),
    )  # fmt: skip


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The weights in tiles."""
    w, count = constants[1], merged(problem)
    _, ic, kh, kw = w.shape
    products, go = problem.groups // count, problem.group_out
    split = w.transpose(0, 2, 3, 1).reshape(products, count, go, kh * kw, ic)
    full = np.zeros((products, count, go, kh * kw, count, ic), w.dtype)
    for i in range(count):
        full[:, i, :, :, i] = split[:, i]
    return {1: pack_tiles(full.reshape(products, count * go, -1), shape_of(tactic))}
