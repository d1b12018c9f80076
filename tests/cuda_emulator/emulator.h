/* What a kernel's text finds in the emulator instead of the CUDA compiler's built-ins and the
   prelude's INSTRUCTIONS and HOPPER (codegen/cuda_prelude.py): the same functions over the machine
   of runtime.cpp. No system header, so kernels compile quickly. */
#define __device__
#define __host__
#define __forceinline__ inline
#define load_vec es_unchecked_load_vec
#define store_vec es_unchecked_store_vec
#include "types.h" /* stands for the prelude's TYPES */
#undef load_vec
#undef store_vec
#undef UNROLL
#define UNROLL

/* -- functions of the machine, see runtime.cpp ------------------------------------------------- */
struct EsDim { unsigned x, y, z; };
struct EsThread { EsDim thread, block; };
struct alignas(64) TensorMap { uint64_t opaque[16]; };
typedef uint64_t Barrier;
extern "C" {
extern EsThread *es_self;
extern EsDim es_block_dim, es_grid_dim;
void es_fail(const char *format, ...);
int es_barrier(int id, int count, int value);
void es_cluster_arrive(); void es_cluster_wait(); int es_cluster_rank();
void es_collective(int width, const char *name, void (*operation)(void **, int), void *part);
char *es_shared_memory();
uint32_t es_shared_address(const void *); char *es_shared_pointer(uint32_t);
uint32_t es_cluster_address(const void *, int rank);
void es_cp_async(void *to, const void *from, int bytes, bool valid);
void es_cp_async_commit(); void es_cp_async_wait(int n);
void es_mbarrier_init(Barrier *, int count); void es_mbarrier_arrive(Barrier *, int bytes);
void es_mbarrier_wait(Barrier *, int parity); void es_mbarrier_cp_async(Barrier *);
void es_tma_load(void *to, const TensorMap *, Barrier *, int rank, const int *at);
void es_tma_store(const TensorMap *, const void *from, int rank, const int *at);
void es_tma_commit(); void es_tma_wait(int n);
void es_ldmatrix(uint32_t *result, const void *row, int count, bool transposed);
void es_mma(float *c, const uint32_t *a, const uint32_t *b, int kind);
void es_tma_multicast(void *to, const TensorMap *, Barrier *, int rank, const int *at, int blocks);
void es_wgmma(
  float *c, const uint32_t *fragments, uint64_t a, uint64_t b, int columns, int kind, bool mn,
  bool add);
void es_wgmma_fence(); void es_wgmma_commit(); void es_wgmma_wait(int n);
float expf(float); float exp2f(float); float logf(float); float log2f(float); float sqrtf(float);
float sinf(float); float cosf(float); float tanhf(float); float erff(float);
float powf(float, float);
float fmodf(float, float); float fabsf(float); float floorf(float); float ceilf(float);
float rintf(float); float truncf(float); float fmaf(float, float, float);
float copysignf(float, float);
float fminf(float, float); float fmaxf(float, float); float log1pf(float); float expm1f(float);
float roundf(float); float ldexpf(float, int);
double exp(double); double exp2(double); double log(double); double sqrt(double);
double sin(double);
double cos(double); double tanh(double); double erf(double); double pow(double, double);
double fmod(double, double); double fabs(double); double floor(double); double ceil(double);
double rint(double); double trunc(double); double fma(double, double, double);
double copysign(double, double); double fmin(double, double); double fmax(double, double);
}

/* As the prelude's, but vectors must lie where a GPU can read them. */
template <class V> DEVICE V *es_aligned(V *p) {
  if ((uint64_t)p % alignof(V)) es_fail("misaligned access: %d bytes at %p", (int)sizeof(V), p);
  return p;
}
template <class T, int N> DEVICE Vec<T, N> load_vec(const T *p) {
  return *es_aligned((const Vec<T, N> *)p);
}
template <class T, int N> DEVICE void store_vec(T *p, const Vec<T, N> &x) {
  *es_aligned((Vec<T, N> *)p) = x;
}

