// flash_mma(wm=1,mt=1,wn=2,bn=32)
// Launch(grid=(2, 5, 3), threads=64, values=(70, 40320, 64, 576, 13440, 192, 4900), suffix='', shared=34816, cluster=(1, 1, 1), maps=())

typedef half T;
typedef half M;
#define MASK 2
#define PAIRS 1
#define MASK_STEP 1
#define CAUSAL 1
#define WHOLE 0
#define SCALE 0.3f
#define RATE 0.432808512266689f
#define THREADS 64
constexpr int PIECE = 16 / sizeof(T), FACTOR = sizeof(T) == 4 ? 16 : 4;
constexpr int DEPTH = 64, D = 64, WIDTH = 64, V = 64, BN = 32;
#define WN 2
constexpr int WM = 1, MT = 1, STAGES = 2;

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
extern "C" __global__ void __launch_bounds__(64) NAME(
  const half *p0, const half *p1, const half *p2, const half *p3, half *p4, int v0, int v1, int v2, int v3, int v4, int v5, int v6) {
  const int queries = v0, keys = v0, q_b = v1, q_h = v2, q_s = v3, k_b = v1, k_h = v2, k_s = v3, v_b = v1, v_h = v2, v_s = v3, y_b = v4, y_h = v2, y_s = v5, m_b = v6, m_h = 0, m_s = v0;

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = warp / WM, row0 = warp % WM * (16 * MT), own = part * BN;
  const int b = blockIdx.x, h = blockIdx.z;
  const int first = (int)(CAUSAL ? gridDim.y - 1 - blockIdx.y : blockIdx.y) * BM;
  T *tile_q = reinterpret_cast<T *>(shared_memory());
  T *tiles_k = tile_q + BM * (D > V ? D : V), *tiles_v = tiles_k + STAGES * KEYS * D;
  const T *k = p1 + b * k_b + h * k_h, *v = p2 + b * v_b + h * v_h;
  T *y = p4 + b * y_b + h * y_h;
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
          const M *mask = p3 + b * m_b + h * m_h + imin(row, queries - 1) * m_s;
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
