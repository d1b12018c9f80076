"""Running sums for GPUs: a thread for each line, or a block that scans it.

float16 and bfloat16 are summed in float.
"""

from __future__ import annotations

from enginesmith.codegen.cuda_expressions import load_value, store_value, value_type
from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import (
    MULTIPROCESSORS,
    Values,
    by_strides,
    grid_of,
    index_text,
    kernel_head,
    offset_text,
)
from enginesmith.kernels.cumsum.problem import CumSumProblem
from enginesmith.kernels.cumsum.problem import cost as cumsum_cost
from enginesmith.kernels.ending import FLOATS
from enginesmith.kernels.nest import Axis, axes_of, nothing_packed, product
from enginesmith.plan.target import Target

ITEMS = 4
"""Consecutive elements a thread of the scan sums by itself."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, CumSumProblem):
        return "not a running sum"
    x, y = problem.operands
    if x.block or y.block or (x.dtype != y.dtype and not {x.dtype, y.dtype} <= set(FLOATS)):
        return "operands must be plain and of one dtype, or float32 and half precision"
    return None


def _axes(problem: CumSumProblem) -> tuple[list[Axis], Axis]:
    """The axes that count lines, and a line."""
    axes = axes_of(problem.operands[1].shape, problem.operands)
    line = axes.pop(problem.axis % len(axes))
    return by_strides(problem, axes, 1), line


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, CumSumProblem)
    outer, line = _axes(problem)
    lines, length = problem.typical(product([a.size for a in outer])), problem.typical(line.size)
    threads = min(1024, max(32, 1 << ((length - 1) // ITEMS).bit_length()))
    ways = (tactic("scan", threads=threads), tactic("lines", threads=64))
    many = lines >= 64 * MULTIPROCESSORS and line.strides[1] != 1
    return ways[::-1] if many or length <= 8 else ways


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, CumSumProblem)
    outer, line = _axes(problem)
    values, threads = Values(), tactic["threads"]
    names = [f"i{k}" for k in range(len(outer))]
    x, y = (offset_text(names, [a.strides[k] for a in outer], values) for k in (0, 1))
    lines = product([a.size for a in outer])
    s, t = (values.text(n) for n in line.strides)
    length = values.value(line.size)
    at = f"{length} - 1 - k" if problem.reverse else "k"
    scan = tactic.name == "scan"
    row = "blockIdx.x" if scan else f"blockIdx.x * {threads} + threadIdx.x"
    given, made = (o.dtype for o in problem.operands)
    head = f"""  grid_launch();
  grid_wait();
  const int row = {row};
  if (row >= {values.value(lines)}) return;
  {index_text(outer, values, "row")}\
  const auto load = [&](int k) {{ return {load_value(given, f"p0[{x} + ({at}) * {s}]")}; }};
  const auto store = [&](int k, {value_type(made)} sum) {{
    p1[{y} + ({at}) * {t}] = {store_value(made, "sum")};
  }};
"""
    make = _scan if scan else _line
    body = make(value_type(given), length, problem.exclusive, threads)
    grid = (lines, 1, 1) if scan else grid_of(lines, threads)
    text = kernel_head(problem, values, threads) + head + body
    return CudaSource(text, (Launch(grid, threads, values.launch),))


def _line(kind: str, length: str, exclusive: bool, threads: int) -> str:
    """A thread sums a line; neighbouring threads have neighbouring lines."""
    steps = "store(k, sum); sum += x;" if exclusive else "sum += x; store(k, sum);"
    return f"""  {kind} sum = 0;
  _Pragma("unroll 8") for (int k = 0; k < {length}; ++k) {{ const {kind} x = load(k); {steps} }}
}}
"""


def _scan(kind: str, length: str, exclusive: bool, threads: int) -> str:
    """A block sums a line, ITEMS elements a thread at a time: each thread its own, then their sums
    are scanned across the warp's lanes, then across warps."""
    warps = threads // 32
    each = "store(k, sum); sum += v[e];" if exclusive else "sum += v[e]; store(k, sum);"
    return f"""  __shared__ {kind} sums[{warps}];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  {kind} before = 0;
  for (int begin = 0; begin < {length}; begin += {threads * ITEMS}) {{
    const int mine = begin + threadIdx.x * {ITEMS};
    {kind} v[{ITEMS}], own = 0;
    UNROLL for (int e = 0; e < {ITEMS}; ++e)
      v[e] = mine + e < {length} ? load(mine + e) : ({kind})0;
    UNROLL for (int e = 0; e < {ITEMS}; ++e) own += v[e];
    {kind} upto = own;
    UNROLL for (int by = 1; by < 32; by *= 2) {{
      const {kind} x = lane_up(upto, by);
      if (lane >= by) upto += x;
    }}
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    {kind} sum = before + (upto - own);
    for (int w = 0; w < {warps}; ++w) {{
      if (w < warp) sum += sums[w];
      before += sums[w];
    }}
    __syncthreads();
    UNROLL for (int e = 0; e < {ITEMS}; ++e) {{
      const int k = mine + e;
      if (k < {length}) {{ {each} }}
    }}
  }}
}}
"""


pack = nothing_packed
cost = cumsum_cost
