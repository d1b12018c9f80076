"""Large convolutions on Hopper's tensor cores, see `kernels/wgmma_tile.py`.

An implicit matrix product: rows are pixels of the result, and K is the places of the kernel times
the input's channels. A tile's rows are a box of pixels, so that what one step reads of x - some
channels of the pixels that one place of the kernel meets - is a box of x, too: one copy of the copy
engine, which also strides and fills in zeros outside of the image. A 1x1 convolution that reads all
pixels in order is a plain product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from enginesmith.ir.expr import count_ops
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Tactic, mul
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, TensorMap
from enginesmith.kernels.tile import FLOATS, Matrix, matrix
from enginesmith.kernels.wgmma_tile import (
    DEPTH,
    INPUT,
    Box,
    Product,
    candidates,
    forms,
    pack_weights,
    source,
    tile_of,
    why_not_operand,
)
from enginesmith.plan.target import Target

LEAST = 1 << 24
"""Multiply-adds below which the pipeline never fills."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if target.arch != 90:
        return "wgmma is an instruction of compute capability 9.0"
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if problem.transposed or problem.groups != 1 or problem.prologue is not None:
        return "transposed, grouped or with a prologue"
    if reason := why_not_operand(problem.x, 1, "the input"):
        return reason
    if problem.w.dtype != problem.x.dtype or not problem.w.constant:
        return "the weights aren't constants of the input's type"
    if any(o.dtype not in FLOATS or o.block for o in problem.operands):
        return "an operand isn't floating point, or is blocked"
    if max(problem.strides) > 8:
        return "a stride of more than 8"
    kernel, y = problem.kernel, problem.y
    if problem.typical(mul(*y.shape, problem.in_channels, *kernel)) < LEAST:
        return "too small"
    return "too few channels" if min(problem.in_channels, problem.out_channels) < 32 else None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, ConvProblem)
    plane, linear = _plane(problem), _linear(problem)
    tiles = {
        rows: -(-prod(plane) // rows) if linear else _boxes(plane, _box(problem, rows))
        for rows in {t.rows for t in forms()}
    }
    steps = prod(problem.kernel) * -(-problem.in_channels // DEPTH)
    moved = sum(ITEMSIZE[o.dtype] for o in (*problem.extras, problem.y) if o.strides[3] != 0)
    return candidates(
        tiles, problem.out_channels, steps, count_ops(problem.epilogue), moved, not linear
    )


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, ConvProblem)
    tile = tile_of(tactic)
    x, y = problem.x, problem.y
    n, c, h, w = x.shape
    box = None
    if _linear(problem):
        stride = _pixels(problem, 0).rows[0][1]
        rows = tile.rows // (2 if tile.share == INPUT else 1)
        a = TensorMap(0, x.dtype, (c, mul(n, h, w)), (stride,), (DEPTH, rows))
    else:
        size, (sh, sw) = _box(problem, tile.rows), problem.strides
        far = (1, 1, 1)
        if problem.kernel == (1, 1) and not any(
            problem.pads
        ):  # every sh-th, sw-th pixel is an image
            h, w, far, sh, sw = y.shape[2], y.shape[3], (sw, sh, 1), 1, 1
        strides = tuple(mul(f, _safe(x, k)) for f, k in zip(far, (3, 2, 0), strict=True))
        box = Box(size, (n, y.shape[2], y.shape[3]), problem.kernel, (sh, sw), problem.dilations,
                  problem.pads[:2])  # fmt: skip
        a = TensorMap(0, x.dtype, (c, w, h, n), strides,
                      (DEPTH, size[2] * sw, size[1] * sh, size[0]),
                      element_strides=(1, sw, sh, 1))  # fmt: skip
    last = len(problem.operands) - 1
    product = Product(
        problem, x.dtype, problem.epilogue,
        {k - 1: _pixels(problem, k) for k in range(2, last)}, _pixels(problem, last),
        a, mul(y.shape[0], *y.shape[2:]), problem.out_channels, problem.in_channels, box,
    )  # fmt: skip
    return source(product, tile)


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The weights with channels last; see `pack_weights`."""
    if 1 not in constants:
        return {}
    w = constants[1]
    return {1: pack_weights(w.reshape(*w.shape[:2], -1).swapaxes(1, 2))}


def _pixels(problem: ConvProblem, slot: int) -> Matrix:
    """An operand with pixels as rows and channels as columns."""
    o, shape = problem.operands[slot], problem.operands[0 if slot == 0 else -1].shape
    outer = (0, 2, 3)
    sizes, strides = (tuple(v[k] for k in outer) for v in (shape, o.strides))
    return matrix(o, slot, ((), sizes), ((), strides), o.strides[1])


def _linear(problem: ConvProblem) -> bool:
    """True if pixel i of the result is made of pixel i of x alone."""
    plain = problem.kernel == (1, 1) and problem.strides == (1, 1) and not any(problem.pads)
    return plain and len(_pixels(problem, 0).rows) == 1


def _safe(x: Operand, axis: int) -> int | str:
    """A stride that the copy engine takes: that of an axis of one element means nothing."""
    return DEPTH if x.shape[axis] == 1 else x.strides[axis]


def _plane(problem: ConvProblem) -> tuple[int, int, int]:
    """Typical pixels of the result along n, h, w."""
    n, _, h, w = (problem.typical(s) for s in problem.y.shape)
    return n, h, w


def _boxes(plane: tuple[int, int, int], box: tuple[int, int, int]) -> int:
    return prod(-(-p // b) for p, b in zip(plane, box, strict=True))


def _box(problem: ConvProblem, rows: int) -> tuple[int, int, int]:
    """The pixels (n, h, w) of a tile: as few boxes as possible, then as wide as possible. A copy
    moves at most 256 elements along an axis, those that strides skip included."""
    plane = _plane(problem)
    limits = tuple(256 // s for s in (1, *problem.strides))

    def shapes() -> Iterator[tuple[int, int, int]]:
        for w in range(1, min(rows, plane[2], limits[2]) + 1):
            for h in range(1, min(rows // w, plane[1], limits[1]) + 1):
                yield min(rows // (w * h), plane[0], limits[0]), h, w

    return min(shapes(), key=lambda box: (_boxes(plane, box), -box[2], -box[1]))
