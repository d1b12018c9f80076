"""Matrix products of any strides, sizes and element types on CUDA cores.

A block of 16 x 16 threads computes a tile of y from pieces of a and b in shared memory; each thread
has `rows` x `columns` results, 16 apart so that neighbouring threads touch neighbouring elements.
Sums are float for the three short floating-point types, else of the operands' own type.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.codegen.cuda_expressions import load_value, value_type
from enginesmith.kernels.base import Problem, Size, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import RUNS, Values, index_text, kernel_head
from enginesmith.kernels.ending import FLOATS, Ending, strides_of
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.nest import Axis
from enginesmith.plan.target import Target

SIDE = 16
THREADS = SIDE * SIDE
DEPTH = 16
"""Of k in shared memory at a time."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, MatMulProblem):
        return "not a matrix product"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    rank = len(problem.operands[-1].strides)
    if rank < 2 or any(len(o.strides) != rank for o in problem.operands):
        return "operands must have one rank, at least 2"
    a, b = (o.dtype for o in problem.operands[:2])
    if a != b and not {a, b} <= set(FLOATS):
        return f"operands of {a} and {b}"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Large tiles if there are enough of them for the machine (some hundred)."""
    y = problem.operands[-1]
    *batch, m, n = (problem.typical(s) for s in y.shape)
    found = []
    for side in (4, 2, 1):
        tiles = int(np.prod(batch, initial=1)) * -(-m // (SIDE * side)) * -(-n // (SIDE * side))
        if side == 1 or tiles >= 128:
            found.append(tactic("simple", rows=side, columns=side))
    return tuple(found[:2])


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, MatMulProblem)
    a, b, y = problem.operands[0], problem.operands[1], problem.operands[-1]
    sums = "float32" if a.dtype in FLOATS else a.dtype
    values = Values()
    ending = Ending(problem, problem.epilogue, values, accumulator=sums)
    rows, columns = tactic["rows"], tactic["columns"]
    *batch, m, n = y.shape
    axes = [Axis(s, ()) for s in (*batch, ceildiv(m, SIDE * rows), ceildiv(n, SIDE * columns))]
    at = [f"i{k}" for k in range(len(batch))]
    body = f"""\
  grid_launch();
  grid_wait();
  __shared__ {value_type(sums)} as[{DEPTH}][{SIDE * rows + 1}], bs[{DEPTH}][{SIDE * columns + 1}];
  const int M = {values.value(m)}, N = {values.value(n)}, K = {values.value(a.shape[-1])};
  {index_text(axes, values, "blockIdx.x")}
  const int m0 = i{len(batch)} * {SIDE * rows}, n0 = i{len(batch) + 1} * {SIDE * columns};
  const int row = threadIdx.x / {SIDE}, column = threadIdx.x % {SIDE};
  {value_type(sums)} sum[{rows}][{columns}] = {{}};
  for (int k0 = 0; k0 < K; k0 += {DEPTH}) {{
    for (int i = threadIdx.x; i < {SIDE * rows * DEPTH}; i += {THREADS}) {{
      const int {_places("m", SIDE * rows, strides_of(a, len(y.shape))[-1])};
      as[dk][dm] = m0 + dm < M && k0 + dk < K
        ? {load_value(a.dtype, f"p0[{ending.offset(a, [*at, 'm0 + dm', 'k0 + dk'])}]")} : 0;
    }}
    for (int i = threadIdx.x; i < {SIDE * columns * DEPTH}; i += {THREADS}) {{
      const int {_places("n", SIDE * columns, strides_of(b, len(y.shape))[-2])};
      bs[dk][dn] = n0 + dn < N && k0 + dk < K
        ? {load_value(b.dtype, f"p1[{ending.offset(b, [*at, 'k0 + dk', 'n0 + dn'])}]")} : 0;
    }}
    __syncthreads();
    UNROLL for (int k = 0; k < {DEPTH}; ++k)
      UNROLL for (int i = 0; i < {rows}; ++i)
        UNROLL for (int j = 0; j < {columns}; ++j)
          sum[i][j] += as[k][row + {SIDE} * i] * bs[k][column + {SIDE} * j];
    __syncthreads();
  }}
  UNROLL for (int i = 0; i < {rows}; ++i)
    UNROLL for (int j = 0; j < {columns}; ++j) {{
      const int ym = m0 + row + {SIDE} * i, yn = n0 + column + {SIDE} * j;
      if (ym < M && yn < N) {ending.element("sum[i][j]", [*at, "ym", "yn"])}
    }}
}}
"""
    text = RUNS + ending.functions + kernel_head(problem, values, THREADS) + body
    blocks = mul(*(axis.size for axis in axes))
    return CudaSource(text, (Launch((blocks, 1, 1), THREADS, values.launch),))


def _places(name: str, extent: int, k_stride: Size) -> str:
    """C++: element i of a piece, in the order in which it lies in memory."""
    if k_stride == 1:
        return f"d{name} = i / {DEPTH}, dk = i % {DEPTH}"
    return f"d{name} = i % {extent}, dk = i / {extent}"


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """Constants stay as they are."""
    return {}
