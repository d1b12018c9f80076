"""Matrix products with few rows: bound by the time it takes to read b, a constant.

b is packed as [column][k], so that `lanes` neighbouring threads read a column in vectors of 16
bytes, multiply it with up to `rows` rows of a and add up their sums. The first `ahead` vectors of
each thread are on their way before the kernel waits for the one before it.
Parameters: lanes (a power of two, 32 at most), columns per group of lanes, rows (rows * columns is
at most lanes), ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from enginesmith.codegen.cuda_expressions import load_value
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import ITEMSIZE, Problem, Size, Tactic, ceildiv, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import RUNS, Values, index_text, kernel_head
from enginesmith.kernels.ending import FLOATS, Ending, run_width
from enginesmith.kernels.matmul import simple
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.nest import Axis, product
from enginesmith.plan.target import Target

THREADS = 128
ROWS = 8
"""Rows of a block at most."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if (reason := simple.why_not(problem, target)) is not None:
        return reason
    a, b, y = problem.operands[0], problem.operands[1], problem.operands[-1]
    if a.dtype not in FLOATS or b.dtype not in FLOATS:
        return f"operands of {a.dtype}"
    if not b.constant or any(s != 0 for s in b.strides[:-2]):
        return "b is not one constant matrix"
    if not isinstance(b.shape[-2], int) or not isinstance(b.shape[-1], int):
        return "b has no static size"
    if b.shape[-2] == 0:
        return "sums of nothing"
    rows = problem.typical(product(y.shape[:-1]))
    return None if rows <= 2 * ROWS else f"{rows} rows"


