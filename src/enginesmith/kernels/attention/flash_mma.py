"""Attention on tensor cores through `mma.sync` (FlashAttention-2, Dao 2023), for half precision
and, as products of TF32, for float32.

A block takes BM queries of one head: WM groups of warps with MT * 16 queries each. The keys come
in tiles of WN * BN; each of the WN warps of a group takes its BN of them, keeps the greatest score,
the sum of weights and the weighted sum of values of its queries, and goes on with the next tile,
which is copied meanwhile. In the end what the WN warps found is put together. Splitting the keys
shortens the chain of dependent steps where there are too few queries to fill the machine.

Products are scaled inside the exponent: exp(scale * (s - max)) = 2 ** (rate * s - rate * max).
Masks are what the sums of products start from, so they cost no registers of their own.
"""

from __future__ import annotations

from enginesmith.kernels.attention.flash_text import (
    HALVES,
    constants_text,
    functions_text,
    mask_row,
    padded,
    served,
    shared_limit,
    sizes_text,
)
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import ITEMSIZE, Size, Tactic, ceildiv, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import Values, kernel_head
from enginesmith.plan.target import Target

KERNEL = r"""
constexpr int KEYS = WN * BN, BM = WM * MT * 16;
/* Put together what the WN warps of each group found, and write it. */
DEVICE void merge(
    T *y, int y_s, int first, int queries, int part, int row0, const float (&o)[MT][V / 8][4],
    const float (&top)[MT][2], const float (&sum)[MT][2]) {
  constexpr int PITCH = V + 8;
  float *parts = reinterpret_cast<float *>(shared_memory());
  float *tops = parts + WN * BM * PITCH, *sums = tops + WN * BM;
  const int lane = threadIdx.x % 32;
  __syncthreads();
  UNROLL for (int m = 0; m < MT; ++m)
    UNROLL for (int r = 0; r < 2; ++r) {
      const int row = part * BM + row0 + 16 * m + 8 * r + lane / 4;
      float total = sum[m][r];
      total += lane_xor(total, 1);
      total += lane_xor(total, 2);
      if (lane % 4 == 0) {
        tops[row] = top[m][r];
        sums[row] = total;
      }
      UNROLL for (int n = 0; n < V / 8; ++n)
        store_vec<float, 2>(parts + row * PITCH + 8 * n + lane % 4 * 2,
                            Vec<float, 2>{{o[m][n][2 * r], o[m][n][2 * r + 1]}});
    }
  __syncthreads();
  for (int i = threadIdx.x; i < BM * (WIDTH / 8); i += THREADS) {
    const int row = i / (WIDTH / 8), piece = i % (WIDTH / 8);
    float most = tops[row], total = 0.f, x[8] = {};
    UNROLL for (int p = 1; p < WN; ++p) most = fmaxf(most, tops[p * BM + row]);
    const float base = base_of(most);
    UNROLL for (int p = 0; p < WN; ++p) {
      const float share = weight(tops[p * BM + row], base);
      total += share * sums[p * BM + row];
      UNROLL for (int j = 0; j < 8; j += 4) {
        const Vec<float, 4> z = load_vec<float, 4>(parts + (p * BM + row) * PITCH + piece * 8 + j);
        UNROLL for (int l = 0; l < 4; ++l) x[j + l] += share * z.v[l];
      }
    }
    const float inverse = total == 0.f ? 0.f : 1.f / total;
    if (first + row < queries)
      UNROLL for (int j = 0; j < 8; j += PIECE) {
        Vec<T, PIECE> out;
        UNROLL for (int l = 0; l < PIECE; ++l) out.v[l] = from_float(x[j + l] * inverse, Tag<T>());
        store_vec<T, PIECE>(y + (first + row) * y_s + piece * 8 + j, out);
      }
  }
}
"""

