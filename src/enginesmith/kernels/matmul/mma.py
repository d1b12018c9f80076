"""Matrix products on tensor cores by `mma.sync`: see kernels/tile_mma.py.

Leading axes over which b repeats are rows of a, the others count matrices. A constant b is packed
in the order in which blocks read it; other operands are read as they lie, whichever axis is
consecutive (element by element if none is).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from enginesmith.kernels.base import Size, Tactic, mul
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.cuda_nest import factor
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.tile import Epilogue, Matrix, Roles, matrix
from enginesmith.kernels.tile_loads import Columns, Loader, Packed, Rows, Tile
from enginesmith.kernels.tile_mma import TYPES, Product, shape_of
from enginesmith.kernels.tile_mma import pack as pack_tiles
from enginesmith.kernels.tile_shapes import shapes
from enginesmith.plan.target import Target


def why_not(problem: MatMulProblem, target: Target) -> str | None:
    """None if both factors are of one type that tensor cores multiply."""
    a, b = problem.operands[:2]
    if a.dtype != b.dtype or a.dtype not in TYPES:
        return f"factors of {a.dtype} and {b.dtype}"
    return None


def _axes(problem: MatMulProblem) -> tuple[list[int], list[int]]:
    """(the axes that count matrices, the leading axes that are rows)."""
    b, y = problem.operands[1], problem.operands[-1]
    leading = range(len(y.shape) - 2)
    batch = [i for i in leading if b.strides[i] != 0 and b.shape[i] != 1]
    return batch, [i for i in leading if i not in batch]


def _matrix(problem: MatMulProblem, slot: int) -> Matrix:
    """a, an extra or y: rows are the row axes and M, columns K or N."""
    operand, shape = problem.operands[slot], problem.operands[-1].shape
    batch, rows = _axes(problem)
    rows = [*rows, len(shape) - 2]

    def take(sizes: tuple[Size, ...], axes: list[int]) -> list[Size]:
        return [sizes[i] for i in axes]

    sizes = take(shape, batch), take(shape, rows)
    strides = take(operand.strides, batch), take(operand.strides, rows)
    return matrix(operand, slot, sizes, strides, operand.strides[-1])


def _sizes(problem: MatMulProblem) -> tuple[tuple[Size, Size, Size], Size]:
    """(m, n, k), batch."""
    shape, depth = problem.operands[-1].shape, problem.operands[0].shape[-1]
    batch, rows = _axes(problem)
    m = mul(*(shape[i] for i in rows), shape[-2])
    return (m, shape[-1], depth), mul(*(shape[i] for i in batch))


def tactics(problem: MatMulProblem, target: Target) -> tuple[Tactic, ...]:
    """Shapes of tiles, the most promising first."""
    sizes, batch = _sizes(problem)
    m, n, k, count = (problem.typical(s) for s in (*sizes, batch))
    vector = factor(sizes[1], 8)
    dtype = problem.operands[0].dtype
    found = shapes(m, n, k, count, dtype, vector, target, problem.tf32)
    return tuple(s.tactic for s in found)


def emit(problem: MatMulProblem, tactic: Tactic, target: Target) -> CudaSource:
    """One kernel."""
    shape, values = shape_of(tactic), Roles()
    sizes, batch = _sizes(problem)
    b = problem.operands[1]
    extras = {i - 1: _matrix(problem, i) for i in range(2, len(problem.operands) - 1)}
    y = _matrix(problem, len(problem.operands) - 1)
    epilogue = Epilogue(problem.epilogue, extras, y, sizes[1], values)
    tile_a, tile_b = shape.tile("a", b.dtype), shape.tile("b", b.dtype)
    loader_a = loader(tile_a, _matrix(problem, 0), sizes[0], sizes[2])
    if b.constant:
        loader_b: Loader = Packed(tile_b, 1)
    else:
        axes, _ = _axes(problem)
        counted = [b.shape[i] for i in axes], [b.strides[i] for i in axes]
        seen = matrix(b, 1, (counted[0], [sizes[1]]), (counted[1], [b.strides[-1]]), b.strides[-2])
        loader_b = loader(tile_b, seen, sizes[1], sizes[2], shape.turned(sizes[1]))
    return Product(
        problem, shape, loader_a, loader_b, epilogue, values, sizes, batch, problem.tf32
    ).source()


def loader(tile: Tile, m: Matrix, extent: Size, depth: Size, turned: bool = False) -> Loader:
    """How to read a matrix whose columns are k: by rows where k is consecutive, by columns where
    rows are, else element by element. turned: see `Rows`."""
    if m.column != 1 and [stride for _, stride in m.rows] == [1]:
        across = Matrix(m.slot, m.dtype, m.alignment, m.batch, ((depth, m.column),), 1)
        vector = min(across.vector(16 // tile.item), factor(extent, 8))
        return Columns(tile, m, vector, depth)
    vector = min(m.vector(16 // tile.item), factor(depth, 8))
    whole = factor(depth, tile.bk) == tile.bk
    return Rows(tile, m, vector, depth, whole, turned=turned)


def pack(
    problem: MatMulProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """A constant b in tiles."""
    if not problem.operands[1].constant or 1 not in constants:
        return {}
    b = constants[1]
    k, n = b.shape[-2:]
    return {1: pack_tiles(b.reshape(prod(b.shape[:-2]), k, n).swapaxes(1, 2), shape_of(tactic))}
