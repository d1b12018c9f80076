"""Matrix products in Triton, tile by tile: see kernels/triton_tile.py.

Leading axes over which b repeats are rows of a, the others count matrices, as in `mma`. A constant
b is packed in whole tiles; other operands are read as they lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.kernels.base import Size, Tactic, ceildiv, dense_strides, mul
from enginesmith.kernels.cuda import CudaSource, TensorMap
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.tile import Matrix, matrix
from enginesmith.kernels.triton_tile import (
    Arguments,
    Ending,
    Packed,
    Shape,
    along,
    also_copied,
    base,
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
"""Rows, columns and depth of the smallest product worth it: tensor cores take so many."""


def why_not(problem: MatMulProblem, target: Target) -> str | None:
    """None if both factors are of one type that tensor cores multiply, and large enough."""
    (m, n, k), _ = _sizes(problem)
    if min(problem.typical(size) for size in (m, n, k)) < LEAST:
        return "too small"
    return why_not_product(problem)


def tactics(problem: MatMulProblem, target: Target) -> tuple[Tactic, ...]:
    """Shapes of tiles, the most promising first."""
    sizes, batch = _sizes(problem)
    m, n, k, count = (problem.typical(s) for s in (*sizes, batch))
    dtype = problem.operands[0].dtype
    found = shapes(m, n, k, count, dtype, target)
    if why_not_copied(problem) is None:
        found = also_copied(found, m, n, target)
    return tuple(s.tactic for s in found)


def why_not_copied(problem: MatMulProblem) -> str | None:
    """None if the copy engine can read both factors: one product, rows of a and of b at multiples
    of 16 bytes."""
    a, b = problem.operands[:2]
    _, batch = _sizes(problem)
    if batch != 1:
        return "several products"
    rows, right = _matrix(problem, 0).rows, b.strides[-2:]
    if a.strides[-1] != 1 or len(rows) != 1:
        return "a's rows aren't evenly spaced"
    if not b.constant and 1 not in right:
        return "b has no consecutive elements"
    given = [(a, rows[0][1])]
    if not b.constant:
        given.append((b, right[1] if right[0] == 1 else right[0]))
    if not all(copyable(operand, stride) for operand, stride in given):
        return "rows that aren't at multiples of 16 bytes"
    return None


def _axes(problem: MatMulProblem) -> tuple[list[int], list[int]]:
    """(the axes that count matrices, those that are rows: M last)."""
    b, y = problem.operands[1], problem.operands[-1]
    leading = range(len(y.shape) - 2)
    batch = [i for i in leading if b.strides[i] != 0 and b.shape[i] != 1]
    return batch, [*(i for i in leading if i not in batch), len(y.shape) - 2]


def _sizes(problem: MatMulProblem) -> tuple[tuple[Size, Size, Size], Size]:
    """(m, n, k), batch."""
    shape, depth = problem.operands[-1].shape, problem.operands[0].shape[-1]
    batch, rows = _axes(problem)
    return (mul(*(shape[i] for i in rows)), shape[-1], depth), mul(*(shape[i] for i in batch))


def _matrix(problem: MatMulProblem, slot: int) -> Matrix:
    """a, an extra or y: rows are the row axes, columns K or N."""
    operand, shape = problem.operands[slot], problem.operands[-1].shape
    batch, rows = _axes(problem)
    sizes = [shape[i] for i in batch], [shape[i] for i in rows]
    strides = [operand.strides[i] for i in batch], [operand.strides[i] for i in rows]
    return matrix(operand, slot, sizes, strides, operand.strides[-1])


def _packed(problem: MatMulProblem, s: Shape) -> Packed:
    """How a constant b lies."""
    a, b = problem.operands[:2]
    return Packed(s, a.dtype, *b.shape[-2:])


def _right(problem: MatMulProblem, s: Shape) -> Matrix:
    """b, packed if it is constant: rows are K, columns N."""
    b, (batch, _) = problem.operands[1], _axes(problem)
    strides = b.strides
    if b.constant:
        packed = _packed(problem, s)
        front = dense_strides((*b.shape[:-2], *packed.size))[:-2]
        strides = (*front, *packed.strides)
    sizes = [b.shape[i] for i in batch], [b.shape[-2]]
    return matrix(b, 1, sizes, ([strides[i] for i in batch], [strides[-2]]), strides[-1])


def emit(problem: MatMulProblem, tactic: Tactic, target: Target) -> CudaSource:
    """One kernel; a block makes one tile."""
    a, b = problem.operands[:2]
    stored = {1: a.dtype} if b.constant else {}
    s, arguments = shape_of(tactic), Arguments(problem, stored)
    (m, n, k), batch = _sizes(problem)
    rows, columns, depth = (arguments.size(size) for size in (m, n, k))
    body = _products(problem, s, arguments, (rows, columns, depth))
    extras = {i - 1: _matrix(problem, i) for i in range(2, len(problem.operands) - 1)}
    in_rows = "" if whole(m, s.rows) else f"rm < {rows}"
    in_columns = "" if whole(n, s.columns) else f"rn < {columns}"
    y = _matrix(problem, len(problem.operands) - 1)
    ending = Ending(problem.epilogue, extras, y, arguments, in_rows, in_columns)
    body += ending.lines("sums", "batch")
    tiles = ceildiv(m, s.rows), ceildiv(n, s.columns), batch
    return tiled(s, arguments, (rows, columns), tiles, body, target)


def _products(
    problem: MatMulProblem, s: Shape, arguments: Arguments, names: tuple[str, str, str]
) -> list[str]:
    """Statements that compute `sums`. names: of the parameters m, n and k.

    What lies beyond the ends of a's rows and b's columns is masked along the axis whose elements
    are neighbours, since vectors may be cut by an end; along the other one, the last element stands
    for those beyond it, which costs nothing."""
    (m, n, k), _ = _sizes(problem)
    rows, columns, depth = names
    a, b = _matrix(problem, 0), _right(problem, s)
    at_m, at_n, mask_m, mask_n, mask_a, mask_b = "rm", "rn", "", "", "", ""
    if not whole(m, s.rows):
        if a.column != 1 and [stride for _, stride in a.rows] == [1]:
            mask_m = f"(rm < {rows})[:, None]"
        else:
            at_m = f"tl.minimum(rm, {rows} - 1)"
    if not whole(k, s.depth):
        mask_a, mask_b = (f"(rk < {depth} - k){axis}" for axis in ("[None, :]", "[:, None]"))
    if b.constant:
        mask_b = ""
    elif not whole(n, s.columns):
        if b.column == 1:
            mask_n = f"(rn < {columns})[None, :]"
        else:
            at_n = f"tl.minimum(rn, {columns} - 1)"
    if s.copied:
        return _copied(problem, s, arguments, depth)
    ((_, b_row),) = b.rows
    depth_a, depth_b, columns_b = ((0, a.column),), ((0, b_row),), ((0, b.column),)
    lines = [
        f"a = {base(a, arguments, 'batch')}{along(a.rows, arguments, at_m, '[:, None]')}"
        f"{along(depth_a, arguments, 'rk', '[None, :]')}",
        f"b = {base(b, arguments, 'batch')}{along(depth_b, arguments, 'rk', '[:, None]')}"
        f"{along(columns_b, arguments, at_n, '[None, :]')}",
    ]
    if a.same_rows or a.column == 0:  # the compiler, unlike the interpreter, needs whole blocks
        lines.append(f"a = tl.broadcast_to(a, ({s.rows}, {s.depth}))")
    if b_row == 0 or b.column == 0:
        lines.append(f"b = tl.broadcast_to(b, ({s.depth}, {s.columns}))")
    return [
        *lines,
        f"sums = tl.zeros(({s.rows}, {s.columns}), tl.float32)",
        f"for k in range(0, {depth}, {s.depth}):",
        f"    x = tl.load(a{masked(mask_m, mask_a)})",
        f"    w = tl.load(b{masked(mask_b, mask_n)})",
        "    sums = tl.dot(x, w, sums)",  # of float32: rounded to TF32
        f"    a += {place(depth_a, arguments, str(s.depth))}",
        f"    b += {place(depth_b, arguments, str(s.depth))}",
    ]


def _copied(problem: MatMulProblem, s: Shape, arguments: Arguments, depth: str) -> list[str]:
    """The same where the copy engine reads both factors."""
    (m, n, k), _ = _sizes(problem)
    a, b = _matrix(problem, 0), _right(problem, s)
    ((_, a_row),), ((_, b_row),) = a.rows, b.rows
    left = TensorMap(0, a.dtype, (k, m), (a_row,), (s.depth, s.rows))
    if problem.operands[1].constant:
        right = _packed(problem, s).map
    elif b.column == 1:
        right = TensorMap(1, b.dtype, (n, k), (b_row,), (s.columns, s.depth))
    else:
        right = TensorMap(1, b.dtype, (k, n), (b.column,), (s.depth, s.columns))
    return copied_products(s, arguments, left, right, b.column != 1, depth)


def pack(
    problem: MatMulProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """A constant b, see `Packed`."""
    if not problem.operands[1].constant or 1 not in constants:
        return {}
    return {1: _packed(problem, shape_of(tactic)).pack(constants[1])}
