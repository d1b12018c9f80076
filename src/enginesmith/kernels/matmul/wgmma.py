"""Large products by constant matrices on Hopper's tensor cores, see `kernels/wgmma_tile.py`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from enginesmith.ir.expr import count_ops
from enginesmith.kernels.base import ITEMSIZE, Problem, Size, Tactic, mul
from enginesmith.kernels.cuda import CudaSource, TensorMap
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.tile import FLOATS, Matrix, matrix
from enginesmith.kernels.wgmma_tile import (
    DEPTH,
    INPUT,
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
    if not isinstance(problem, MatMulProblem):
        return "not a matrix product"
    a, b, y = problem.operands[0], problem.operands[1], problem.operands[-1]
    if reason := why_not_operand(a, -1, "the first operand"):
        return reason
    if b.dtype != a.dtype or not b.constant:
        return "the second operand isn't a constant of the first one's type"
    if any(n != 1 and s != 0 for n, s in zip(b.shape[:-2], b.strides[:-2], strict=True)):
        return "a batch of second operands"
    if not (isinstance(b.shape[-1], int) and isinstance(b.shape[-2], int)):
        return "the second operand's size isn't known"
    if any(o.dtype not in FLOATS for o in problem.operands):
        return "an operand isn't floating point"
    if len(_matrix(problem, 0).rows) != 1:
        return "the first operand's rows aren't evenly spaced"
    if problem.typical(mul(*y.shape, b.shape[-2])) < LEAST or b.shape[-1] < 32:
        return "too small"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, MatMulProblem)
    y = problem.operands[-1]
    rows, columns = problem.typical(mul(*y.shape[:-1])), problem.typical(y.shape[-1])
    depth = problem.typical(problem.operands[1].shape[-2])
    tiles = {n: -(-rows // n) for n in {t.rows for t in forms()}}
    moved = sum(
        ITEMSIZE[o.dtype] for o in problem.operands[2:] if all(s != 0 for s in o.strides[-2:])
    )
    return candidates(tiles, columns, -(-depth // DEPTH), count_ops(problem.epilogue), moved, False)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, MatMulProblem)
    tile = tile_of(tactic)
    a, y = problem.operands[0], problem.operands[-1]
    depth, columns = (problem.typical(n) for n in problem.operands[1].shape[-2:])
    rows: Size = mul(*y.shape[:-1])
    stride = _matrix(problem, 0).rows[0][1]
    last = len(problem.operands) - 1
    product = Product(
        problem, a.dtype, problem.epilogue,
        {k - 1: _matrix(problem, k) for k in range(2, last)}, _matrix(problem, last),
        TensorMap(0, a.dtype, (depth, rows), (stride,),
                  (DEPTH, tile.rows // (2 if tile.share == INPUT else 1))),
        rows, columns, depth,
    )  # fmt: skip
    return source(product, tile)


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The second operand transposed; see `pack_weights`."""
    if 1 not in constants:
        return {}
    b = constants[1]
    assert prod(b.shape[:-2]) == 1
    return {1: pack_weights(b.reshape(b.shape[-2:]).T[:, None])}


def _matrix(problem: MatMulProblem, slot: int) -> Matrix:
    """An operand with the rows of all matrices of the batch as its rows."""
    o, shape = problem.operands[slot], problem.operands[-1].shape
    return matrix(o, slot, ((), shape[:-1]), ((), o.strides[:-1]), o.strides[-1])
