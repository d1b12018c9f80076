// stem(mt=1,nt=2,down=2,across=1,tw=7)
// Launch(grid=(12, 1, 1), threads=64, values=(16, 32, 3072, 96, 3, 4096, 256), suffix='', shared=7552, cluster=(1, 1, 1), maps=())

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
DEVICE uint32_t pair(const half *p) { return *reinterpret_cast<const uint32_t *>(p); }
extern "C" __global__ void __launch_bounds__(64, 8) NAME(
  const half *p0, const half *__restrict__ p1, half *p2, int v0, int v1, int v2, int v3, int v4, int v5, int v6) {
  grid_launch();
  half *inputs = reinterpret_cast<half *>(shared_memory());
  int *places = reinterpret_cast<int *>(inputs + 784);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    half *weights = reinterpret_cast<half *>(places + 88);
  UNROLL for (int j_ = 0; j_ < 6; ++j_) {
const int i = threadIdx.x + j_ * 64;
if (i < 352) {
cp_async16(weights + i * 8, p1 + blockIdx.y * 2816 + i * 8, true);
} }
  cp_async_commit();
  const int part = blockIdx.y * 1 + warp / 2;
  
  grid_wait();
  const int OH = v0, OW = v0;
  const int IH = v1, IW = v1;
  const uint32_t ir2 = (uint32_t)(blockIdx.x); const int i2 = (int)(ir2 % 3u); const uint32_t ir1 = ir2 / 3u; const int i1 = (int)(ir1 % 4u); const int i0 = (int)(ir1 / 4u);

  const int n = i0, h0 = i1 * 4, w0 = i2 * 7;
  for (int done = threadIdx.x; done < 780; done += 832) {
    half loaded[13][1] = {};
    UNROLL for (int j = 0; j < 13; ++j) {
      const int i = done + j * 64;
      const int c = i % 3, column = i / 3 % 20, row = i / 60;
      const int ih = h0 * 2 - 3 + row;
      const int iw = w0 * 2 - 3 + column;
      if (i < 780 && ih >= 0 && ih < IH && iw >= 0 && iw < IW)
        load_run<1>(loaded[j], p0 + ((n) * v2 + c + (ih) * v3 + (iw) * v4));
    }
    UNROLL for (int j = 0; j < 13; ++j) {
      const int i = done + j * 64;
      const int c = i % 3, column = i / 3 % 20, row = i / 60;
      half converted[1];
      UNROLL for (int k = 0; k < 1; ++k)
        converted[k] = from_float(to_float(loaded[j][k]), Tag<half>());
      if (i < 780) store_run<1>(inputs + (c * 13 + row) * 20 + column, converted);
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  const int first = warp % 2 * 16 + g;
  const half *x[2]; // of the pixels of this lane's rows
  UNROLL for (int r = 0; r < 2; ++r) {
    const int pixel = imin(first + 8 * r, 27);
    x[r] = inputs + pixel / 7 * 40 + pixel % 7 * 2 + t * 2;
  }
  const half *w = weights + warp / 2 * 2816 + lane * 8;
  float sum[1][2][4] = {};
  UNROLL for (int s = 0; s < 11; ++s) {
    const int low = (s * 8 < 84 ? (s * 8 / 4 / 7 * 13 + s * 8 / 4 % 7 * 1) * 20 + s * 8 % 4 * 2 : 0);
    const int high = ((s * 8 + 4) < 84 ? ((s * 8 + 4) / 4 / 7 * 13 + (s * 8 + 4) / 4 % 7 * 1) * 20 + (s * 8 + 4) % 4 * 2 : 0);
    Vec<uint32_t, 4> b[1];
    UNROLL for (int j = 0; j < 1; ++j)
      b[j] = load_vec<uint32_t, 4>(
        reinterpret_cast<const uint32_t *>(w + (s * 1 + j) * 256));
    UNROLL for (int i = 0; i < 1; ++i) {
      const uint32_t a[4] = {pair(x[2 * i] + low), pair(x[2 * i + 1] + low),
        pair(x[2 * i] + high), pair(x[2 * i + 1] + high)};
      UNROLL for (int j = 0; j < 2; ++j) {
        const uint32_t column[2] = {b[j / 2].v[j % 2 * 2], b[j / 2].v[j % 2 * 2 + 1]};
        mma(sum[i][j], a, column, Tag<half>());
      }
    }
  }
  UNROLL for (int r = 0; r < 2; ++r) {
    const int pixel = first + 8 * r, h = h0 + pixel / 7, w = w0 + pixel % 7;
    if (pixel < 28 && h < OH && w < OW) UNROLL for (int j = 0; j < 2; j += 2) {
      const int c = part * 16 + j * 8 + t * 4;
      const int left = 16 - c;
      if (left <= 0) continue;
      float result[4];
      UNROLL for (int i = 0; i < 4; ++i)
        result[i] = sum[r / 2][j + i / 2][r % 2 * 2 + i % 2];
      { half ry[4];
UNROLL for (int i_ = 0; i_ < 4; ++i_) ry[i_] = from_float(finish(result[i_]), Tag<half>());
store_run<4>(p2 + ((n) * v5 + c + (h) * v6 + (w) * v0), ry); }
    }
  }
}
