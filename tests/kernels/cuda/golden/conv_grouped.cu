// grouped(high=5,wide=5,images=1,groups=3,warps=12)
// Launch(grid=(2, 1, 1), threads=384, values=(1, 48, 9, 3888, 432, 1200, 240, 5), suffix='', shared=6336, cluster=(1, 1, 1), maps=())

/* N consecutive elements, W at a time (p is aligned to W elements). */
template <int W, class T, int N> DEVICE void load_run(T (&x)[N], const T *p) {
  UNROLL for (int i = 0; i < N; i += W) {
    const Vec<T, W> v = load_vec<T, W>(p + i);
    UNROLL for (int k = 0; k < W; ++k) x[i + k] = v.v[k];
  }
}
template <int W, class T, int N> DEVICE void store_run(T *p, const T (&x)[N]) {
  UNROLL for (int i = 0; i < N; i += W) {
    Vec<T, W> v;
    UNROLL for (int k = 0; k < W; ++k) v.v[k] = x[i + k];
    store_vec<T, W>(p + i, v);
  }
}
/* The first n of N elements, `stride` apart (those past them repeat the last when loaded). */
template <class T, int N> DEVICE void load_some(T (&x)[N], const T *p, int stride, int n) {
  UNROLL for (int i = 0; i < N; ++i) x[i] = p[imin(i, n - 1) * stride];
}
template <class T, int N> DEVICE void store_some(T *p, const T (&x)[N], int stride, int n) {
  UNROLL for (int i = 0; i < N; ++i) if (i < n) p[i * stride] = x[i];
}

/* Like load_run and load_some (see cuda_nest.RUNS), but here and now: see load_now. */
template <int W, class T, int N> DEVICE void load_run_now(T (&x)[N], const T *p) {
  UNROLL for (int i = 0; i < N; i += W) {
    const Vec<T, W> v = load_now<T, W>(p + i);
    UNROLL for (int k = 0; k < W; ++k) x[i + k] = v.v[k];
  }
}
template <class T, int N> DEVICE void load_some_now(T (&x)[N], const T *p, int stride, int n) {
  UNROLL for (int i = 0; i < N; ++i) x[i] = load_now<T, 1>(p + imin(i, n - 1) * stride).v[0];
}
DEVICE float finish(float a0) {
  return (float)(a0);
}
extern "C" __global__ void __launch_bounds__(384, 2) NAME(
  const half *p0, const half *__restrict__ p1, half *p2, int v0, int v1, int v2, int v3, int v4, int v5, int v6, int v7) {
  grid_launch();
  const uint32_t ir3 = (uint32_t)(blockIdx.x); const int i3 = (int)(ir3 % 2u); const uint32_t ir2 = ir3 / 2u; const int i2 = (int)(ir2 % 1u); const uint32_t ir1 = ir2 / 1u; const int i1 = (int)(ir1 % 1u); const int i0 = (int)(ir1 / 1u);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, within = warp % 3;
  const int group = i3 * 3 + within;
  const bool works = group < 6;
  const uint32_t *packed = reinterpret_cast<const uint32_t *>(p1)
    + (works ? group : 0) * 320 + lane * 2;
  uint32_t weights[5][1][2];
  UNROLL for (int s = 0; s < 5; ++s)
    UNROLL for (int j = 0; j < 1; ++j) {
      const auto two = load_now<uint32_t, 2>(packed + (s * 1 + j) * 64);
      weights[s][j][0] = two.v[0], weights[s][j][1] = two.v[1];
    }
  
  grid_wait();
  const int N = v0, C = v1;
  const int IH = v2, IW = v2;
  half *const pixels = reinterpret_cast<half *>(shared_memory());
  UNROLL for (int j_ = 0; j_ < 2; ++j_) {
const int i = threadIdx.x + j_ * 384;
if (i < 396) {
    const int k = i3 * 24 + i % 3 * 8;
    const int pixel = i / 3, n = i0 * 1 + pixel / 132;
    const int ih = i1 * 10 - 1 + pixel / 12 % 11;
    const int iw = i2 * 10 - 1 + (pixel % 6 * 2 + pixel / 6 % 2);
    const bool inside = k < C && ih >= 0 && ih < IH && iw >= 0 && iw < IW;
    cp_async16(pixels + (pixel * 3 + i % 3) * 8,
      p0 + (inside ? ((n) * v3 + k + (ih) * v4 + (iw) * v1) : 0), inside);
} }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  if (!works) return;
  constexpr int first[] = {0, 3, 54, 72, 75}, second[] = {18, 36, 39, 90, 75};  /* pieces of the steps */
  int place[5];
  UNROLL for (int s = 0; s < 5; ++s)
    place[s] = within * 1 + (lane < 16 ? first[s] : second[s]);
  for (int m = warp / 3 * 16; m < 25;
       m += 64) {
    const int row = imin(m + lane % 16, 24);
    const int from = (row / 25 * 11 + row / 5 % 5 * 2) * 12
      + row % 5;
    float sum[1][4] = {};
    UNROLL for (int s = 0; s < 5; ++s) {
      uint32_t x[4];
      ldmatrix_x4(x, pixels + (from * 3 + place[s]) * 8);
      UNROLL for (int j = 0; j < 1; ++j)
        mma(sum[j], x, weights[s][j], Tag<half>());
    }
    UNROLL for (int r = 0; r < 2; ++r) {
      const int pixel = m + lane / 4 + 8 * r, n = i0 * 1 + pixel / 25;
      const int h = i1 * 5 + pixel / 5 % 5, w = i2 * 5 + pixel % 5;
      if (pixel >= 25 || h >= v7 || w >= v7)
        continue;
      UNROLL for (int j = 0; j < 1; ++j) {
        const int c = group * 8 + j * 8 + lane % 4 * 2;
        const float part[2] = {sum[j][2 * r], sum[j][2 * r + 1]};
        { half ry[2];
UNROLL for (int i_ = 0; i_ < 2; ++i_) ry[i_] = from_float(finish(part[i_]), Tag<half>());
store_run<2>(p2 + ((n) * v5 + c + (h) * v6 + (w) * v1), ry); }
      }
    }
  }
}
