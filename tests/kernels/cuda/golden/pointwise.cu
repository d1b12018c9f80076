// vectors(vec=8,work=1,threads=128)
// Launch(grid=(1, 1, 1), threads=128, values=(90,), suffix='', shared=0, cluster=(1, 1, 1), maps=())

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
DEVICE float NAME_f(float a0, float a1, float a2) { return [&] { float e__0 = (a0 * a1); float e__1 = (e__0 + a2); float e__2 = nan_max(e__1, 0.0f); return e__2; }(); }
extern "C" __global__ void __launch_bounds__(128) NAME(
  const half *p0, const half *__restrict__ p1, const half *p2, half *p3, int v0) {
  grid_launch();
  const int first = blockIdx.x * 128 + threadIdx.x;
  int at0[1]; int at1[1]; half x0[1][8]; half x1[1][8]; half x2[1][8];
  UNROLL for (int u = 0; u < 1; ++u) {
    const uint32_t ir1 = (uint32_t)(imin(first + u * 128, v0 - 1)); const int i1 = (int)(ir1 % 3u); const int i0 = (int)(ir1 / 3u);
const int j = i1 * 8;
    at0[u] = i0 * 24 + j; at1[u] = j;
    load_run<8>(x1[u], p1 + at1[u]);
  }
  grid_wait();
  UNROLL for (int u = 0; u < 1; ++u) {
    load_run<8>(x0[u], p0 + at0[u]);
    load_run<8>(x2[u], p2 + at0[u]);
  }
  UNROLL for (int u = 0; u < 1; ++u) {
    half y[8];
    UNROLL for (int e = 0; e < 8; ++e) y[e] = from_float(NAME_f(to_float(x0[u][e]), to_float(x1[u][e]), to_float(x2[u][e])), Tag<half>());
    if (first + u * 128 < v0) { store_run<8>(p3 + at0[u], y); }
  }
}
