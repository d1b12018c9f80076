"""The CUDA C++ text every GPU kernel file starts with: types, conversions, and the few instructions
that C++ has no word for, behind functions.

Kernels use these functions and plain CUDA C++ only - no header, no `asm` of their own - so the same
text compiles with NVRTC in a moment and, with an emulation of the functions below, as C++ for a CPU
(tests/cuda_emulator), where kernels are checked without a GPU.

Storage types: `half` and `bf16` are structs of two bytes; arithmetic is done in float.
"""

from __future__ import annotations

from enginesmith.plan.target import Target

CUDA_TYPES = {
    "float32": "float", "float64": "double", "float16": "half", "bfloat16": "bf16",
    "int64": "int64_t", "int32": "int32_t", "int8": "int8_t", "uint8": "uint8_t", "bool": "uint8_t",
}  # fmt: skip
"""The C++ type of an element in memory, by numpy name; bool is a byte that holds 0 or 1."""

TYPES = r"""
typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t;
typedef long long int64_t; typedef unsigned long long uint64_t;
struct half { uint16_t bits; };
struct bf16 { uint16_t bits; };
#define DEVICE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
/* N elements that are loaded and stored at once (N * sizeof(T) is 1, 2, 4, 8 or 16 bytes). */
template <class T, int N> struct alignas(sizeof(T) * N) Vec { T v[N]; };
template <class T, int N> DEVICE Vec<T, N> load_vec(const T *p) {
  return *reinterpret_cast<const Vec<T, N> *>(p);
}
template <class T, int N> DEVICE void store_vec(T *p, const Vec<T, N> &x) {
  *reinterpret_cast<Vec<T, N> *>(p) = x;
}
DEVICE int imin(int a, int b) { return a < b ? a : b; }
DEVICE int imax(int a, int b) { return a > b ? a : b; }
DEVICE int ceildiv(int a, int b) { return (a + b - 1) / b; }
template <class T> struct Tag {};
"""
"""What needs no special instruction."""

