// rows(n=1,t=32,r=1,v=7,keep=1,s=1)
// Launch(grid=(70, 1, 1), threads=32, values=(197,), suffix='', shared=0, cluster=(1, 1, 1), maps=())

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
#ifndef ES_exp
#define ES_exp
DEVICE float fast_exp(float x) { return fast_exp2(1.44269504f * x); }
#endif
#ifndef ES_log
#define ES_log
DEVICE float fast_log(float x) { return 0.693147181f * fast_log2(x); }
#endif
extern "C" __global__ void __launch_bounds__(32) NAME(
  const half *p0, half *p1, int v0) {
grid_launch();
const int g = threadIdx.x % 32;
const int row = blockIdx.x * 1 + threadIdx.x / 32;
const int i0 = row; 
const half *q0 = p0 + (i0 * v0);
half *q1 = p1 + (i0 * v0);
const int b = g;
grid_wait();
half a0[7][1];
UNROLL for (int i = 0; i < 7; ++i) {
const int e = i < 6 ? b + i * 32 : imin(b + i * 32, 197 - 1); const int r0 = e; 
load_run<1>(a0[i], q0 + (r0));
}
float xs[7][1];
UNROLL for (int i = 0; i < 7; ++i)
UNROLL for (int k = 0; k < 1; ++k) xs[i][k] = to_float(a0[i][k]);
const float share = 1 / (float)197; (void)share;
float t0[1];
UNROLL for (int k = 0; k < 1; ++k) t0[k] = (-__int_as_float(0x7f800000));
UNROLL for (int i = 0; i < 7; ++i) UNROLL for (int k = 0; k < 1; ++k) {
const float x = xs[i][k]; (void)x;
const float value = x;
t0[k] = Max::fold(t0[k], value);
}
float tops[1] = {fold_all<Max>(t0)};
fold_lanes<Max, 1, 32>(tops);
float t1[1];
UNROLL for (int k = 0; k < 1; ++k) t1[k] = 0;
UNROLL for (int i = 0; i < 7; ++i) UNROLL for (int k = 0; k < 1; ++k) {
const float x = xs[i][k]; (void)x; const float top = tops[0]; (void)top;
const float value = [&] { float e__0 = (x - top); float e__1 = fast_exp(e__0); return e__1; }();
t1[k] = Sum::fold(t1[k], i < 6 || b + i * 32 < 197 ? value : (float)0);
}
float totals[1] = {fold_all<Sum>(t1)};
fold_lanes<Sum, 1, 32>(totals);
UNROLL for (int k = 0; k < 1; ++k) { const float t = totals[k]; const float top = tops[k]; (void)top; totals[k] = [&] { float e__0 = (1.0f * fast_rcp(t)); return e__0; }(); }
UNROLL for (int i = 0; i < 7; ++i) if ((i < 6 || b + i * 32 < 197)) {
const int e = b + i * 32; const int r0 = e; 
half y[1];
UNROLL for (int k = 0; k < 1; ++k) {
const float x = xs[i][k]; (void)x; const float top = tops[0]; (void)top; const float total = totals[0]; (void)total;
y[k] = from_float(((float)([&] { float e__0 = (x - top); float e__1 = fast_exp(e__0); return e__1; }() * total)), Tag<half>());
}
store_run<1>(q1 + (r0), y);
}
}
