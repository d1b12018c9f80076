"""Matrix products for CPUs.

A task computes a block of rows and some panels of columns, tile by tile; a tile is `mr` rows by `nv`
vectors of columns, kept in registers over all of K. B is read in panels [K][nv * LANES]: packed at
build time (`packed`), packed by a first phase (`repacked`), or in place where its columns are
consecutive (`direct`). `scalar` serves other types than float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.codegen.expressions import vector_dtypes
from enginesmith.ir.expr import count_ops
from enginesmith.kernels.base import Cost, KernelSource, Problem, Tactic, add, mul, tactic
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.matmul.scalar import scalar_source
from enginesmith.kernels.matmul.tiled import Shape, pack_panels, shape_of, tiled_source
from enginesmith.kernels.nest import product
from enginesmith.kernels.pointwise.cpu import traffic
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, MatMulProblem):
        return "not a matrix product"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    rank = len(problem.operands[-1].strides)
    if rank < 2 or any(len(o.strides) != rank for o in problem.operands):
        return "operands must have one rank, at least 2"
    a, b = problem.operands[:2]
    if a.dtype != b.dtype:
        return f"operands of {a.dtype} and {b.dtype}"
    return None


def _is_vector(problem: MatMulProblem) -> bool:
    types = [o.dtype for o in problem.operands]
    return set(types) == {"float32"} and vector_dtypes(problem.epilogue, types)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, MatMulProblem)
    if not _is_vector(problem):
        return (tactic("scalar"),)
    shape = shape_of(problem)
    tall = 14 if target.isa == "avx512" else 6
    rows = shape.m if isinstance(shape.m, int) else tall
    tiles = [(min(rows, tall), 2)]
    if rows <= 4:
        tiles.insert(0, (rows, 4 if target.isa == "avx512" or rows <= 2 else 2))
    elif target.isa == "avx512":
        tiles.append((min(rows, 8), 3))
    else:
        tiles.append((min(rows, 4), 3))
    choices = []
    for mr, nv in dict.fromkeys(tiles):
        for kind in _kinds(problem, shape):
            for copy_a in _copies(problem, shape):
                choices.append(tactic(kind, mr=mr, nv=nv, copy_a=copy_a))
    return tuple(choices)


def _kinds(problem: MatMulProblem, shape: Shape) -> tuple[str, ...]:
    """Ways to read b, the most promising first."""
    b = problem.operands[1]
    if b.constant:
        return ("packed",)
    if b.strides[-1] != 1:
        return ("repacked",)
    rows, size = problem.typical(shape.m), problem.typical(mul(shape.k, shape.n))
    return ("repacked", "direct") if rows >= 64 and size >= 1 << 16 else ("direct", "repacked")


def _copies(problem: MatMulProblem, shape: Shape) -> tuple[int, ...]:
    """Whether tasks copy their rows of a: worth it when strides are unknown (addresses of many rows
    do not fit the registers) or K is long, and the copy is used often."""
    a = problem.operands[0]
    if problem.typical(shape.m) <= 4:
        return (0,)
    if isinstance(a.strides[-1], int) and isinstance(shape.row.strides[0], int):
        return (0, 1) if problem.typical(shape.n) >= 256 else (0,)
    return (1, 0)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, MatMulProblem)
    if tactic.name == "scalar":
        return scalar_source(problem)
    return tiled_source(problem, tactic, target)


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """A constant b in panels; see `pack_panels`."""
    assert isinstance(problem, MatMulProblem)
    if tactic.name != "packed" or 1 not in constants:
        return {}
    return {1: pack_panels(problem, tactic["nv"] * target.lanes, constants[1], target.lanes)}


def cost(problem: Problem) -> Cost:
    """See `Family`."""
    assert isinstance(problem, MatMulProblem)
    y, k = problem.operands[-1], problem.operands[0].shape[-1]
    elements = product(y.shape)
    work = add(mul(2, k, elements), mul(count_ops(problem.epilogue), elements))
    return Cost(work, traffic(problem))