BODY = r"""
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = warp / WM, row0 = warp % WM * (16 * MT), own = part * BN;
  const int b = blockIdx.x, h = blockIdx.z;
  const int first = (int)(CAUSAL ? gridDim.y - 1 - blockIdx.y : blockIdx.y) * BM;
  T *tile_q = reinterpret_cast<T *>(shared_memory());
  T *tiles_k = tile_q + BM * (D > V ? D : V), *tiles_v = tiles_k + STAGES * KEYS * D;
  const T *k = p1 + b * k_b + h * k_h, *v = p2 + b * v_b + h * v_h;
  T *y = PY + b * y_b + h * y_h;
  const int seen = CAUSAL ? imin(keys, imin(queries, first + BM)) : keys;
  const int tiles = imax(1, ceildiv(seen, KEYS));
  grid_launch();
  grid_wait();
  copy_rows<BM, DEPTH>(tile_q, p0 + b * q_b + h * q_h, q_s, first, queries);
  copy_rows<KEYS, DEPTH>(tiles_k, k, k_s, 0, keys);
  cp_async_commit();
  copy_rows<KEYS, WIDTH>(tiles_v, v, v_s, 0, keys);
  cp_async_commit();
  uint32_t q[MT][D / 16][FACTOR];
  float o[MT][V / 8][4] = {}, sum[MT][2] = {}, top[MT][2];
  UNROLL for (int m = 0; m < MT; ++m) top[m][0] = top[m][1] = HIDDEN;
  const int last = first + row0 + 16 * MT - 1;  /* of this warp's queries */
  for (int j = 0; j < tiles; ++j) {
    const int key0 = j * KEYS + own;
    /* Keys of this tile that some query of this warp sees; `whole`: all see all. */
    const int visible = first + row0 < queries ? imin(keys, CAUSAL ? last + 1 : keys) - key0 : 0;
    const bool whole = visible >= BN && (!CAUSAL || key0 + BN <= first + row0 + 1);
    float s[MT][BN / 8][4];
    if (visible > 0)
      UNROLL for (int m = 0; m < MT; ++m)
        UNROLL for (int r = 0; r < 2; ++r) {
          const int row = first + row0 + 16 * m + 8 * r + lane / 4;
          const M *mask = MASK_ROW;
          const int limit = CAUSAL ? imin(keys, row + 1) : keys;
          if (whole) start<false>(s[m], r, mask, key0 + lane % 4 * 2, limit);
          else if (!WHOLE) start<true>(s[m], r, mask, key0 + lane % 4 * 2, limit);
        }
    if (j == 0) cp_async_wait<1>();
    else cp_async_wait<0>();
    __syncthreads();
    if (j == 0)
      UNROLL for (int m = 0; m < MT; ++m) load_queries(q[m], tile_q, row0 + 16 * m);
    if (STAGES > 1) {
      if (j + 1 < tiles) {
        copy_rows<KEYS, DEPTH>(tiles_k + (j + 1) % 2 * (KEYS * D), k, k_s, (j + 1) * KEYS, keys);
        copy_rows<KEYS, WIDTH>(tiles_v + (j + 1) % 2 * (KEYS * V), v, v_s, (j + 1) * KEYS, keys);
      }
      cp_async_commit();
    }
    const T *tile_k = tiles_k + j % STAGES * (KEYS * D);
    const T *tile_v = tiles_v + j % STAGES * (KEYS * V);
    if (whole)
      UNROLL for (int i = 0; i < D / 16; ++i)
        UNROLL for (int c = 0; c < BN / 16; ++c) score<MT>(s, q, tile_k, own, c, i);
    else if (!WHOLE)
      UNROLL for (int c = 0; c < BN / 16; ++c)
        if (16 * c < visible)
          UNROLL for (int i = 0; i < D / 16; ++i) score<MT>(s, q, tile_k, own, c, i);
    if (visible > 0)
      UNROLL for (int m = 0; m < MT; ++m) soften(s[m], o[m], top[m], sum[m]);
    if (j == 0) {
      cp_async_wait<STAGES - 1>();
      __syncthreads();
    }
    if (whole)
      UNROLL for (int c = 0; c < BN / 16; ++c) weigh<MT>(o, s, tile_v, own, c);
    else if (!WHOLE)
      UNROLL for (int c = 0; c < BN / 16; ++c)
        if (16 * c < visible) weigh<MT>(o, s, tile_v, own, c);
  }
#if WN > 1
  merge(y, y_s, first, queries, part, row0, o, top, sum);
#else
  UNROLL for (int m = 0; m < MT; ++m) store_quotients(tile_q, row0 + 16 * m, o[m], sum[m]);
  sync_warp();
  write_rows<16 * MT>(y, y_s, tile_q, row0, first, queries);
#endif
}
"""


