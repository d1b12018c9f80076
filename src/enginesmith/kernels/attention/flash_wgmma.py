"""Attention on Hopper's tensor cores (`wgmma`, 9.0 alone), for heads of 64 or 128.

A block takes WG * 64 queries of one head, 64 for each warp group; the copy engine brings tiles of
BN keys and values, STAGES - 1 - LAG ahead. Up to 256 keys are one tile, and then nothing found
before has to be scaled. Warp groups don't wait for each other, so that some multiply while others
compute exponentials; only the thread that asks for tile j + STAGES - LAG waits until all have read
tile j - LAG, whose place it takes. Otherwise as flash_mma.py.
"""

from __future__ import annotations

from enginesmith.codegen.cuda_wgmma import wgmma_functions
from enginesmith.kernels.attention.flash_text import (
    constants_text,
    functions_text,
    mask_row,
    padded,
    served,
    shared_limit,
    sizes_text,
)
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import Operand, Tactic, ceildiv, tactic
from enginesmith.kernels.cuda import CudaSource, Launch, TensorMap
from enginesmith.kernels.cuda_nest import Values, kernel_head
from enginesmith.plan.target import Target

BODY = r"""
  const int lane = threadIdx.x % 32, group = threadIdx.x / 128, row0 = threadIdx.x / 32 % 4 * 16;
  const int b = blockIdx.x, h = blockIdx.z;
  const int block = (int)(CAUSAL ? gridDim.y - 1 - blockIdx.y : blockIdx.y) * (WG * 64);
  const int first = block + group * 64;
  T *tiles_q = reinterpret_cast<T *>(shared_memory()), *tile_q = tiles_q + group * Q_TILE;
  T *tiles_k = tiles_q + WG * Q_TILE, *tiles_v = tiles_k + STAGES * BN * D;
  Barrier *full_k = reinterpret_cast<Barrier *>(tiles_v + STAGES * BN * V);
  Barrier *full_v = full_k + STAGES, *empty = full_v + STAGES;
  const int seen = CAUSAL ? imin(keys, imin(queries, block + WG * 64)) : keys;
  const int tiles = ceildiv(seen, BN);
  grid_launch();
  if (threadIdx.x == 0) {
    tma_prefetch(&m0);
    tma_prefetch(&m1);
    tma_prefetch(&m2);
    UNROLL for (int i = 0; i < 2 * STAGES; ++i) barrier_init(full_k + i, 1);
    UNROLL for (int i = 0; i < STAGES; ++i) barrier_init(empty + i, 4 * WG);
    barrier_fence();
  }
  __syncthreads();
  grid_wait();
  const auto load = [&](int j) {
    T *to = tiles_k + j % STAGES * (BN * D);
    Barrier *full = full_k + j % STAGES;
    barrier_expect(full, (BN + (j ? 0 : WG * 64)) * D * 2);
    if (j == 0)
      UNROLL for (int g = 0; g < WG; ++g)
        UNROLL for (int i = 0; i < D; i += 64)
          tma_load4(tiles_q + g * Q_TILE + i * 64, &m0, full, i, block + g * 64, h, b);
    UNROLL for (int i = 0; i < D; i += 64) tma_load4(to + i * BN, &m1, full, i, j * BN, h, b);
    to = tiles_v + j % STAGES * (BN * V);
    full = full_v + j % STAGES;
    barrier_expect(full, BN * V * 2);
    UNROLL for (int i = 0; i < V; i += 64) tma_load4(to + i * BN, &m2, full, i, j * BN, h, b);
  };
  if (threadIdx.x == 0)
    for (int j = 0; j < imin(tiles, STAGES); ++j) load(j);
  float o[V / 2] = {}, sum[2] = {}, top[2] = {HIDDEN, HIDDEN};
  for (int j = 0; j < tiles; ++j) {
    const int key0 = j * BN, parity = j / STAGES % 2;
    /* Keys of this tile that some query of this group sees; `whole`: all see all. */
    const int visible = first < queries ? imin(keys, CAUSAL ? first + 64 : keys) - key0 : 0;
    const bool whole = visible >= BN && (!CAUSAL || key0 + BN <= first + 1);
    if (visible > 0) {
      float s[BN / 2];
      float (&scores)[BN / 8][4] = reinterpret_cast<float (&)[BN / 8][4]>(s);
      float (&found)[V / 8][4] = reinterpret_cast<float (&)[V / 8][4]>(o);
      UNROLL for (int r = 0; r < 2; ++r) {
        const int row = first + row0 + 8 * r + lane / 4;
        const M *mask = MASK_ROW;
        const int limit = CAUSAL ? imin(keys, row + 1) : keys;
        if (whole) start<false>(scores, r, mask, key0 + lane % 4 * 2, limit);
        else if (!WHOLE) start<true>(scores, r, mask, key0 + lane % 4 * 2, limit);
      }
      const T *tile_k = tiles_k + j % STAGES * (BN * D), *tile_v = tiles_v + j % STAGES * (BN * V);
      barrier_wait(full_k + j % STAGES, parity);
      wgmma_fence();
      UNROLL for (int k = 0; k < D / 16; ++k) {
        const int at = k / 4 * 64, piece = k % 4 * 16;
        wgmma(s, wgmma_tile(tile_q + at * 64 + piece), wgmma_tile(tile_k + at * BN + piece), true,
              Tag<T>());
      }
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(s);
      soften(scores, found, top, sum);
      uint32_t a[BN / 16][4];
      UNROLL for (int c = 0; c < BN / 16; ++c)
        UNROLL for (int i = 0; i < 4; ++i)
          a[c][i] = pack2(s[8 * c + 2 * i], s[8 * c + 2 * i + 1], Tag<T>());
      barrier_wait(full_v + j % STAGES, parity);
      wgmma_fence();
      UNROLL for (int c = 0; c < BN / 16; ++c)
        wgmma_mn(o, a[c], wgmma_tile_mn(tile_v + c * 16 * 64, BN * 128), true, Tag<T>());
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(o);
    }
    if (j - LAG + STAGES < tiles) {
      if (lane == 0) barrier_arrive(empty + j % STAGES);
      if (threadIdx.x == 0 && j >= LAG) {
        barrier_wait(empty + (j - LAG) % STAGES, (j - LAG) / STAGES & 1);
        load(j - LAG + STAGES);
      }
      sync_warp();
    }
  }
  sync_threads(1 + group, 128);  /* the group's queries have been read: y takes their place */
  store_quotients(tile_q, row0, reinterpret_cast<float (&)[V / 8][4]>(o), sum);
  sync_warp();
  write_rows<16>(PY + b * y_b + h * y_h, y_s, tile_q, row0, first, queries);
}
"""