/* -- CUDA's words ------------------------------------------------------------------------------ */
#define __global__ __attribute__((visibility("default")))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __restrict__ __restrict
#define __constant__ static
#define __shared__ static __attribute__((section("es_section")))
#define threadIdx (es_self->thread)
#define blockIdx (es_self->block)
#define blockDim es_block_dim
#define gridDim es_grid_dim
#define warpSize 32

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
DEVICE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
DEVICE uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class To, class From> DEVICE To es_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To y; __builtin_memcpy(&y, &x, sizeof y); return y;
}
DEVICE float __uint_as_float(unsigned x) { return es_bits<float>(x); }
DEVICE float __int_as_float(int x) { return es_bits<float>(x); }
DEVICE unsigned __float_as_uint(float x) { return es_bits<unsigned>(x); }
DEVICE int __float_as_int(float x) { return es_bits<int>(x); }
DEVICE double __longlong_as_double(int64_t x) { return es_bits<double>(x); }
DEVICE int64_t __double_as_longlong(double x) { return es_bits<int64_t>(x); }
DEVICE int __popc(unsigned x) { return __builtin_popcount(x); }
DEVICE int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
DEVICE int __ffs(int x) { return __builtin_ffs(x); }
DEVICE float rsqrtf(float x) { return 1.f / sqrtf(x); }
DEVICE float __expf(float x) { return expf(x); }
DEVICE float __logf(float x) { return logf(x); }
DEVICE float __fdividef(float x, float y) { return x / y; }
DEVICE float __frcp_rn(float x) { return 1.f / x; }
DEVICE float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
DEVICE int __float2int_rn(float x) { return (int)rintf(x); }
DEVICE int __float2int_rd(float x) { return (int)floorf(x); }
DEVICE unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
DEVICE int __mulhi(int a, int b) { return (int64_t)a * b >> 32; }
DEVICE int abs(int x) { return x < 0 ? -x : x; }
template <class T> DEVICE T min(T a, T b) { return a < b ? a : b; }
template <class T> DEVICE T max(T a, T b) { return a > b ? a : b; }
template <class T> DEVICE T __ldg(const T *p) { return *p; }
template <class T> DEVICE T __ldcs(const T *p) { return *p; }
template <class T> DEVICE T __ldcg(const T *p) { return *p; }
template <class T> DEVICE T __ldca(const T *p) { return *p; }
template <class T> DEVICE void __stcs(T *p, T x) { *p = x; }
template <class T> DEVICE void __stcg(T *p, T x) { *p = x; }
template <class T> DEVICE void __stwt(T *p, T x) { *p = x; }

DEVICE void __syncthreads() { es_barrier(0, 0, 0); }
DEVICE int __syncthreads_count(int x) { return es_barrier(0, 0, x) & 0xffff; }
DEVICE int __syncthreads_or(int x) { return (es_barrier(0, 0, x) & 0xffff) != 0; }
DEVICE int __syncthreads_and(int x) { return es_barrier(0, 0, x) >> 16; }
DEVICE void __threadfence() {}
DEVICE void __threadfence_block() {}
DEVICE void __nanosleep(unsigned) {}

template <class T> DEVICE T es_exchange(T *p, T x) { T old = *p; *p = x; return old; }
DEVICE int atomicAdd(int *p, int x) { return es_exchange(p, *p + x); }
DEVICE unsigned atomicAdd(unsigned *p, unsigned x) { return es_exchange(p, *p + x); }
DEVICE uint64_t atomicAdd(uint64_t *p, uint64_t x) { return es_exchange(p, *p + x); }
DEVICE float atomicAdd(float *p, float x) { return es_exchange(p, *p + x); }
DEVICE double atomicAdd(double *p, double x) { return es_exchange(p, *p + x); }
template <class T> DEVICE T atomicMax(T *p, T x) { return es_exchange(p, max(*p, x)); }
template <class T> DEVICE T atomicMin(T *p, T x) { return es_exchange(p, min(*p, x)); }
template <class T> DEVICE T atomicExch(T *p, T x) { return es_exchange(p, x); }
template <class T> DEVICE T atomicOr(T *p, T x) { return es_exchange(p, *p | x); }
template <class T> DEVICE T atomicCAS(T *p, T expected, T x) {
  return es_exchange(p, *p == expected ? x : *p);
}
template <class T> DEVICE T atomicInc(T *p, T last) {
  return es_exchange(p, *p >= last ? (T)0 : *p + 1);
}

