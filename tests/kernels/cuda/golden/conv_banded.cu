// banded(rows=2,across=1,wide=2,high=5,images=1,vectors=2,warps=8)
// Launch(grid=(3, 1, 1), threads=256, values=(1, 48, 9, 3888, 432), suffix='', shared=20032, cluster=(1, 1, 1), maps=())

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
extern "C" __global__ void __launch_bounds__(256, 2) NAME(
  const half *p0, const half *__restrict__ p1, half *p2, int v0, int v1, int v2, int v3, int v4) {
  grid_launch();
  const uint32_t ir3 = (uint32_t)(blockIdx.x); const int i3 = (int)(ir3 % 3u); const uint32_t ir2 = ir3 / 3u; const int i2 = (int)(ir2 % 1u); const uint32_t ir1 = ir2 / 1u; const int i1 = (int)(ir1 % 1u); const int i0 = (int)(ir1 / 1u);

  uint32_t *const weights = reinterpret_cast<uint32_t *>(shared_memory());
  uint32_t *const planes = weights + 560;
  const uint32_t *packed = reinterpret_cast<const uint32_t *>(p1) + i3 * 560;
  UNROLL for (int j_ = 0; j_ < 1; ++j_) {
const int i = threadIdx.x + j_ * 256;
if (i < 140) {
cp_async16(weights + i * 4, packed + i * 4, true);
} }
  cp_async_commit();
  const int N = v0, C = v1;
  const int IH = v2, IW = v2;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int c0 = i3 * 16, vector = warp % 2, c = c0 + vector * 8;
  
  if (c < C) {  }
  grid_wait();
  if (c < C) {  }
  for (int first = threadIdx.x; first < 336; first += 512) {
    Vec<uint32_t, 4> loaded[2][1][2];
    UNROLL for (int b = 0; b < 2; ++b) {
      const int i = first + b * 256, k = c0 + i % 2 * 8;
      const int pair = i / 2 % 12, r = i / 24;
      const int n = i0 * 1 + r / 14;
      const int ih = i1 * 10 - 2 + r % 14;
      const bool inside = i < 336 && k < C && ih >= 0 && ih < IH;
      UNROLL for (int part = 0; part < 1; ++part)
        UNROLL for (int j = 0; j < 2; ++j) {
          const int iw = i2 * 16 - 2 + (pair * 2 + j) * 1 + part;
          loaded[b][part][j] = {};
          if (inside && iw >= 0 && iw < IW) loaded[b][part][j] = load_words<4>(p0 + ((n) * v3 + k + (ih) * v4 + (iw) * v1));
        }
    }
    UNROLL for (int b = 0; b < 2; ++b) {
      const int i = first + b * 256;
      if (i >= 336) break;
      const int pair = i / 2 % 12, r = i / 24;
      const int row = r % 14;
      const int unit = i % 2 * 556 + r / 14 * 69
        + row * 3 + row / 2 * 3;
      UNROLL for (int part = 0; part < 1; ++part) {
        uint32_t *to = planes + (unit + part * 3) * 4 + pair;
        UNROLL for (int j = 0; j < 4; ++j) {
          const uint32_t x0 = loaded[b][part][0].v[j], x1 = loaded[b][part][1].v[j];
          to[j * 552] = (x0 & 0xffffu) | x1 << 16;
          to[j * 552 + 276] = x0 >> 16 | (x1 & 0xffff0000u);
        }
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  if (c >= C) return;
  /* Which words of a kernel row make up the lane's parts of a band. */
  const int j0 = lane % 4 * 2 - lane / 4, j1 = j0 + 8;
  const int w00 = 0 + (j0 < -1 || j0 >= 5 ? 6 : j0 % 2 ? 3 + (j0 + 1) / 2 : j0 / 2);
  const int w01 = 0 + (j1 < -1 || j1 >= 5 ? 6 : j1 % 2 ? 3 + (j1 + 1) / 2 : j1 / 2);
  const uint32_t *const words = weights + vector * 280;
  for (int task = warp / 2; task < 2;
       task += 4) {
    const int top = task / 2 * 8, left = task % 2 * 1;
    const int g = imin(top + lane % 8 / 1, 4);
    const int strip = imin(left + lane % 1, 1);
    const int at = g / 5 * 69 + g % 5 * 9;
    const uint32_t *const x = planes + 4 * (vector * 556 + at + strip
      + lane / 8 % 2 * 3 + lane / 16);
    float sum[1][8][4] = {};
    UNROLL for (int k = 0; k < 8; ++k) {
      {
        constexpr int offsets[] = {0, 9, 18};
        uint32_t band[5][2], a[3][4];
        UNROLL for (int u = 0; u < 5; ++u) {
          band[u][0] = words[(k * 5 + u) * 7 + w00];
          band[u][1] = words[(k * 5 + u) * 7 + w01];
        }
        UNROLL for (int i = 0; i < 3; ++i)
          ldmatrix_x4(a[i], x + 4 * (k * 69 + offsets[i]));
        UNROLL for (int r = 0; r < 5; ++r) {
          const int s = r + 1;  /* rows r and s of x are for two neighbouring rows of y */
          const uint32_t b[4] = {a[r / 2][r % 2], a[s / 2][s % 2], a[r / 2][r % 2 + 2],
                                 a[s / 2][s % 2 + 2]};
          UNROLL for (int q = 0; q < 1; ++q) {
            const int u = r - q * 2;
            if (u >= 0 && u < 5) mma(sum[q][k], b, band[u], Tag<half>());
          }
        }
      }
    }
    const int group = top + lane / 4 / 1, column = left + lane / 4 % 1;
    const int n = i0 * 1 + group / 5;
    if (group >= 5 || column >= 2) continue;
    UNROLL for (int q = 0; q < 1; ++q)
      UNROLL for (int j = 0; j < 4; ++j) {
        const int h = i1 * 10 + group % 5 * 2 + 2 * q + j / 2;
        const int w = i2 * 16 + column * 8 + lane % 4 * 2 + j % 2;
        float part[8];
        UNROLL for (int k = 0; k < 8; ++k) part[k] = sum[q][k][j];
        if (h < v2 && w < v2) { half ry[8];
UNROLL for (int i_ = 0; i_ < 8; ++i_) ry[i_] = from_float(finish(part[i_]), Tag<half>());
store_run<8>(p2 + ((n) * v3 + c + (h) * v4 + (w) * v1), ry); }
      }
  }
}
