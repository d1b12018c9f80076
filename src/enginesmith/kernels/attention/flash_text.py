"""What the tensor-core attention kernels share: C++ text, and which problems they serve.

The text is written in terms of constants that each kernel declares (see `constants_text`). Tiles of
q, k and v lie in shared memory row by row, in pieces of 16 bytes. Scores of 16 queries lie in
registers as `mma` leaves them: s[n][e] of a lane is query lane / 4 + 8 * (e / 2), key 8 * n +
lane % 4 * 2 + e % 2. Rounded to T, that is the first factor of the product with v.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import ITEMSIZE, Operand, Size, same
from enginesmith.kernels.cuda_nest import Values, factor
from enginesmith.plan.target import Target

HALVES = ("float16", "bfloat16")

HALF_PRODUCTS = r"""
/* 16 queries of a tile, from `row` on, as first factors. */
DEVICE void load_queries(uint32_t (&q)[D / 16][FACTOR], const T *tile, int row) {
  const int lane = threadIdx.x % 32;
  UNROLL for (int k = 0; k < D / 16; ++k)
    ldmatrix_x4(q[k], tile + place<D / 8>(row + lane % 16, 2 * k + lane / 16));
}
/* c0, c1 += a * 16 columns of b. */
DEVICE void multiply(
    float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t lo[2] = {b[0], b[1]}, hi[2] = {b[2], b[3]};
  mma(c0, a, lo, Tag<T>());
  mma(c1, a, hi, Tag<T>());
}
/* s += q * transposed k: 16 keys of the tile, from row + 16 * c on, step k of 16 of the depth. */
template <int M> DEVICE void score(
    float (&s)[M][BN / 8][4], const uint32_t (&q)[M][D / 16][FACTOR], const T *tile, int row, int c,
    int k) {
  const int lane = threadIdx.x % 32;
  uint32_t b[4];
  row += 16 * c + lane % 8 + lane / 16 * 8;
  ldmatrix_x4(b, tile + place<D / 8>(row, 2 * k + lane / 8 % 2));
  UNROLL for (int m = 0; m < M; ++m) multiply(s[m][2 * c], s[m][2 * c + 1], q[m][k], b);
}
/* o += s * v for 16 keys of the tile, from row + 16 * c on. */
template <int M> DEVICE void weigh(
    float (&o)[M][V / 8][4], const float (&s)[M][BN / 8][4], const T *tile, int row, int c) {
  const int lane = threadIdx.x % 32;
  uint32_t a[M][4];
  UNROLL for (int m = 0; m < M; ++m)
    UNROLL for (int i = 0; i < 4; ++i)
      a[m][i] = pack2(s[m][2 * c + i / 2][i % 2 * 2], s[m][2 * c + i / 2][i % 2 * 2 + 1], Tag<T>());
  UNROLL for (int n = 0; n < V / 16; ++n) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, tile + place<V / 8>(row + 16 * c + lane % 16, 2 * n + lane / 16));
    UNROLL for (int m = 0; m < M; ++m) multiply(o[m][2 * n], o[m][2 * n + 1], a[m], b);
  }
}
"""
"""C++: products of half-precision tiles, with `mma` of 16 x 8 x 16."""

FLOAT_PRODUCTS = r"""
/* x in two TF32 numbers, the second what the first leaves. */
DEVICE void split(uint32_t &high, uint32_t &low, float x) {
  const float rounded = to_tf32(x);
  high = __float_as_uint(rounded);
  low = __float_as_uint(to_tf32(x - rounded));
}
/* c += a * b but for the product of the low parts. a: 4 high parts, then 4 low ones. */
DEVICE void multiply(float (&c)[4], const uint32_t *a, float b0, float b1) {
  const uint32_t high_a[4] = {a[0], a[1], a[2], a[3]}, low_a[4] = {a[4], a[5], a[6], a[7]};
  uint32_t high[2], low[2];
  split(high[0], low[0], b0);
  split(high[1], low[1], b1);
  mma(c, high_a, low, Tag<T>());
  mma(c, low_a, high, Tag<T>());
  mma(c, high_a, high, Tag<T>());
}
/* 16 queries of a tile, from `row` on, as first factors. */
DEVICE void load_queries(uint32_t (&q)[D / 16][FACTOR], const T *tile, int row) {
  const int lane = threadIdx.x % 32;
  UNROLL for (int k = 0; k < D / 8; ++k)
    UNROLL for (int i = 0; i < 4; ++i) {
      const int at = place<D / 4>(row + lane / 4 + i % 2 * 8, 2 * k + i / 2) + lane % 4;
      split(q[k / 2][k % 2 * 8 + i], q[k / 2][k % 2 * 8 + i + 4], tile[at]);
    }
}
/* s += q * transposed k: 16 keys of the tile, from row + 16 * c on, step k of 16 of the depth. */
template <int M> DEVICE void score(
    float (&s)[M][BN / 8][4], const uint32_t (&q)[M][D / 16][FACTOR], const T *tile, int row, int c,
    int k) {
  const int lane = threadIdx.x % 32;
  UNROLL for (int n = 2 * c; n < 2 * c + 2; ++n)
    UNROLL for (int i = 0; i < 2; ++i) {
      const T *b = tile + lane % 4;
      const float b0 = b[place<D / 4>(row + 8 * n + lane / 4, 4 * k + 2 * i)];
      const float b1 = b[place<D / 4>(row + 8 * n + lane / 4, 4 * k + 2 * i + 1)];
      UNROLL for (int m = 0; m < M; ++m) multiply(s[m][n], q[m][k] + 8 * i, b0, b1);
    }
}
/* o += s * v for 16 keys of the tile, from row + 16 * c on. (Steps t and t + 4 of a product are
   keys 2t and 2t + 1, so that scores are first factors where they are.) */