/* -- between lanes of a warp ------------------------------------------------------------------- */
/* from: the lane whose value is wanted; where there is none, the own value is. */
template <class T> struct EsLane { T value, result; int from; };
template <class T> DEVICE void es_move_lanes(void **parts, int width) {
  for (int i = 0; i < width; i++) {
    EsLane<T> *mine = (EsLane<T> *)parts[i];
    const int from = mine->from >= 0 && mine->from < width ? mine->from : i;
    mine->result = ((EsLane<T> *)parts[from])->value;
  }
}
template <class T> DEVICE T es_from_lane(const char *name, T x, int from) {
  EsLane<T> mine = {x, x, from};
  es_collective(32, name, es_move_lanes<T>, &mine);
  return mine.result;
}
DEVICE int es_lane() { return es_self->thread.x & 31; }
DEVICE void es_full(unsigned mask) {
  if (mask != 0xffffffffu) es_fail("only whole warps are emulated");
}
template <class T> DEVICE T __shfl_xor_sync(unsigned mask, T x, int by, int = 32) {
  es_full(mask); return es_from_lane("lane_xor", x, es_lane() ^ by);
}
template <class T> DEVICE T __shfl_sync(unsigned mask, T x, int lane, int = 32) {
  es_full(mask); return es_from_lane("lane_get", x, lane & 31);
}
template <class T> DEVICE T __shfl_up_sync(unsigned mask, T x, int by, int = 32) {
  es_full(mask); return es_from_lane("lane_up", x, es_lane() - by);
}
template <class T> DEVICE T __shfl_down_sync(unsigned mask, T x, int by, int = 32) {
  es_full(mask); return es_from_lane("lane_down", x, es_lane() + by);
}
DEVICE unsigned __ballot_sync(unsigned mask, int x) {
  es_full(mask);
  EsLane<unsigned> mine = {(unsigned)(x != 0), 0, 0};
  es_collective(32, "ballot", [](void **parts, int width) {
    unsigned all = 0;
    for (int i = 0; i < width; i++) all |= ((EsLane<unsigned> *)parts[i])->value << i;
    for (int i = 0; i < width; i++) ((EsLane<unsigned> *)parts[i])->result = all;
  }, &mine);
  return mine.result;
}
DEVICE int __any_sync(unsigned mask, int x) { return __ballot_sync(mask, x) != 0; }
DEVICE int __all_sync(unsigned mask, int x) { return __ballot_sync(mask, x) == 0xffffffffu; }
DEVICE void __syncwarp(unsigned mask = 0xffffffffu) {
  es_full(mask); es_collective(32, "sync_warp", nullptr, nullptr);
}

