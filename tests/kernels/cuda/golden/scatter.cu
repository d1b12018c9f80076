// last(copy=0)
// Launch(grid=(1, 1, 1), threads=128, values=(60,), suffix='_copy', shared=0, cluster=(1, 1, 1), maps=())
// Launch(grid=(1, 1, 1), threads=256, values=(40, 20), suffix='_clear', shared=0, cluster=(1, 1, 1), maps=())
// Launch(grid=(1, 1, 1), threads=256, values=(20, 5), suffix='_find', shared=0, cluster=(1, 1, 1), maps=())
// Launch(grid=(1, 1, 1), threads=256, values=(20, 5), suffix='', shared=0, cluster=(1, 1, 1), maps=())
// workspace 204 bytes, 0 of them cleared

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
extern "C" __global__ void __launch_bounds__(128) NAME_copy(
  const int64_t *p0, const int64_t *p1, const int64_t *p2, int64_t *p3, char *workspace, int v0) {
  grid_launch();
  const int first = blockIdx.x * 128 + threadIdx.x;
  int at0[1]; int64_t x0[1][2];
  UNROLL for (int u = 0; u < 1; ++u) {
    const int i0 = imin(first + u * 128, v0 - 1); 
const int j = i0 * 2;
    at0[u] = j;
  }
  grid_wait();
  UNROLL for (int u = 0; u < 1; ++u) {
    load_run<2>(x0[u], p0 + at0[u]);
  }
  UNROLL for (int u = 0; u < 1; ++u) {
    int64_t y[2];
    UNROLL for (int e = 0; e < 2; ++e) y[e] = x0[u][e];
    if (first + u * 128 < v0) { store_run<2>(p3 + at0[u], y); }
  }
}
extern "C" __global__ void __launch_bounds__(256) NAME_clear(
  const int64_t *p0, const int64_t *p1, const int64_t *p2, int64_t *p3, char *workspace, int v0, int v1) {
  grid_launch();
  grid_wait();
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < v0) ((int *)workspace)[i] = i < v1 ? -1 : 0;
}
extern "C" __global__ void __launch_bounds__(256) NAME_find(
  const int64_t *p0, const int64_t *p1, const int64_t *p2, int64_t *p3, char *workspace, int v0, int v1) {
  grid_launch();
  grid_wait();
  int *const last = (int *)workspace;
  int *const total = last + v0;
  int *const place = total + v0;
  int *const offset = place + v1;
  const int u = blockIdx.x * 256 + threadIdx.x;
  if (u >= v1) return;
  const int i0 = u; 
  const int row = i0 * 2;
  int at = 0, number = 0;
  bool ok = true;
  { int64_t m = p1[row + 0]; m += m < 0 ? 4 : 0; if (m < 0 || m >= 4) { ok = false; m = 0; } at += (int)m * 30; number += (int)m * 5; }
  { int64_t m = p1[row + 1]; m += m < 0 ? 5 : 0; if (m < 0 || m >= 5) { ok = false; m = 0; } at += (int)m * 6; number += (int)m * 1; }
  offset[u] = at;
  place[u] = ok ? number : -1;
  if (ok) { atomic_max(last + number, u); atomic_add(total + number, 1); }
}
extern "C" __global__ void __launch_bounds__(256) NAME(
  const int64_t *p0, const int64_t *p1, const int64_t *p2, int64_t *p3, char *workspace, int v0, int v1) {
  grid_launch();
  grid_wait();
  int *const last = (int *)workspace;
  int *const total = last + v0;
  int *const place = total + v0;
  int *const offset = place + v1;
  const int index = blockIdx.x * 256 + threadIdx.x;
  if (index >= v1 * 6) return;
  const int u = index / 6, s = index % 6;
  if (place[u] < 0 || last[place[u]] != u) return;
  const int s0 = s; 
  const auto update = [&](int u) {
    const int i0 = u; 
    return p2[i0 * 6 + s0];
  };
  int64_t r = p3[offset[u] + (s0)];
  const int mine = place[u];
  int left = total[mine];
  for (int k = left == 1 ? u : 0; left > 0; ++k)
    if (place[k] == mine) {
      const int64_t x = update(k);
      r = r + x;
      --left;
    }
  p3[offset[u] + (s0)] = (int64_t)(r);
}
