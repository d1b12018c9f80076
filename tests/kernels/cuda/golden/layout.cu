// tiles()
// Launch(grid=(2, 1, 1), threads=256, values=(), suffix='', shared=0, cluster=(1, 1, 1), maps=())

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

/* Where element (row, column) of a tile is. */
DEVICE half *NAME_at(Vec<half, 8> *tile, int row, int column) {
  return &tile[row * 8 + ((column / 8 ^ row ^ row / 8) & 7)].v[column % 8];
}
extern "C" __global__ void __launch_bounds__(256) NAME(
  const half *p0, half *p1) {
  grid_launch();
  grid_wait();
  __shared__ Vec<half, 8> tile[512];
  const uint32_t ir1 = (uint32_t)(blockIdx.x); const int i1 = (int)(ir1 % 2u); const int i0 = (int)(ir1 / 2u);
  const int rows = 49 - i0 * 64;
  const int columns = 67 - i1 * 64;
  const half *x = p0 + (0) + i0 * 64
    + i1 * 64 * 49;
  half *y = p1 + (0) + i1 * 64
    + i0 * 64 * 67;
  half v[16];
  UNROLL for (int u = 0; u < 16; ++u) {
    const int at = u * 256 + threadIdx.x, row = at % 64, column = at / 64;
    if (row < rows && column < columns) v[u] = x[row + column * 49];
  }
  UNROLL for (int u = 0; u < 16; ++u) {
    const int at = u * 256 + threadIdx.x, row = at % 64, column = at / 64;
    if (row < rows && column < columns) *NAME_at(tile, row, column) = v[u];
  }
  __syncthreads();
  UNROLL for (int u = 0; u < 16; ++u) {
    const int at = u * 256 + threadIdx.x, row = at / 64, column = at % 64;
    if (row < rows && column < columns) y[row * 67 + column] = *NAME_at(tile, row, column);
  }
}