MANY = (
    (0, 1, 1, 64), (4, 1, 1, 64), (4, 2, 1, 64), (4, 1, 1, 128), (4, 2, 1, 32), (4, 1, 1, 32),
    (2, 2, 1, 64), (4, 1, 2, 32), (0, 1, 1, 32),
)  # fmt: skip
FEW = (
    (1, 1, 4, 32), (1, 1, 8, 32), (1, 1, 4, 16), (1, 1, 8, 16), (1, 1, 4, 64), (2, 1, 4, 32),
    (2, 1, 2, 64), (4, 1, 2, 64), (4, 1, 1, 64),
)  # fmt: skip
LONG = (
    (4, 1, 2, 64), (4, 1, 4, 32), (2, 1, 4, 32), (4, 1, 1, 64), (2, 1, 2, 64), (2, 2, 2, 64),
    (4, 2, 1, 64), (4, 1, 2, 32),
)  # fmt: skip
"""Candidates for many queries (throughput), for few (latency), and for few that see many keys
(neither, and traffic of k and v counts): warps along the queries (0: as many as share a head's
queries evenly), 16-query tiles of a warp, warps along the keys, keys of a warp."""

ENOUGH = 1024
"""Warps of 16 queries that fill a machine."""

FAR = 512
"""Keys that are many."""


def tactics(problem: AttentionProblem, target: Target) -> tuple[Tactic, ...]:
    """Candidates, the most promising first; none if the problem can't be served."""
    if not served(problem, ("float32", *HALVES)):
        return ()
    q, k, *_ = problem.operands
    batch, heads, queries = (problem.typical(n) for n in q.shape[:3])
    keys, rows = problem.typical(k.shape[2]), max(1, -(-queries // 16))
    even = -(-rows // -(-rows // 8))
    wide = max(padded(q.shape[3]), padded(v_width(problem))) > 64
    full = q.dtype == "float32"
    shapes = MANY if batch * heads * rows >= ENOUGH else LONG if keys > FAR else FEW
    found = [
        tactic("flash_mma", wm=wm or even, mt=mt, wn=wn, bn=bn)
        for wm, mt, wn, bn in shapes
        if (wn * bn < 2 * keys or wn * bn <= 64)
        and (wm * mt < 2 * rows or wm * mt <= 1)
        and not (wide and mt * bn > 64)  # too many registers
        and not (full and mt * bn > 32)
    ]
    unique = tuple(dict.fromkeys(found))
    return tuple(t for t in unique if shared_bytes(problem, t) <= shared_limit(target))


def v_width(problem: AttentionProblem) -> Size:
    """Columns of v and y."""
    return problem.operands[2].shape[3]


def stages(problem: AttentionProblem, tactic: Tactic) -> int:
    """Tiles of keys in shared memory: the one at hand and, if there are several, the next."""
    keys = problem.operands[1].shape[2]
    return 1 if isinstance(keys, int) and keys <= tactic["wn"] * tactic["bn"] else 2


def shared_bytes(problem: AttentionProblem, tactic: Tactic) -> int:
    """Shared memory of a block: tiles of q, k and v; in the end the parts to merge."""
    q, *_ = problem.operands
    d, v = padded(q.shape[3]), padded(v_width(problem))
    bm, wn = tactic["wm"] * tactic["mt"] * 16, tactic["wn"]
    tiles = bm * max(d, v) + stages(problem, tactic) * wn * tactic["bn"] * (d + v)
    return max(ITEMSIZE[q.dtype] * tiles, 4 * wn * bm * (v + 8 + 2) if wn > 1 else 0)


def _blocks(problem: AttentionProblem, tactic: Tactic) -> int:
    """Blocks that shall fit a multiprocessor: 128 registers a thread where that nearly suffices by
    itself; 0 leaves it to the compiler."""
    wide = max(padded(problem.operands[0].shape[3]), padded(v_width(problem))) > 64
    if wide or tactic["mt"] > 1 or tactic["bn"] != 64:
        return 0
    return 512 // (32 * tactic["wm"] * tactic["wn"])


def emit(problem: AttentionProblem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    wm, mt, wn, bn = (tactic[name] for name in ("wm", "mt", "wn", "bn"))
    threads, bm = 32 * wm * wn, 16 * wm * mt
    y = problem.operands[-1]
    values = Values()
    body = sizes_text(problem, values)
    body += BODY.replace("PY", f"p{len(problem.operands) - 1}")
    body = body.replace("MASK_ROW", mask_row(problem, "b"))
    text = constants_text(problem, threads, bn, wn * bn)
    text += f"#define WN {wn}\n"
    text += f"constexpr int WM = {wm}, MT = {mt}, STAGES = {stages(problem, tactic)};\n"
    text += functions_text(problem) + KERNEL
    text += kernel_head(problem, values, threads, blocks=_blocks(problem, tactic)) + body
    grid = (y.shape[0], ceildiv(y.shape[2], bm), y.shape[1])
    shared = shared_bytes(problem, tactic)
    return CudaSource(text, (Launch(grid, threads, values.launch, shared=shared),))