INSTRUCTIONS = r"""
/* -- numbers ----------------------------------------------------------------------------------- */
DEVICE float to_float(half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
DEVICE float to_float(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
DEVICE float to_float(float x) { return x; }
DEVICE half from_float(float x, Tag<half>) {
  half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
DEVICE bf16 from_float(float x, Tag<bf16>) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
DEVICE float from_float(float x, Tag<float>) { return x; }
/* Two numbers in one register, the first in the lower half. */
DEVICE uint32_t pack2(float lo, float hi, Tag<half>) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
  return y;
}
DEVICE uint32_t pack2(float lo, float hi, Tag<bf16>) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
  return y;
}
DEVICE half double_to_half(double x) {
  half y;
  asm("cvt.rn.f16.f64 %0, %1;" : "=h"(y.bits) : "d"(x));
  return y;
}
/* x rounded to TF32 (10 bits of mantissa), as a float. */
DEVICE float to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}
DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/* a * b + c, between 0 and 1 (0 for what is not a number). */
DEVICE float saturated_fma(float a, float b, float c) {
  float y;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
  return y;
}
DEVICE float fast_rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float fast_sqrt(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float fast_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/* The greater and the lesser of two; NaN if either is. */
DEVICE float nan_max(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
DEVICE float nan_min(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
/* The same of two pairs of 16-bit numbers. */
DEVICE uint32_t nan_max2(uint32_t a, uint32_t b, Tag<half>) {
  uint32_t y;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
DEVICE uint32_t nan_max2(uint32_t a, uint32_t b, Tag<bf16>) {
  uint32_t y;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
/* N elements (1 to 16 bytes; 16 unless said otherwise) loaded here: the compiler moves ordinary
   loads of constants past grid_wait(), to where they are used. */
template <class T, int N = 16 / sizeof(T)> DEVICE Vec<T, N> load_now(const T *p) {
  union { Vec<T, N> y; uint16_t h; uint32_t w[4]; uint64_t l; };
  if constexpr (sizeof(Vec<T, N>) == 16)
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "l"(p) : "memory");
  else if constexpr (sizeof(Vec<T, N>) == 8)
    asm volatile("ld.global.u64 %0, [%1];" : "=l"(l) : "l"(p) : "memory");
  else if constexpr (sizeof(Vec<T, N>) == 4)
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(w[0]) : "l"(p) : "memory");
  else if constexpr (sizeof(Vec<T, N>) == 2)
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(h) : "l"(p) : "memory");
  else
    asm volatile("ld.global.u8 %0, [%1];" : "=h"(h) : "l"(p) : "memory");
  return y;
}
/* Constants on their way to the L2 cache, before grid_wait. */
DEVICE void prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }
/* -- asynchronous copies to shared memory; zeros where !valid ---------------------------------- */
DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
DEVICE void cp_async16(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
      :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void cp_async8(void *to, const void *from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
      :: "r"(shared_address(to)), "l"(from), "r"(valid ? 8 : 0) : "memory");
}
DEVICE void cp_async4(void *to, const void *from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
      :: "r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}
/* -- matrices in registers (mma.sync, see the PTX manual for the fragments) -------------------- */
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
      : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}
DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
      : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}
/* c += a * b: 16x8x16 of half or bf16; 16x8x8 of TF32 (floats whose low bits are ignored). */
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag<half>) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
    "r"(b[0]), "r"(b[1]));
}
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag<bf16>) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
      "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
    "r"(b[0]), "r"(b[1]));
}
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag<float>) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
    "r"(b[0]), "r"(b[1]));
}
/* -- between lanes of a warp ------------------------------------------------------------------- */
template <class T> DEVICE T lane_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class T> DEVICE T lane_get(T x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
template <class T> DEVICE T lane_up(T x, int by) { return __shfl_up_sync(0xffffffffu, x, by); }
/* -- between blocks ---------------------------------------------------------------------------- */
/* Overlap of consecutive kernels (programmatic dependent launch): wait until the kernels before
   have
   finished; let the next one be set up. Nothing before compute capability 9.0. */
#if __CUDA_ARCH__ >= 900
DEVICE void grid_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void grid_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
DEVICE void grid_wait() {}
DEVICE void grid_launch() {}
#endif
/* Make what this thread wrote visible to all blocks; atomic counters. */
DEVICE void fence() { __threadfence(); }
DEVICE int atomic_add(int *p, int x) { return atomicAdd(p, x); }
DEVICE int atomic_max(int *p, int x) { return atomicMax(p, x); }
DEVICE float atomic_add(float *p, float x) { return atomicAdd(p, x); }
/* Dynamic shared memory, aligned to 1024 bytes. */
DEVICE char *shared_memory() {
  extern __shared__ __align__(1024) char es_shared_memory[];
  return es_shared_memory;
}
DEVICE void sync_warp() { __syncwarp(); }
"""
"""Of every architecture from 8.0 on."""