/* -- the prelude's functions, in its order ----------------------------------------------------- */
DEVICE float to_float(half x) { return (float)es_bits<_Float16>(x); }
DEVICE float to_float(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
DEVICE float to_float(float x) { return x; }
DEVICE half from_float(float x, Tag<half>) { return es_bits<half>((_Float16)x); }
DEVICE bf16 from_float(float x, Tag<bf16>) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return bf16{0x7fff};
  return bf16{(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
DEVICE float from_float(float x, Tag<float>) { return x; }
template <class T> DEVICE uint32_t pack2(float lo, float hi, Tag<T> t) {
  return from_float(lo, t).bits | (uint32_t)from_float(hi, t).bits << 16;
}
DEVICE half double_to_half(double x) { return es_bits<half>((_Float16)x); }
DEVICE float to_tf32(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000) & 0xffffe000u);
}
DEVICE float fast_exp2(float x) { return exp2f(x); }
DEVICE float saturated_fma(float a, float b, float c) {
  const float y = fmaf(a, b, c);
  return y > 0.f ? fminf(y, 1.f) : 0.f;
}
DEVICE float fast_rcp(float x) { return 1.f / x; }
DEVICE float fast_log2(float x) { return log2f(x); }
DEVICE float fast_sqrt(float x) { return sqrtf(x); }
DEVICE float fast_tanh(float x) { return tanhf(x); }
DEVICE float nan_max(float a, float b) { return a != a || a > b ? a : b; }
DEVICE float nan_min(float a, float b) { return a != a || a < b ? a : b; }
template <class H> DEVICE uint32_t nan_max2(uint32_t a, uint32_t b, Tag<H> tag) {
  const H a0{(uint16_t)a}, a1{(uint16_t)(a >> 16)}, b0{(uint16_t)b}, b1{(uint16_t)(b >> 16)};
  return pack2(nan_max(to_float(a0), to_float(b0)), nan_max(to_float(a1), to_float(b1)), tag);
}
template <class T, int N = 16 / sizeof(T)> DEVICE Vec<T, N> load_now(const T *p) {
  return load_vec<T, N>(p);
}
DEVICE uint32_t shared_address(const void *p) { return es_shared_address(p); }
DEVICE void cp_async16(void *to, const void *from, bool valid) { es_cp_async(to, from, 16, valid); }
DEVICE void cp_async8(void *to, const void *from, bool valid) { es_cp_async(to, from, 8, valid); }
DEVICE void cp_async4(void *to, const void *from, bool valid) { es_cp_async(to, from, 4, valid); }
DEVICE void cp_async_commit() { es_cp_async_commit(); }
template <int N> DEVICE void cp_async_wait() { es_cp_async_wait(N); }
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void *p) { es_ldmatrix(r, p, 4, false); }
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void *p) { es_ldmatrix(r, p, 4, true); }
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void *p) { es_ldmatrix(r, p, 2, false); }
DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void *p) { es_ldmatrix(r, p, 2, true); }
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag<half>) {
  es_mma(c, a, b, 0);
}
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag<bf16>) {
  es_mma(c, a, b, 1);
}
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag<float>) {
  es_mma(c, a, b, 2);
}
template <class T> DEVICE T lane_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class T> DEVICE T lane_get(T x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
template <class T> DEVICE T lane_up(T x, int by) { return __shfl_up_sync(0xffffffffu, x, by); }
DEVICE void grid_wait() {}
DEVICE void grid_launch() {}
DEVICE void fence() {}
DEVICE int atomic_add(int *p, int x) { return atomicAdd(p, x); }
DEVICE int atomic_max(int *p, int x) { return atomicMax(p, x); }
DEVICE float atomic_add(float *p, float x) { return atomicAdd(p, x); }
DEVICE char *shared_memory() { return es_shared_memory(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE int cluster_rank() { return es_cluster_rank(); }
DEVICE void cluster_arrive() { es_cluster_arrive(); }
DEVICE void cluster_wait() { es_cluster_wait(); }
DEVICE void cluster_sync() { cluster_arrive(); cluster_wait(); }
DEVICE uint32_t cluster_address(const void *p, int rank) { return es_cluster_address(p, rank); }
DEVICE float cluster_load(uint32_t address) { return *(float *)es_shared_pointer(address); }
DEVICE Vec<float, 4> cluster_load4(uint32_t address) {
  return *(Vec<float, 4> *)es_shared_pointer(address);
}
DEVICE void cluster_store(uint32_t address, const Vec<float, 2> &x) {
  *(Vec<float, 2> *)es_shared_pointer(address) = x;
}
DEVICE void cluster_store(uint32_t address, const Vec<float, 4> &x) {
  *(Vec<float, 4> *)es_shared_pointer(address) = x;
}
DEVICE void barrier_init(Barrier *b, int count) { es_mbarrier_init(b, count); }
DEVICE void barrier_fence() {}
DEVICE void barrier_arrive(Barrier *b) { es_mbarrier_arrive(b, 0); }
DEVICE void barrier_expect(Barrier *b, int bytes) { es_mbarrier_arrive(b, bytes); }
DEVICE void barrier_wait(Barrier *b, int parity) { es_mbarrier_wait(b, parity); }
DEVICE void barrier_cp_async(Barrier *b) { es_mbarrier_cp_async(b); }
DEVICE void proxy_fence() {}
DEVICE void prefetch(const void *) {}
DEVICE void tma_prefetch(const TensorMap *) {}
DEVICE void tma_load2(void *to, const TensorMap *m, Barrier *b, int x, int y) {
  const int at[] = {x, y}; es_tma_load(to, m, b, 2, at);
}
DEVICE void tma_load3(void *to, const TensorMap *m, Barrier *b, int x, int y, int z) {
  const int at[] = {x, y, z}; es_tma_load(to, m, b, 3, at);
}
DEVICE void tma_load4(void *to, const TensorMap *m, Barrier *b, int x, int y, int z, int w) {
  const int at[] = {x, y, z, w}; es_tma_load(to, m, b, 4, at);
}
DEVICE void tma_store2(const TensorMap *m, const void *from, int x, int y) {
  const int at[] = {x, y}; es_tma_store(m, from, 2, at);
}
DEVICE void tma_store3(const TensorMap *m, const void *from, int x, int y, int z) {
  const int at[] = {x, y, z}; es_tma_store(m, from, 3, at);
}
DEVICE void tma_commit() { es_tma_commit(); }
template <int N> DEVICE void tma_wait_read() { es_tma_wait(N); }
template <int N> DEVICE void registers_up() {}
template <int N> DEVICE void registers_down() {}
DEVICE void sync_threads(int id, int count) { es_barrier(id, count, 0); }
DEVICE void barrier_arrive_cluster(Barrier *b, int rank) {
  es_mbarrier_arrive((Barrier *)es_shared_pointer(es_cluster_address(b, rank)), 0);
}
DEVICE void tma_load2_multicast(void *to, const TensorMap *m, Barrier *b, int x, int y, int blocks) {
  const int at[] = {x, y}; es_tma_multicast(to, m, b, 2, at, blocks);
}
DEVICE uint64_t wgmma_tile(const void *p) {
  return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
    (uint64_t)1 << 62;
}
DEVICE uint64_t wgmma_tile_mn(const void *p, int apart) {
  return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (uint64_t)(apart >> 4) << 16 |
    (uint64_t)64 << 32 | (uint64_t)1 << 62;
}
DEVICE void wgmma_fence() { es_wgmma_fence(); }
DEVICE void wgmma_commit() { es_wgmma_commit(); }
template <int N> DEVICE void wgmma_wait() { es_wgmma_wait(N); }
template <int R> DEVICE void wgmma_hold(float (&)[R]) {}
DEVICE int es_kind(Tag<half>) { return 0; }
DEVICE int es_kind(Tag<bf16>) { return 1; }
template <int R, class T>
DEVICE void wgmma(float (&c)[R], uint64_t a, uint64_t b, bool add, Tag<T> t) {
  es_wgmma(c, nullptr, a, b, 2 * R, es_kind(t), false, add);
}
template <int R, class T>
DEVICE void wgmma(float (&c)[R], const uint32_t (&a)[4], uint64_t b, bool add, Tag<T> t) {
  es_wgmma(c, a, 0, b, 2 * R, es_kind(t), false, add);
}
template <int R, class T>
DEVICE void wgmma_mn(float (&c)[R], uint64_t a, uint64_t b, bool add, Tag<T> t) {
  es_wgmma(c, nullptr, a, b, 2 * R, es_kind(t), true, add);
}
template <int R, class T>
DEVICE void wgmma_mn(float (&c)[R], const uint32_t (&a)[4], uint64_t b, bool add, Tag<T> t) {
  es_wgmma(c, a, 0, b, 2 * R, es_kind(t), true, add);
}

/* -- how the machine calls a kernel ------------------------------------------------------------ */
template <int... I> struct EsIndices {};
template <class T, T... I> struct EsSequence { typedef EsIndices<I...> type; };
template <class T> struct EsKind { static constexpr char value = sizeof(T) == 4 ? 'i' : '?'; };
template <class T> struct EsKind<T *> { static constexpr char value = 'p'; };
template <> struct EsKind<TensorMap> { static constexpr char value = 'm'; };
template <class... A, int... I>
DEVICE void es_apply(void (*kernel)(A...), void **arguments, EsIndices<I...>) {
  kernel(*(A *)arguments[I]...);
}
template <class... A> DEVICE void es_apply_all(void (*kernel)(A...), void **arguments) {
  es_apply(kernel, arguments, typename __make_integer_seq<EsSequence, int, sizeof...(A)>::type());
}
template <class... A> DEVICE const char *es_kinds(void (*)(A...)) {
  static const char kinds[] = {EsKind<A>::value..., 0};
  return kinds;
}
extern "C" char __start_es_section[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_es_section[] __attribute__((weak, visibility("hidden")));
extern "C" __global__ char *es_statics(int stop) {
  return stop ? __stop_es_section : __start_es_section;
}
/* What __init__.py puts after the text, once per kernel. */
#define ES_KERNEL(NAME) \
  extern "C" __global__ void es_call_##NAME(void **arguments) { es_apply_all(NAME, arguments); } \
  extern "C" __global__ const char *es_kinds_##NAME() { return es_kinds(NAME); }