MOST = 256
"""Keys of the largest tile."""


def tactics(problem: AttentionProblem, target: Target) -> tuple[Tactic, ...]:
    """Candidates, the most promising first; none if the problem can't be served."""
    q, k, v, *_ = problem.operands
    keys = k.shape[2]
    if target.arch != 90 or not served(problem) or not isinstance(keys, int) or keys == 0:
        return ()
    if any(n not in (64, 128) for n in (q.shape[3], v.shape[3])):
        return ()
    if any(s == 0 for o in (q, k, v) for s in o.strides):
        return ()
    whole = padded(keys)
    even = padded(-(-keys // -(-keys // 128)))  # tiles of at most 128 with little beyond the end
    small = whole <= MOST and q.shape[3] == v.shape[3] == 64
    sizes = [n for n in dict.fromkeys((*[whole] * small, even, 128, 64)) if n <= whole]
    rows = -(-problem.typical(q.shape[2]) // 64)
    # Each block reads all keys and values; of many, that is what bounds small blocks.
    most = 2 if whole <= MOST else 4
    groups = [g for g in (1, 2, 3, 4) if g <= min(most, rows)]
    found = [tactic("flash_wgmma", wg=g, bn=n) for n in sizes[: 2 + small] for g in groups]
    return tuple(t for t in found if _shared(problem, t) <= shared_limit(target))


def _stages(problem: AttentionProblem, tactic: Tactic) -> int:
    """Tiles of keys in shared memory: one more for many warp groups, which drift apart."""
    keys = problem.operands[1].shape[2]
    if isinstance(keys, int) and keys <= tactic["bn"]:
        return 1
    return 3 if tactic["wg"] > 2 else 2


def _shared(problem: AttentionProblem, tactic: Tactic) -> int:
    """Bytes: tiles of q (whose place y takes), k and v; barriers."""
    d, v = padded(problem.operands[0].shape[3]), padded(problem.operands[2].shape[3])
    stages = _stages(problem, tactic)
    return 2 * (64 * tactic["wg"] * max(d, v) + stages * tactic["bn"] * (d + v)) + 24 * stages


def _map(operand: Operand, index: int, rows: int) -> TensorMap:
    """Tiles of `rows` rows of 64 columns."""
    b, h, s, d = operand.shape
    strides = operand.strides
    return TensorMap(
        index, operand.dtype, (d, s, h, b), (strides[2], strides[1], strides[0]), (64, rows, 1, 1)
    )


def emit(problem: AttentionProblem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    wg, bn = tactic["wg"], tactic["bn"]
    q, k, v, *_, y = problem.operands
    width = padded(v.shape[3])
    threads = 128 * wg
    values = Values()
    body = sizes_text(problem, values)
    body += BODY.replace("PY", f"p{len(problem.operands) - 1}")
    body = body.replace("MASK_ROW", mask_row(problem, "b"))
    text = wgmma_functions(q.dtype, [bn])
    text += wgmma_functions(q.dtype, [width], from_registers=True, mn_major=True)
    text += constants_text(problem, threads, bn, bn) + functions_text(problem)
    stages = _stages(problem, tactic)
    text += f"constexpr int WG = {wg}, STAGES = {stages}, LAG = {int(stages > 2)};\n"
    text += "constexpr int Q_TILE = 64 * (D > V ? D : V);\n"
    narrow = bn <= 128 and padded(q.shape[3]) == width == 64 and len(problem.operands) == 4
    blocks = 4 // wg if narrow else 0  # 128 registers a thread, which suffices without a mask
    text += kernel_head(problem, values, threads, maps=3, blocks=blocks) + body
    maps = (_map(q, 0, 64), _map(k, 1, bn), _map(v, 2, bn))
    launch = Launch(
        (y.shape[0], ceildiv(y.shape[2], 64 * wg), y.shape[1]), threads, values.launch,
        shared=_shared(problem, tactic), maps=maps,
    )  # fmt: skip
    return CudaSource(text, (launch,))