def _size(problem: Problem) -> tuple[int, int]:
    """(K, N)."""
    k, n = problem.operands[1].shape[-2:]
    assert isinstance(k, int)
    assert isinstance(n, int)
    return k, n


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Whole warps per column unless columns are short; several columns if there are many."""
    k, n = _size(problem)
    rows = max(1, min(ROWS, problem.typical(product(problem.operands[-1].shape[:-1]))))
    vector = 16 // ITEMSIZE[problem.operands[1].dtype]
    found = []
    for lanes in (32, 16, 8, 4):
        steps = -(-k // (vector * lanes))
        wasted = steps * vector * lanes - k
        for columns in (1, 2, 4):
            enough = columns == 1 or n // columns * lanes >= 132 * 256
            short = lanes == 32 or steps <= 8
            if enough and short and (wasted <= k // 2 or lanes == 4):
                ahead = max(1, min(steps, 8, 16 // columns))
                high = min(rows, lanes // columns)
                found.append(tactic("gemv", lanes=lanes, columns=columns, rows=high, ahead=ahead))
    return tuple(found[:5])


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, MatMulProblem)
    return source(problem, tactic, problem.epilogue, None)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tactic's sizes. row: C++ that declares the indices `at` of the row number `row`."""

    problem: Problem
    tactic: Tactic
    row: str

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Lanes that share a column's sum; columns and rows of a group of lanes; steps whose
        weights are loaded at once."""
        t = self.tactic
        return t["lanes"], t["columns"], t["rows"], t["ahead"]

    @property
    def kind(self) -> str:
        return CUDA_TYPES[self.problem.operands[1].dtype]

    @property
    def vector(self) -> int:
        """Elements of a load."""
        return 16 // ITEMSIZE[self.problem.operands[1].dtype]

    @property
    def step(self) -> int:
        """Elements of k that a group of lanes reads at once."""
        return self.vector * self.tactic["lanes"]

    @property
    def steps(self) -> int:
        return -(-_size(self.problem)[0] // self.step)

    @property
    def at(self) -> list[str]:
        return [f"i{i}" for i in range(len(self.problem.operands[-1].shape) - 1)]


def source(problem: Problem, tactic: Tactic, epilogue: Expr, prologue: Expr | None) -> CudaSource:
    """The kernel of a problem with the operands of a `MatMulProblem`. The arguments of `prologue`
    besides a have a's shape or are broadcast to it."""
    y = problem.operands[-1]
    _, n = _size(problem)
    values = Values()
    ending = Ending(problem, epilogue, values, prologue)
    height = product(y.shape[:-1])
    row = index_text([Axis(s, ()) for s in y.shape[:-1]], values, "row")
    shape = _Shape(problem, tactic, row)
    lanes, columns, rows, _ = shape.sizes
    body = _begin(shape, ending, height) + _sum(shape, ending) + _finish(shape, ending)
    head = kernel_head(problem, values, THREADS, blocks=4)
    text = RUNS + ending.functions + _load_ahead(shape) + head + body
    grid = (-(-n // (THREADS // lanes * columns)), ceildiv(height, rows), 1)
    return CudaSource(text, (Launch(grid, THREADS, values.launch),))


def _load_ahead(shape: _Shape) -> str:
    """C++: a function that loads the weights of some steps."""
    kind, vector = shape.kind, shape.vector
    _, columns, _, ahead = shape.sizes
    return f"""\
DEVICE void load_ahead(Vec<{kind}, {vector}> (&w)[{ahead}][{columns}], const {kind} *b, int step) {{
  UNROLL for (int s = 0; s < {ahead}; ++s)
    UNROLL for (int j = 0; j < {columns}; ++j)
      w[s][j] = step + s < {shape.steps}
        ? load_now(b + (j * {shape.steps} + step + s) * {shape.step}) : Vec<{kind}, {vector}>{{}};
}}
"""


def _begin(shape: _Shape, ending: Ending, height: Size) -> str:
    """C++: the first weights, the sum that this lane finishes, and what the epilogue reads there;
    the rows of a."""
    a, values = shape.problem.operands[0], ending.values
    _, n = _size(shape.problem)
    lanes, columns, rows, ahead = shape.sizes
    return f"""\
  grid_launch();
  const int lane = threadIdx.x % {lanes};
  const int column = (blockIdx.x * {THREADS // lanes} + threadIdx.x / {lanes}) * {columns};
  const int first = blockIdx.y * {rows}, height = {values.value(height)}, N = {values.value(n)};
  const {shape.kind} *b = p1 + lane * {shape.vector}
    + imin(column, N - 1) / {columns} * {columns * shape.step * shape.steps};
  Vec<{shape.kind}, {shape.vector}> w[{ahead}][{columns}], next[{ahead}][{columns}];
  load_ahead(w, b, 0);
  // Each of the first lanes finishes one sum.
  const int row = imin(first + lane / {columns}, height - 1);
  const int n = imin(column + lane % {columns}, N - 1);
  const bool mine = lane < {rows * columns} && row == first + lane / {columns}
    && n == column + lane % {columns};
  {shape.row}
  {ending.fetch_element([*shape.at, "n"], constant=True)}
  grid_wait();
  const {CUDA_TYPES[a.dtype]} *a[{rows}];
  UNROLL for (int r = 0; r < {rows}; ++r) {{
    const int row = imin(first + r, height - 1);
    {shape.row}
    a[r] = p0 + {ending.offset(a, [*shape.at, "0"])};
  }}
  {ending.fetch_element([*shape.at, "n"], constant=False)}
"""


def _sum(shape: _Shape, ending: Ending) -> str:
    """C++: each lane's part of the sums, then all of them. Weights of the next steps are loaded
    while these are multiplied."""
    problem, vector = shape.problem, shape.vector
    a, b = problem.operands[:2]
    k, _ = _size(problem)
    lanes, columns, rows, ahead = shape.sizes
    together = max(1, min(ahead, 8 // rows))
    while ahead % together:
        together -= 1
    return f"""\
  float sum[{rows}][{columns}] = {{}};
  for (int s0 = 0; s0 < {shape.steps}; s0 += {ahead}) {{
    if (s0 + {ahead} < {shape.steps}) load_ahead(next, b, s0 + {ahead});
    UNROLL for (int s1 = 0; s1 < {ahead}; s1 += {together}) {{
      {CUDA_TYPES[a.dtype]} x[{together}][{rows}][{vector}] = {{}};
      UNROLL for (int s = 0; s < {together}; ++s) {{
        const int k = (s0 + s1 + s) * {shape.step} + lane * {vector};
        UNROLL for (int r = 0; r < {rows}; ++r)
          {_load_a(problem, ending, vector, k)}
      }}
      UNROLL for (int s = 0; s < {together}; ++s)
        UNROLL for (int r = 0; r < {rows}; ++r)
          UNROLL for (int i = 0; i < {vector}; ++i) {{
            float xi = {load_value(a.dtype, "x[s][r][i]")};
            {_prepare(shape, ending)}
            UNROLL for (int j = 0; j < {columns}; ++j)
              sum[r][j] += xi * {load_value(b.dtype, "w[s1 + s][j].v[i]")};
          }}
    }}
    UNROLL for (int s = 0; s < {ahead}; ++s)
      UNROLL for (int j = 0; j < {columns}; ++j) w[s][j] = next[s][j];
  }}
  UNROLL for (int r = 0; r < {rows}; ++r)
    UNROLL for (int j = 0; j < {columns}; ++j)
      UNROLL for (int by = {lanes // 2}; by > 0; by /= 2) sum[r][j] += lane_xor(sum[r][j], by);
"""


def _finish(shape: _Shape, ending: Ending) -> str:
    """C++: this lane's result."""
    _, columns, rows, _ = shape.sizes
    return f"""\
  float result = 0;
  UNROLL for (int i = 0; i < {rows * columns}; ++i)
    if (lane == i) result = sum[i / {columns}][i % {columns}];
  if (mine) {ending.element("result", [*shape.at, "n"], fetched=True)}
}}
"""


def _load_a(problem: Problem, ending: Ending, vector: int, depth: int) -> str:
    """C++ that loads x[s][r]: elements k.. of row r, zeros past the end."""
    a = problem.operands[0]
    rank = len(a.strides)
    if depth % vector == 0 and a.strides[-1] == 1:
        width = run_width(a, rank - 1, vector, rank)
        return f"if (k < {depth}) load_run<{width}>(x[s][r], a[r] + k);"
    stride = ending.values.text(a.strides[-1])
    return (
        f"UNROLL for (int i = 0; i < {vector}; ++i) "
        f"if (k + i < {depth}) x[s][r][i] = a[r][(k + i) * {stride}];"
    )


def _prepare(shape: _Shape, ending: Ending) -> str:
    """C++ that applies the prologue to xi, element i of what step s1 + s reads of row r."""
    if ending.prologue is None:
        return ""
    k, _ = _size(shape.problem)
    return f"""\
{{
              const int k = (s0 + s1 + s) * {shape.step} + lane * {shape.vector} + i;
              const int row = imin(first + r, height - 1);
              {shape.row}
              if (k < {k}) xi = {ending.prepared("xi", [*shape.at, "k"])};
            }}"""


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """b as [column, padded to a multiple of `columns`][k, padded to whole steps], in zeros."""
    if 1 not in constants:
        return {}
    k, n = _size(problem)
    b = constants[1].reshape(-1, k, n)[0]
    step = 16 // b.dtype.itemsize * tactic["lanes"]
    columns = tactic["columns"]
    packed = np.zeros((-(-n // columns) * columns, -(-k // step) * step), b.dtype)
    packed[:n, :k] = b.T
    return {1: packed}
