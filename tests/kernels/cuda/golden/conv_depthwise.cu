// depthwise(v=2,ph=1,pw=1,cv=12,sw=2,sh=5,shared=0)
// Launch(grid=(3, 2, 1), threads=128, values=(48, 9, 3888, 432, 5, 1200, 240), suffix='', shared=2400, cluster=(1, 1, 1), maps=())

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

/* Element i of 16-bit numbers in 32-bit words. (Where numbers are sometimes loaded, sometimes zero,
   the compiler would otherwise take words apart and put them together again.) */
template <class T, int N> DEVICE T element(const Vec<uint32_t, N> &x, int i, Tag<T>) {
  return T{(uint16_t)(x.v[i / 2] >> i % 2 * 16)};
}
template <int N> DEVICE float element(const Vec<uint32_t, N> &x, int i, Tag<float>) {
  return __uint_as_float(x.v[i]);
}
template <int N, class T> DEVICE Vec<uint32_t, N> load_words(const T *p) {
  return load_vec<uint32_t, N>(reinterpret_cast<const uint32_t *>(p));
}
DEVICE float finish(float a0) {
  return (float)(a0);
}
extern "C" __global__ void __launch_bounds__(128, 6) NAME(
  const half *p0, const half *__restrict__ p1, half *p2, int v0, int v1, int v2, int v3, int v4, int v5, int v6) {
  grid_launch();
  float *weights = reinterpret_cast<float *>(shared_memory());
  const float *packed = reinterpret_cast<const float *>(p1) + blockIdx.y * 600;
  UNROLL for (int j_ = 0; j_ < 2; ++j_) {
const int i = threadIdx.x + j_ * 128;
if (i < 150) {
cp_async16(weights + i * 4, packed + i * 4, true);
} }
  const int C = v0, IH = v1;
  const int IW = v1, c0 = blockIdx.y * 24;
  const int vector = threadIdx.x % 12, strip = threadIdx.x / 12, c = c0 + vector * 2;
  
  if (c < C) {  }
  grid_wait();
  const uint32_t ir2 = (uint32_t)(blockIdx.x); const int i2 = (int)(ir2 % 3u); const uint32_t ir1 = ir2 / 3u; const int i1 = (int)(ir1 % 1u); const int i0 = (int)(ir1 / 1u);

  const int n = i0;
  cp_async_commit();
  if (c < C) {  }
  cp_async_wait<0>();
  __syncthreads();
  const int down = strip / 2 * 1, right = strip % 2 * 1;
  const int h = i1 * 5 + down, w = i2 * 2 + right;
  if (c >= C || strip >= 10) return;
  float sum[1][1][2] = {};
  UNROLL for (int r = 0; r < 5; ++r) {
    Vec<uint32_t, 1> loaded[5] = {};
    const int ih = h * 2 - 2 + r;
    const bool in_plane = ih >= 0 && ih < IH;
    
    UNROLL for (int j = 0; j < 5; ++j) {
      const int iw = w * 2 - 2 + j;
      if (in_plane && iw >= 0 && iw < IW) loaded[j] = load_words<1>(p0 + ((n) * v2 + c + (ih) * v3 + (iw) * v0));
    }
    float x[5][2];
    UNROLL for (int j = 0; j < 5; ++j)
      UNROLL for (int k = 0; k < 2; ++k)
        x[j][k] = to_float(element(loaded[j], k, Tag<half>()));
    UNROLL for (int i = 0; i < 1; ++i) {
      const int u = r - i * 2;
      if (u < 0 || u > 4 || u % 1 != 0) continue;
      const float *row = weights + u / 1 * 120 + vector * 2;
      UNROLL for (int j = 0; j < 5; ++j) {
        float tap[2];
        UNROLL for (int k = 0; k < 2; k += 2) {
          const auto part = load_vec<float, 2>(row + j * 24 + k * 12);
          UNROLL for (int l = 0; l < 2; ++l) tap[k + l] = part.v[l];
        }
        UNROLL for (int q = 0; q < 1; ++q)
          UNROLL for (int k = 0; k < 2; ++k) sum[i][q][k] += x[q * 2 + j * 1][k] * tap[k];
      }
    }
  }
  UNROLL for (int i = 0; i < 1; ++i)
    UNROLL for (int q = 0; q < 1; ++q)
      if (h + i < v4 && w + q < v4)
        { half ry[2];
UNROLL for (int i_ = 0; i_ < 2; ++i_) ry[i_] = from_float(finish(sum[i][q][i_]), Tag<half>());
store_run<2>(p2 + ((n) * v5 + c + ((h + i)) * v6 + ((w + q)) * v0), ry); }
}