template <int M> DEVICE void weigh(
    float (&o)[M][V / 8][4], const float (&s)[M][BN / 8][4], const T *tile, int row, int c) {
  const int lane = threadIdx.x % 32;
  UNROLL for (int k = 2 * c; k < 2 * c + 2; ++k) {
    uint32_t a[M][8];
    UNROLL for (int m = 0; m < M; ++m)
      UNROLL for (int i = 0; i < 4; ++i)
        split(a[m][i], a[m][i + 4], s[m][k][i % 2 * 2 + i / 2]);
    const int key = row + 8 * k + lane % 4 * 2;
    UNROLL for (int n = 0; n < V / 8; ++n) {
      const T *b = tile + lane / 4 % 4;
      const float b0 = b[place<V / 4>(key, 2 * n + lane / 16)];
      const float b1 = b[place<V / 4>(key + 1, 2 * n + lane / 16)];
      UNROLL for (int m = 0; m < M; ++m) multiply(o[m][n], a[m], b0, b1);
    }
  }
}
"""
"""C++: products of float32 tiles to nearly full precision, as three products of TF32 (Ootomo and
Yokota 2022), with `mma` of 16 x 8 x 8."""

FUNCTIONS = r"""
#define HIDDEN __uint_as_float(0xff800000u)  /* minus infinity */
/* Where a piece lies in a tile of N pieces a row. Rows begin with different pieces, so that the
   same piece of 8 consecutive rows is in 8 different sets of banks. */
template <int N> DEVICE int place(int row, int piece) {
  constexpr int Z = N % 8 == 0 ? 8 : N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1;
  return (row * N + (piece ^ ((uint32_t)row / (8 / Z) % Z))) * PIECE;
}
/* Rows first, first + 1, ... of `from` (`stride` elements apart, `rows` in all, COLUMNS columns) to
   a tile of ROWS; zeros past the last row and column. */
template <int ROWS, int COLUMNS> DEVICE void copy_rows(
    T *to, const T *from, int stride, int first, int rows) {
  constexpr int N = (COLUMNS + 15) / 16 * 16 / PIECE, ALL = ROWS * N;
  const int lane = threadIdx.x;
  UNROLL for (int i = 0; i < ALL; i += THREADS) {
    /* Written so that a thread keeps its column, and little is left to compute, where it can. */
    const int row = THREADS % N ? (i + lane) / N : i / N + lane / N;
    const int piece = THREADS % N ? (i + lane) % N : lane % N;
    if (ALL % THREADS == 0 || row < ROWS) {
      const bool valid = first + row < rows && piece * PIECE < COLUMNS;
      const int where = valid ? (first + row) * stride + piece * PIECE : 0;
      cp_async16(to + place<N>(row, piece), from + where, valid);
    }
  }
}
/* The greatest score as `weight` wants it, and a score's weight relative to it. Scores that a mask
   hides may be as low as -1e30, where a product that is rounded and one that is not (in a fused
   multiply-add) differ by more than exponents hold: there the difference is taken first. */
DEVICE float base_of(float most) { return most == HIDDEN ? 0.f : MASK ? most : most * RATE; }
DEVICE float weight(float score, float base) {
  return fast_exp2(MASK ? (score - base) * RATE : score * RATE - base);
}
/* Weights of a tile's keys in place of their scores; what was found before is scaled down to the
   new maximum. */
