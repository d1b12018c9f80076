"""Matrix products for CPUs.

A task computes a block of rows and some panels of columns, tile by tile; a tile is `mr` rows by
`nv` vectors of columns, kept in registers over all of K. B is read in panels [K][nv * LANES]:
packed at build time (`packed`), packed by a first phase (`repacked`), or in place where its columns
are consecutive (`direct`). `scalar` serves other types than float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.codegen.expressions import vector_dtypes
from enginesmith.kernels.base import KernelSource, Problem, Tactic, mul, tactic
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.matmul.problem import cost as matmul_cost
from enginesmith.kernels.matmul.scalar import scalar_source
from enginesmith.kernels.matmul.tiled import Shape, pack_panels, shape_of, tiled_source
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
    wide = target.isa == "avx512"
    if isinstance(shape.m, int) and shape.m <= 4:
        tiles = [(shape.m, 4 if wide or shape.m <= 2 else 2), (shape.m, 2)]
    else:
        tiles = [(8, 3), (14, 2)] if wide else [(6, 2)]
    if isinstance(shape.m, int):
        tiles = [(max(1, min(shape.m, mr)), nv) for mr, nv in tiles]
    kinds = _kinds(problem, shape)
    return tuple(tactic(kind, mr=mr, nv=nv) for mr, nv in dict.fromkeys(tiles) for kind in kinds)


def _kinds(problem: MatMulProblem, shape: Shape) -> tuple[str, ...]:
    """Ways to read b, the most promising first."""
    b = problem.operands[1]
    if b.constant:
        return ("packed",)
    if b.strides[-1] != 1:
        return ("repacked",)
    rows, size = problem.typical(shape.m), problem.typical(mul(shape.k, shape.n))
    return ("repacked", "direct") if rows >= 64 and size >= 1 << 16 else ("direct", "repacked")


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


cost = matmul_cost
