// simple(rows=1,columns=1)
// Launch(grid=('d0*((d1+15)//16)', 1, 1), threads=256, values=('d1', 9, 'd2', '(d1+15)//16', 'd1*d2', '9*d2', '9*d1'), suffix='', shared=0, cluster=(1, 1, 1), maps=())

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
DEVICE float finish(float a0) {
  return (float)(a0);
}
extern "C" __global__ void __launch_bounds__(256) NAME(
  const half *p0, const half *p1, half *p2, int v0, int v1, int v2, int v3, int v4, int v5, int v6) {
  grid_launch();
  grid_wait();
  __shared__ float as[16][17], bs[16][17];
  const int M = v0, N = v1, K = v2;
  const uint32_t ir2 = (uint32_t)(blockIdx.x); const int i2 = (int)(ir2 % 1u); const uint32_t ir1 = ir2 / 1u; const int i1 = (int)(ir1 % (uint32_t)v3); const int i0 = (int)(ir1 / (uint32_t)v3);

  const int m0 = i1 * 16, n0 = i2 * 16;
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  float sum[1][1] = {};
  for (int k0 = 0; k0 < K; k0 += 16) {
    for (int i = threadIdx.x; i < 256; i += 256) {
      const int dm = i / 16, dk = i % 16;
      as[dk][dm] = m0 + dm < M && k0 + dk < K
        ? to_float(p0[((i0) * v4 + (m0 + dm) * v2 + k0 + dk)]) : 0;
    }
    for (int i = threadIdx.x; i < 256; i += 256) {
      const int dn = i % 16, dk = i / 16;
      bs[dk][dn] = n0 + dn < N && k0 + dk < K
        ? to_float(p1[((i0) * v5 + (k0 + dk) * v1 + n0 + dn)]) : 0;
    }
    __syncthreads();
    UNROLL for (int k = 0; k < 16; ++k)
      UNROLL for (int i = 0; i < 1; ++i)
        UNROLL for (int j = 0; j < 1; ++j)
          sum[i][j] += as[k][row + 16 * i] * bs[k][column + 16 * j];
    __syncthreads();
  }
  UNROLL for (int i = 0; i < 1; ++i)
    UNROLL for (int j = 0; j < 1; ++j) {
      const int ym = m0 + row + 16 * i, yn = n0 + column + 16 * j;
      if (ym < M && yn < N) p2[((i0) * v6 + (ym) * v1 + yn)] = from_float(finish(sum[i][j]), Tag<half>());
    }
}
