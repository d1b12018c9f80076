"""Attention on tensor cores over few keys and many batches (windows): all keys are scored at once,
and a block serves one head of one batch after the other, copying the next one's q, k and v
meanwhile. What the mask adds is the same for all of them and stays in registers.
"""

from __future__ import annotations

from enginesmith.kernels.attention.flash_text import (
    constants_text,
    functions_text,
    mask_period,
    mask_row,
    padded,
    served,
    shared_limit,
    sizes_text,
)
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import Size, Tactic, ceildiv, mul, same, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import Values, kernel_head
from enginesmith.plan.target import Target

KERNEL = r"""
constexpr int BM = THREADS / 2, Q_TILE = BM * (D > V ? D : V);
constexpr int TILES = Q_TILE + BN * (D + V);  /* elements of a batch's q, k and v */
"""

BODY = r"""
  const int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16;
  const int h = blockIdx.z, first = blockIdx.y * BM;
  T *tiles = reinterpret_cast<T *>(shared_memory());
  grid_launch();
  WAIT_FIRST
  float bias[BN / 8][4];
  UNROLL for (int r = 0; r < 2; ++r) {
    const int row = first + row0 + 8 * r + lane / 4;
    const M *mask = MASK_ROW;
    start<!WHOLE>(bias, r, mask, lane % 4 * 2, CAUSAL ? imin(keys, row + 1) : keys);
  }
  WAIT_THEN
  for (int b = blockIdx.x, next = b, i = -1; b < batches; ++i) {
    if (next < batches) {
      T *to = tiles + (i + 1) % 2 * TILES;
      copy_rows<BM, DEPTH>(to, p0 + next * q_b + h * q_h, q_s, first, queries);
      copy_rows<BN, DEPTH>(to + Q_TILE, p1 + next * k_b + h * k_h, k_s, 0, keys);
      copy_rows<BN, WIDTH>(to + Q_TILE + BN * D, p2 + next * v_b + h * v_h, v_s, 0, keys);
    }
    cp_async_commit();
    next += gridDim.x;
    if (i < 0) continue;
    T *tile_q = tiles + i % 2 * TILES, *tile_k = tile_q + Q_TILE, *tile_v = tile_k + BN * D;
    cp_async_wait<1>();
    __syncthreads();
    if (first + row0 < queries) {
      uint32_t q[1][D / 16][FACTOR];
      float s[1][BN / 8][4], o[1][V / 8][4] = {}, sum[2] = {}, top[2] = {HIDDEN, HIDDEN};
      load_queries(q[0], tile_q, row0);
      UNROLL for (int n = 0; n < BN / 8; ++n)
        UNROLL for (int e = 0; e < 4; ++e) s[0][n][e] = bias[n][e];
      UNROLL for (int k = 0; k < D / 16; ++k)
        UNROLL for (int c = 0; c < BN / 16; ++c) score<1>(s, q, tile_k, 0, c, k);
      soften(s[0], o[0], top, sum);
      UNROLL for (int c = 0; c < BN / 16; ++c) weigh<1>(o, s, tile_v, 0, c);
      sync_warp();  /* the warp's queries have been read: y takes their place */
      store_quotients(tile_q, row0, o[0], sum);
      sync_warp();
      write_rows<16>(PY + b * y_b + h * y_h, y_s, tile_q, row0, first, queries);
    }
    __syncthreads();
    b += gridDim.x;
  }
}
"""

MOST = 64
"""Keys whose scores and mask fit in registers."""


def tactics(problem: AttentionProblem, target: Target) -> tuple[Tactic, ...]:
    """Candidates, the most promising first; none if the problem can't be served."""
    q, k, *_ = problem.operands
    if not served(problem) or not isinstance(k.shape[2], int) or not 0 < k.shape[2] <= MOST:
        return ()
    batch, heads, queries = (problem.typical(n) for n in q.shape[:3])
    warps = min(4, max(1, -(-queries // 16)))
    period = _period(problem)
    longest = batch // period if isinstance(period, int) and period else 1
    enough = batch * heads * -(-queries // (16 * warps)) // 1024
    repeats = [1, *(r for r in (4, 8, 16) if r <= min(longest, enough))]
    found = [tactic("flash_short", warps=warps, repeat=r) for r in reversed(repeats)]
    return tuple(t for t in found if _shared(problem, t) <= shared_limit(target))


def _period(problem: AttentionProblem) -> Size:
    """Batches after which masks repeat; the batches of a block are multiples of it apart."""
    period = mask_period(problem)
    batches = problem.operands[0].shape[0]
    return batches if not isinstance(period, int) or same(period, batches) else period


def _blocks(problem: AttentionProblem, repeat: int) -> Size:
    """Blocks along the batches: a multiple of the period, so that a block keeps its mask."""
    batches, period = problem.operands[0].shape[0], _period(problem)
    if not isinstance(period, int) or period == 0:
        return batches
    return mul(period, ceildiv(batches, period * repeat))


def _keys(problem: AttentionProblem) -> int:
    return padded(problem.operands[1].shape[2])


def _shared(problem: AttentionProblem, tactic: Tactic) -> int:
    """Bytes: two batches' q (whose place y takes), k and v."""
    d, v = padded(problem.operands[0].shape[3]), padded(problem.operands[2].shape[3])
    return 2 * 2 * (16 * tactic["warps"] * max(d, v) + _keys(problem) * (d + v))


def emit(problem: AttentionProblem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    threads = 32 * tactic["warps"]
    q, *_, y = problem.operands
    masks = problem.operands[3:-1]
    values = Values()
    body = sizes_text(problem, values)
    body += f"  const int batches = {values.value(q.shape[0])};\n"
    body += BODY.replace("PY", f"p{len(problem.operands) - 1}")
    early = all(m.constant for m in masks)
    body = body.replace("WAIT_FIRST", "" if early else "grid_wait();")
    body = body.replace("WAIT_THEN", "grid_wait();" if early else "")
    body = body.replace("MASK_ROW", mask_row(problem, "(int)blockIdx.x"))
    text = (
        constants_text(problem, threads, _keys(problem), _keys(problem))
        + functions_text(problem)
        + KERNEL
    )
    text += kernel_head(problem, values, threads) + body
    grid = (_blocks(problem, tactic["repeat"]), ceildiv(y.shape[2], threads // 2), y.shape[1])
    shared = _shared(problem, tactic)
    return CudaSource(text, (Launch(grid, threads, values.launch, shared=shared),))