DEVICE void soften(float (&s)[BN / 8][4], float (&o)[V / 8][4], float (&top)[2], float (&sum)[2]) {
  UNROLL for (int r = 0; r < 2; ++r) {
    float most = top[r];
    UNROLL for (int n = 0; n < BN / 8; ++n)
      most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    most = fmaxf(most, lane_xor(most, 1));
    most = fmaxf(most, lane_xor(most, 2));
    const float base = base_of(most), shrink = weight(top[r], base);
    float total = 0.f;
    UNROLL for (int n = 0; n < BN / 8; ++n)
      UNROLL for (int e = 2 * r; e < 2 * r + 2; ++e) {
        s[n][e] = weight(s[n][e], base);
        total += s[n][e];
      }
    UNROLL for (int n = 0; n < V / 8; ++n) {
      o[n][2 * r] *= shrink;
      o[n][2 * r + 1] *= shrink;
    }
    sum[r] = sum[r] * shrink + total;
    top[r] = most;
  }
}
template <class U> DEVICE void store_pair(U *p, float x, float y) {
  *reinterpret_cast<uint32_t *>(p) = pack2(x, y, Tag<U>());
}
DEVICE void store_pair(float *p, float x, float y) { store_vec<float, 2>(p, {{x, y}}); }
/* Rows `row` to row + 15 of a tile = o / sum; `sum`: this lane's part of its two rows' sums. */
DEVICE void store_quotients(T *tile, int row, const float (&o)[V / 8][4], const float (&sum)[2]) {
  const int lane = threadIdx.x % 32;
  UNROLL for (int r = 0; r < 2; ++r) {
    float total = sum[r];
    total += lane_xor(total, 1);
    total += lane_xor(total, 2);
    const float inverse = total == 0.f ? 0.f : 1.f / total;
    UNROLL for (int n = 0; n < V / 8; ++n) {
      const int column = 8 * n + lane % 4 * 2;
      T *at = tile + place<V / PIECE>(row + lane / 4 + 8 * r, column / PIECE) + column % PIECE;
      store_pair(at, o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
    }
  }
}
/* This warp's COUNT rows of a tile, from `row` on, to y; query `first` is row 0 of the tile. */
template <int COUNT> DEVICE void write_rows(
    T *y, int stride, const T *tile, int row, int first, int queries) {
  constexpr int N = V / PIECE;
  UNROLL for (int i = 0; i < COUNT * N; i += 32) {
    const int at = i + (int)threadIdx.x % 32, r = row + at / N, piece = at % N;
    if (first + r < queries && piece * PIECE < WIDTH)
      store_vec<T, PIECE>(y + (first + r) * stride + piece * PIECE,
                          load_vec<T, PIECE>(tile + place<N>(r, piece)));
  }
}
#if MASK
/* What a mask's element adds to a product of a query and a key, before it is scaled. */
DEVICE float added(M m) {
#if MASK == 1
  return m ? 0.f : HIDDEN;
#else
  float x = to_float(m);
  if (MASK == 3 && x != HIDDEN) x = fmaxf(x, -1e30f);  /* or it overflows in what follows */
  return x * (1.f / SCALE);
#endif
}
#endif
/* Scores of this lane's keys (`key`, key + 1, key + 8, ...) and one query before any product: the
   mask. EDGE: some keys are past the last or not seen. `mask`: the query's row. */
template <bool EDGE> DEVICE void start(
    float (&s)[BN / 8][4], int r, const M *mask, int key, int limit) {
  UNROLL for (int n = 0; n < BN / 8; ++n) {
    float x[2] = {0.f, 0.f};
    const int at = key + 8 * n;
#if MASK
    if (PAIRS && !EDGE) {
      const Vec<M, 2> m = load_vec<M, 2>(mask + at);
      x[0] = added(m.v[0]);
      x[1] = added(m.v[1]);
    } else
      UNROLL for (int e = 0; e < 2; ++e)
        if (!EDGE || at + e < limit) x[e] = added(mask[(at + e) * MASK_STEP]);
#endif
    UNROLL for (int e = 0; e < 2; ++e) s[n][2 * r + e] = EDGE && at + e >= limit ? HIDDEN : x[e];
  }
}
"""


def served(problem: AttentionProblem, dtypes: Collection[str] = HALVES) -> bool:
    """True if the tensor-core kernels can serve the problem: q, k, v and y of one type, rows of
    whole pieces, heads of at most 128 (64 in float32, for which registers suffice)."""
    q, k, v, *mask, y = problem.operands
    depth, width = q.shape[3], v.shape[3]
    most = 64 if q.dtype == "float32" else 128
    return (
        q.dtype in dtypes
        and all(o.dtype == q.dtype and rows_of_pieces(o) for o in (q, k, v, y))
        and isinstance(depth, int)
        and isinstance(width, int)
        and all(n % 8 == 0 and 8 <= n <= most for n in (depth, width))
        and 1e-6 < problem.scale < 1e6
        and all(
            m.dtype in ("bool", "float32", *HALVES) and isinstance(m.strides[3], int) for m in mask
        )
    )


def rows_of_pieces(operand: Operand) -> bool:
    """True if the last axis is consecutive and every row begins at a multiple of 16 bytes."""
    return (
        operand.strides[3] == 1
        and factor(operand.alignment) >= 16
        and all(factor(s) >= 16 // ITEMSIZE[operand.dtype] for s in operand.strides[:3])
    )


def functions_text(problem: AttentionProblem) -> str:
    """C++: all that is common; after `constants_text`."""
    half = problem.operands[0].dtype in HALVES
    return FUNCTIONS + (HALF_PRODUCTS if half else FLOAT_PRODUCTS)


def shared_limit(target: Target) -> int:
    """Bytes of shared memory a block can have."""
    return {80: 163, 90: 227, 100: 227}.get(target.arch, 99) * 1024


def mask_period(problem: AttentionProblem) -> Size:
    """Batches after which the mask's repeat: 1 if all have the same (or there is none)."""
    if len(problem.operands) < 5 or problem.operands[3].strides[0] == 0:
        return 1
    return problem.operands[3].shape[0]


def mask_row(problem: AttentionProblem, batch: str) -> str:
    """C++: a pointer to the mask's row for query `row` of head `h` of a batch."""
    if len(problem.operands) < 5:
        return "(const M *)0"
    period = mask_period(problem)
    if isinstance(period, int) and not same(period, problem.operands[0].shape[0]):
        batch = f"{batch} % {period}"
    return f"p3 + {batch} * m_b + h * m_h + imin(row, queries - 1) * m_s"


def padded(size: Size) -> int:
    """A head's size in shared memory: whole steps of 16."""
    assert isinstance(size, int)
    return -(-size // 16) * 16


def constants_text(problem: AttentionProblem, threads: int, bn: int, tile: int) -> str:
    """C++: the constants `functions_text` needs.

    T: type of q, k, v and y; PIECE: its elements in 16 bytes; FACTOR: registers of the first factor
    of 16 queries and 16 steps of the depth. D, V: padded sizes of heads; DEPTH, WIDTH: true ones.
    BN: keys that a warp scores at once; WHOLE: if queries see all keys and these are whole tiles of
    `tile`. MASK: 0 none, 1 bool, 2 float16, 3 other floats. RATE: exp(SCALE * x) is
    2 ** (RATE * x).
    """
    q, k, v, *_ = problem.operands
    depth, width = q.shape[3], v.shape[3]
    keys = k.shape[2]
    whole = not problem.causal and isinstance(keys, int) and keys % tile == 0
    mask = problem.operands[3] if len(problem.operands) == 5 else None
    kind = 0 if mask is None else {"bool": 1, "float16": 2}.get(mask.dtype, 3)
    pairs = mask is not None and _pairs(mask)
    return f"""
typedef {CUDA_TYPES[q.dtype]} T;
typedef {CUDA_TYPES[mask.dtype if mask else "bool"]} M;
#define MASK {kind}
#define PAIRS {int(pairs)}
#define MASK_STEP {mask.strides[3] if mask else 0}
#define CAUSAL {int(problem.causal)}
#define WHOLE {int(whole)}
#define SCALE {problem.scale!r}f
#define RATE {problem.scale * math.log2(math.e)!r}f
#define THREADS {threads}
constexpr int PIECE = 16 / sizeof(T), FACTOR = sizeof(T) == 4 ? 16 : 4;
constexpr int DEPTH = {depth}, D = {padded(depth)}, WIDTH = {width}, V = {padded(width)}, BN = {bn};
"""


def _pairs(mask: Operand) -> bool:
    """True if two neighbouring elements, the first at an even place, can be loaded at once."""
    return (
        mask.strides[3] == 1
        and mask.alignment >= 2 * ITEMSIZE[mask.dtype]
        and all(factor(s) >= 2 for s in mask.strides[:3])
    )


def sizes_text(problem: AttentionProblem, values: Values) -> str:
    """C++: `queries`, `keys` and the strides q_b, q_h, q_s, ... (batch, head, row) of q, k, v, y
    and m (the mask), in elements."""
    q, k, v, *mask, y = problem.operands
    names = {"queries": q.shape[2], "keys": k.shape[2]}
    for letter, operand in zip("qkvym", (q, k, v, y, *mask), strict=False):
        names |= {f"{letter}_{a}": operand.strides[i] for i, a in enumerate("bhs")}
    text = ", ".join(
        f"{name} = {0 if size == 0 else values.value(size)}" for name, size in names.items()
    )
    return f"  const int {text};\n"