HOPPER = r"""
/* -- clusters: the other blocks' shared memory ------------------------------------------------- */
DEVICE int cluster_rank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return (int)r;
}
DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void cluster_sync() { cluster_arrive(); cluster_wait(); }
/* The address, in block `rank` of the cluster, of what is at p in this block's shared memory. */
DEVICE uint32_t cluster_address(const void *p, int rank) {
  uint32_t y;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(y) : "r"(shared_address(p)), "r"(rank));
  return y;
}
DEVICE float cluster_load(uint32_t address) {
  float y;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(y) : "r"(address) : "memory");
  return y;
}
DEVICE Vec<float, 4> cluster_load4(uint32_t address) {
  Vec<float, 4> y;
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
      : "=f"(y.v[0]), "=f"(y.v[1]), "=f"(y.v[2]), "=f"(y.v[3]) : "r"(address) : "memory");
  return y;
}
DEVICE void cluster_store(uint32_t address, const Vec<float, 2> &x) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};"
      :: "r"(address), "f"(x.v[0]), "f"(x.v[1]) : "memory");
}
DEVICE void cluster_store(uint32_t address, const Vec<float, 4> &x) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};"
      :: "r"(address), "f"(x.v[0]), "f"(x.v[1]), "f"(x.v[2]), "f"(x.v[3]) : "memory");
}
/* -- barriers in shared memory ----------------------------------------------------------------- */
typedef uint64_t Barrier;
DEVICE void barrier_init(Barrier *b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
      :: "r"(shared_address(b)), "r"(count) : "memory");
}
/* After initialising barriers, before others (the copy engine, the cluster) use them. */
DEVICE void barrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(Barrier *b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(b)) : "memory");
}
DEVICE void barrier_expect(Barrier *b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
      :: "r"(shared_address(b)), "r"(bytes) : "memory");
}
DEVICE void barrier_wait(Barrier *b, int parity) {
  asm volatile("{\n.reg .pred p;\nES_WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], "
      "%1;\n@p bra ES_DONE;\nbra ES_WAIT;\nES_DONE:\n}"
      :: "r"(shared_address(b)), "r"(parity) : "memory");
}
/* barrier_arrive at the same place in block `rank` of the cluster. */
DEVICE void barrier_arrive_cluster(Barrier *b, int rank) {
  asm volatile("{\n.reg .b32 r;\nmapa.shared::cluster.u32 r, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r];\n}"
      :: "r"(shared_address(b)), "r"(rank) : "memory");
}
/* All cp.async copies of this thread so far arrive at the barrier when they are done. */
DEVICE void barrier_cp_async(Barrier *b) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
      :: "r"(shared_address(b)) : "memory");
}
/* Shared memory written by ordinary stores, before the tensor cores or the copy engine read it. */
DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/* -- the copy engine (TMA) --------------------------------------------------------------------- */
struct alignas(64) TensorMap { uint64_t opaque[16]; };
DEVICE void tma_prefetch(const TensorMap *m) {
  asm volatile("prefetch.tensormap [%0];" :: "l"(m) : "memory");
}
DEVICE void tma_load2(void *to, const TensorMap *m, Barrier *b, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];"
    :: "r"(shared_address(to)), "l"(m), "r"(shared_address(b)), "r"(x), "r"(y) : "memory");
}
/* To the same place in all blocks of the cluster whose bits are set, at each one's barrier. */
DEVICE void tma_load2_multicast(void *to, const TensorMap *m, Barrier *b, int x, int y, int blocks)
   {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multi"
      "cast::cluster [%0], [%1, {%3, %4}], [%2], %5;"
    :: "r"(shared_address(to)), "l"(m), "r"(shared_address(b)), "r"(x), "r"(y),
    "h"((uint16_t)blocks) : "memory");
}
DEVICE void tma_load3(void *to, const TensorMap *m, Barrier *b, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];"
    :: "r"(shared_address(to)), "l"(m), "r"(shared_address(b)), "r"(x), "r"(y), "r"(z) : "memory");
}
DEVICE void tma_load4(void *to, const TensorMap *m, Barrier *b, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];"
    :: "r"(shared_address(to)), "l"(m), "r"(shared_address(b)), "r"(x), "r"(y), "r"(z), "r"(w) :
    "memory");
}
DEVICE void tma_store2(const TensorMap *m, const void *from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
      :: "l"(m), "r"(shared_address(from)), "r"(x), "r"(y) : "memory");
}
DEVICE void tma_store3(const TensorMap *m, const void *from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
      :: "l"(m), "r"(shared_address(from)), "r"(x), "r"(y), "r"(z) : "memory");
}
DEVICE void tma_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N> DEVICE void tma_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory");
}
/* -- warp groups ------------------------------------------------------------------------------- */
template <int N> DEVICE void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N));
}
template <int N> DEVICE void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N));
}
/* Barrier `id` (1 to 15) of `count` threads of the block. */
DEVICE void sync_threads(int id, int count) {
  asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(count) : "memory");
}
/* -- wgmma: matrices in shared memory ---------------------------------------------------------- */
/* A tile whose rows are 128 bytes with a 128-byte swizzle (as the copy engine writes them), 8 rows
   apart
   by 1024 bytes. */
DEVICE uint64_t wgmma_tile(const void *p) {
  return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (uint64_t)1 << 16 |
    (uint64_t)64 << 32 | (uint64_t)1 << 62;
}
/* A tile of 16 or more rows (along K) of 64 columns each, so stored too; further columns in further
   such tiles, `apart` bytes apart. */
DEVICE uint64_t wgmma_tile_mn(const void *p, int apart) {
  return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (uint64_t)(apart >> 4) << 16 |
    (uint64_t)64 << 32 | (uint64_t)1 << 62;
}
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}
"""
"""Of 9.0 on (`wgmma` and `setmaxnreg` need the target sm_90a)."""


def prelude(target: Target) -> str:
    """The text for a target."""
    return TYPES + INSTRUCTIONS + (HOPPER if target.arch >= 90 else "")
