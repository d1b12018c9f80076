"""ArgMax and ArgMin for GPUs: groups of threads search a line together.

As on CPUs an element that is not a number never wins, unless it is the line's first: then it stays.
"""

from __future__ import annotations

from enginesmith.codegen.cuda_expressions import load_value, value_type
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.argmax.problem import ArgMaxProblem
from enginesmith.kernels.argmax.problem import cost as argmax_cost
from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import (
    MULTIPROCESSORS,
    RUNS,
    Values,
    by_strides,
    grid_of,
    index_text,
    kernel_head,
    offset_text,
    vector_width,
)
from enginesmith.kernels.nest import Axis, nothing_packed, product
from enginesmith.plan.target import Target

LOADS = 4
"""Vectors a thread has in flight."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ArgMaxProblem):
        return "not an argmax"
    x, y = problem.operands
    if x.block or y.block or y.dtype != "int64":
        return "operands must be plain, the result int64"
    return None


def _axes(problem: ArgMaxProblem) -> tuple[list[Axis], Axis]:
    """The axes that count lines, and a line (stride 0 in y)."""
    x, y = problem.operands
    rank = len(x.strides)
    axis = problem.axis % rank
    kept = [k for k in range(rank) if k != axis]
    same_rank = len(y.strides) == rank
    axes = [
        Axis(x.shape[k], (x.strides[k], y.strides[k if same_rank else at]))
        for at, k in enumerate(kept)
    ]
    return by_strides(problem, axes, 0), Axis(x.shape[axis], (x.strides[axis], 0))


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`. group: threads of a line; threads: of a block."""
    assert isinstance(problem, ArgMaxProblem)
    outer, line = _axes(problem)
    lines, length = problem.typical(product([a.size for a in outer])), problem.typical(line.size)
    vec = vector_width(problem.operands[0], [*outer, line], 0)
    found = [(g, 128) for g in (1, 4, 8, 16, 32) if g == 1 or g * vec <= max(length, 1)]
    found += [(t, t) for t in (128, 256, 512, 1024) if t * vec <= length]

    def time(way: tuple[int, int]) -> float:
        """Steps of a thread, more where threads touch elements that lie apart or wait in line."""
        group, _ = way
        waves = max(1.0, lines * group / (MULTIPROCESSORS * 2048))
        apart = 4 if (line.strides[0] == 1) == (group == 1) else 1
        return waves * (apart * length / (group * vec) + 2 * group.bit_length())

    found.sort(key=time)
    return tuple(tactic("lines", group=g, threads=t) for g, t in found[:4])


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, ArgMaxProblem)
    group, threads = tactic["group"], tactic["threads"]
    outer, line = _axes(problem)
    values, x = Values(), problem.operands[0]
    names = [f"i{k}" for k in range(len(outer))]
    from_x, to_y = (offset_text(names, [a.strides[k] for a in outer], values) for k in (0, 1))
    lines, length = product([a.size for a in outer]), values.value(line.size)
    vec = vector_width(x, [*outer, line], 0)
    kind, rows = value_type(x.dtype), threads // group
    load = f"v[u][0] = x[at * {values.text(line.strides[0])}]"
    if vec > 1:
        load = f"if (n >= {vec}) load_run<{vec}>(v[u], x + at); else load_some(v[u], x + at, 1, n)"
    step = group * vec
    body = f"""  grid_launch();
  grid_wait();
  const int lane = threadIdx.x % {group};
  const int row = imin(blockIdx.x * {rows} + threadIdx.x / {group}, {values.value(lines)} - 1);
  {index_text(outer, values, "row")}\
  const {CUDA_TYPES[x.dtype]} *x = p0 + ({from_x});
  const {kind} head = {load_value(x.dtype, "*x")};
  {kind} top = head;
  int best = 0;
  for (int k = lane * {vec}; k < {length}; k += {LOADS * step}) {{
    {CUDA_TYPES[x.dtype]} v[{LOADS}][{vec}];
    UNROLL for (int u = 0; u < {LOADS}; ++u) {{
      const int at = k + u * {step}, n = {length} - at;
      if (n > 0) {{ {load}; }}
    }}
    UNROLL for (int u = 0; u < {LOADS}; ++u) UNROLL for (int e = 0; e < {vec}; ++e) {{
      const int at = k + u * {step} + e;
      if (at < {length}) NAME_choose(top, best, ({kind}){load_value(x.dtype, "v[u][e]")}, at);
    }}
  }}
{_combine(kind, group, threads)}\
  if (lane == 0 && blockIdx.x * {rows} + threadIdx.x / {group} < {values.value(lines)})
    p1[{to_y}] = best;
}}
"""
    text = RUNS + _choose(problem, kind) + kernel_head(problem, values, threads) + body
    return CudaSource(text, (Launch(grid_of(lines, rows), threads, values.launch),))


def _choose(problem: ArgMaxProblem, kind: str) -> str:
    """C++: keeps the better of (top, best) and element k. Not a number: `x` loses all comparisons
    and `top` (the line's first) wins them."""
    better, later = ("<" if problem.minimum else ">"), (">" if problem.last else "<")
    return (
        f"DEVICE void NAME_choose({kind} &top, int &best, {kind} x, int k) {{\n"
        f"  if (x {better} top || (x == top && k {later} best)) {{ top = x; best = k; }}\n}}\n"
    )


def _combine(kind: str, group: int, threads: int) -> str:
    """C++: (top, best) of a group's threads, in all of a warp's lanes, or in the first warp's."""
    across = min(group, 32)
    text = f"""\
  UNROLL for (int by = 1; by < {across}; by *= 2) {{
    const {kind} other = lane_xor(top, by);
    const int at = lane_xor(best, by);
    NAME_choose(top, best, other, at);
  }}
"""
    if group <= 32:
        return text if group > 1 else ""
    warps = threads // 32
    return (
        text
        + f"""\
  __shared__ {kind} tops[{warps}];
  __shared__ int bests[{warps}];
  if (threadIdx.x % 32 == 0) {{ tops[threadIdx.x / 32] = top; bests[threadIdx.x / 32] = best; }}
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < {warps}; ++w) NAME_choose(top, best, tops[w], bests[w]);
"""
    )


pack = nothing_packed
cost = argmax_cost
