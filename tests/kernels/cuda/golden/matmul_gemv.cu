// gemv(lanes=32,columns=1,rows=1,ahead=8)
// Launch(grid=(10, 1, 1), threads=128, values=(1, 40, 2048), suffix='', shared=0, cluster=(1, 1, 1), maps=())

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
DEVICE float finish(float a0, float a1) {
  return (float)([&] { float e__0 = (a0 + a1); return e__0; }());
}
DEVICE void load_ahead(Vec<half, 8> (&w)[8][1], const half *b, int step) {
  UNROLL for (int s = 0; s < 8; ++s)
    UNROLL for (int j = 0; j < 1; ++j)
      w[s][j] = step + s < 8
        ? load_now(b + (j * 8 + step + s) * 256) : Vec<half, 8>{};
}
extern "C" __global__ void __launch_bounds__(128, 4) NAME(
  const half *p0, const half *__restrict__ p1, const half *p2, half *p3, int v0, int v1, int v2) {
  grid_launch();
  const int lane = threadIdx.x % 32;
  const int column = (blockIdx.x * 4 + threadIdx.x / 32) * 1;
  const int first = blockIdx.y * 1, height = v0, N = v1;
  const half *b = p1 + lane * 8
    + imin(column, N - 1) / 1 * 2048;
  Vec<half, 8> w[8][1], next[8][1];
  load_ahead(w, b, 0);
  // Each of the first lanes finishes one sum.
  const int row = imin(first + lane / 1, height - 1);
  const int n = imin(column + lane % 1, N - 1);
  const bool mine = lane < 1 && row == first + lane / 1
    && n == column + lane % 1;
  const int i0 = row; 

  
  grid_wait();
  const half *a[1];
  UNROLL for (int r = 0; r < 1; ++r) {
    const int row = imin(first + r, height - 1);
    const int i0 = row; 

    a[r] = p0 + ((i0) * v2);
  }
  const float f1 = to_float(load_now<half, 1>(p2 + (n)).v[0]);
  float sum[1][1] = {};
  for (int s0 = 0; s0 < 8; s0 += 8) {
    if (s0 + 8 < 8) load_ahead(next, b, s0 + 8);
    UNROLL for (int s1 = 0; s1 < 8; s1 += 8) {
      half x[8][1][8] = {};
      UNROLL for (int s = 0; s < 8; ++s) {
        const int k = (s0 + s1 + s) * 256 + lane * 8;
        UNROLL for (int r = 0; r < 1; ++r)
          if (k < 2048) load_run<8>(x[s][r], a[r] + k);
      }
      UNROLL for (int s = 0; s < 8; ++s)
        UNROLL for (int r = 0; r < 1; ++r)
          UNROLL for (int i = 0; i < 8; ++i) {
            float xi = to_float(x[s][r][i]);
            
            UNROLL for (int j = 0; j < 1; ++j)
              sum[r][j] += xi * to_float(w[s1 + s][j].v[i]);
          }
    }
    UNROLL for (int s = 0; s < 8; ++s)
      UNROLL for (int j = 0; j < 1; ++j) w[s][j] = next[s][j];
  }
  UNROLL for (int r = 0; r < 1; ++r)
    UNROLL for (int j = 0; j < 1; ++j)
      UNROLL for (int by = 16; by > 0; by /= 2) sum[r][j] += lane_xor(sum[r][j], by);
  float result = 0;
  UNROLL for (int i = 0; i < 1; ++i)
    if (lane == i) result = sum[i / 1][i % 1];
  if (mine) p3[((i0) * v1 + n)] = from_float(finish(result, f1), Tag<half>());
}
