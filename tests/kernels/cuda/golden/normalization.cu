// rows(n=8,t=32,r=1,v=3,keep=1,s=1)
// Launch(grid=(37, 1, 1), threads=32, values=(768,), suffix='', shared=0, cluster=(1, 1, 1), maps=())

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

struct Sum { template <class T> DEVICE T fold(T a, T b) { return a + b; } };
struct Product { template <class T> DEVICE T fold(T a, T b) { return a * b; } };
/* NaN if either is. */
struct Max {
  template <class T> DEVICE T fold(T a, T b) { return a > b || a != a ? a : b; }
  DEVICE float fold(float a, float b) { return nan_max(a, b); }
};
struct Min {
  template <class T> DEVICE T fold(T a, T b) { return a < b || a != a ? a : b; }
  DEVICE float fold(float a, float b) { return nan_min(a, b); }
};
/* All N numbers folded into one, as a tree. */
template <class F, int N, class T> DEVICE T fold_first(const T *t) {
  if constexpr (N == 1) return t[0];
  else return F::fold(fold_first<F, (N + 1) / 2>(t), fold_first<F, N / 2>(t + (N + 1) / 2));
}
template <class F, class T, int N> DEVICE T fold_all(const T (&t)[N]) {
  return fold_first<F, N>(t);
}
/* Folded over the lanes of the warp whose numbers differ in bits FROM, 2 * FROM, ... below TO. */
template <class F, int FROM, int TO, class T, int N> DEVICE void fold_lanes(T (&t)[N]) {
  UNROLL for (int bit = FROM; bit < TO; bit *= 2)
    UNROLL for (int k = 0; k < N; ++k) t[k] = F::fold(t[k], lane_xor(t[k], bit));
}
/* Folded over the WARPS warps of the block; lanes whose numbers agree modulo LANES hold the same.
   shared: room for (WARPS + 1) * LANES * N numbers. */
template <class F, int WARPS, int LANES, class T, int N>
DEVICE void fold_warps(T (&t)[N], T *shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % LANES;
  if (threadIdx.x % 32 < LANES)
    UNROLL for (int k = 0; k < N; ++k) shared[(warp * LANES + lane) * N + k] = t[k];
  __syncthreads();
  T part[WARPS];
  if (LANES * N == 1) {
    UNROLL for (int w = 0; w < WARPS; ++w) part[w] = shared[w];
    t[0] = fold_all<F>(part);
    return;
  }
  T *total = shared + WARPS * LANES * N;
  UNROLL for (int i = 0; i < ceildiv(LANES * N, WARPS * 32); ++i) {
    const int c = threadIdx.x + i * WARPS * 32;
    if (c < LANES * N) {
      UNROLL for (int w = 0; w < WARPS; ++w) part[w] = shared[w * LANES * N + c];
      total[c] = fold_all<F>(part);
    }
  }
  __syncthreads();
  UNROLL for (int k = 0; k < N; ++k) t[k] = total[lane * N + k];
}
extern "C" __global__ void __launch_bounds__(32) NAME(
  const half *p0, const half *p1, const half *__restrict__ p2, const half *__restrict__ p3, half *p4, int v0) {
grid_launch();
const int g = threadIdx.x % 32;
const int row = blockIdx.x * 1 + threadIdx.x / 32;
const int i0 = row; 
const half *q0 = p0 + (i0 * v0);
const half *q1 = p1 + (i0 * v0);
const half *q2 = p2 + (0);
const half *q3 = p3 + (0);
half *q4 = p4 + (i0 * v0);
const int b = g;
if (blockIdx.x == 0) UNROLL for (int i = 0; i < 3; ++i) {
const int e = b + i * 32; const int r0 = e; 
prefetch(q2 + (r0 * 8)); prefetch(q3 + (r0 * 8)); }
grid_wait();
half a0[3][8];
half a1[3][8];
half a2[3][8];
half a3[3][8];
UNROLL for (int i = 0; i < 3; ++i) {
const int e = b + i * 32; const int r0 = e; 
load_run<8>(a0[i], q0 + (r0 * 8));
load_run<8>(a1[i], q1 + (r0 * 8));
load_run<8>(a2[i], q2 + (r0 * 8));
load_run<8>(a3[i], q3 + (r0 * 8));
}
float xs[3][8];
UNROLL for (int i = 0; i < 3; ++i)
UNROLL for (int k = 0; k < 8; ++k) xs[i][k] = [&] { float e__0 = to_float(a0[i][k]); float e__1 = to_float(a1[i][k]); float e__2 = (e__0 + e__1); return e__2; }();
const float share = 1 / (float)768; (void)share;
float t0[8];
UNROLL for (int k = 0; k < 8; ++k) t0[k] = 0;
UNROLL for (int i = 0; i < 3; ++i) UNROLL for (int k = 0; k < 8; ++k) {
const float x = xs[i][k]; (void)x;
const float value = x;
t0[k] = Sum::fold(t0[k], value);
}
float means[1] = {fold_all<Sum>(t0)};
fold_lanes<Sum, 1, 32>(means);
UNROLL for (int k = 0; k < 1; ++k) { const float t = means[k]; means[k] = t * share; }
float t1[8];
UNROLL for (int k = 0; k < 8; ++k) t1[k] = 0;
UNROLL for (int i = 0; i < 3; ++i) UNROLL for (int k = 0; k < 8; ++k) {
const float x = xs[i][k]; (void)x; const float mean = means[0]; (void)mean;
const float value = (x - mean) * (x - mean);
t1[k] = Sum::fold(t1[k], value);
}
float scales[1] = {fold_all<Sum>(t1)};
fold_lanes<Sum, 1, 32>(scales);
UNROLL for (int k = 0; k < 1; ++k) { const float t = scales[k]; const float mean = means[k]; (void)mean; scales[k] = rsqrtf(t * share + 9.999999747378752e-06f); }
UNROLL for (int i = 0; i < 3; ++i) {
const int e = b + i * 32; const int r0 = e; 
half y[8];
UNROLL for (int k = 0; k < 8; ++k) {
const float x = xs[i][k]; (void)x; const float mean = means[0]; (void)mean; const float scale = scales[0]; (void)scale;
y[k] = from_float([&] { float e__0 = ((float)((x - mean) * scale)); float e__1 = to_float(a2[i][k]); float e__2 = (e__0 * e__1); float e__3 = to_float(a3[i][k]); float e__4 = (e__2 + e__3); return e__4; }(), Tag<half>());
}
store_run<8>(q4 + (r0 * 8), y);
}
}
