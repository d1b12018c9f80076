// wgmma(m=64,n=96,groups=1,teams=1,blocks=2,share=0,split=8)
// Launch(grid=(128, 1, 1), threads=256, values=(16, 2, 8, 1, 48, 768, 20480, 128, 768, 768), suffix='', shared=107600, cluster=(8, 1, 1), maps=(TensorMap(operand=0, dtype='float16', sizes=(3072, 128), strides=(3072,), box=(64, 64), swizzle=128, element_strides=()), TensorMap(operand=1, dtype='float16', sizes=(3072, 768), strides=(3072,), box=(64, 96), swizzle=128, element_strides=())))
typedef half T;
enum { ROWS = 64, COLUMNS = 96, GROUPS = 1, TEAMS = 1, CLUSTER = 8, SHARE = 0, WEIGHTS = 1, INPUT = 2, SHARERS = 1, SPLIT = 8, PART = 8, PITCH = 100, STAGES = 4, STAGE = 20480, SUMS = 1, AHEAD = 3, VECTOR = 8, FILLER = 32, REGISTERS = 224 };
#ifdef __CUDACC__
#ifndef ES_WGMMA_HOLD
#define ES_WGMMA_HOLD
template <int R> DEVICE void wgmma_hold(float (&c)[R]) {
  UNROLL for (int i = 0; i < R; i++) asm volatile("" : "+f"(c[i]) :: "memory");
}
#endif
DEVICE void wgmma(float (&c)[48], uint64_t a, uint64_t b, bool add, Tag<half>) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
    "%48, %49, p, 1, 1, 0, 0;\n}"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47])
    : "l"(a), "l"(b), "r"((int)add));
}
#endif
/* Tile number `tile`, or that of block `rank` in pair number `tile`. Tiles that are in work at the
   same time share rows and columns: `together` rows of tiles are worked off column by column. */
struct Place { int row, column; };
DEVICE Place place(int tile, int row_tiles, int column_tiles, int together, int rank) {
  const int all = together * column_tiles, first = tile / all * together, rest = tile % all;
  const int rows = imin(together, row_tiles - first);
  const Place at = {first + rest % rows, rest / rows};
  return {SHARE == WEIGHTS ? 2 * at.row + rank : at.row,
          SHARE == INPUT ? 2 * at.column + rank : at.column};
}
/* What `count` rows of a matrix, from row `first` on, have for step k. shared: both blocks of the
   cluster read it, and each loads a half for both. */
DEVICE void load_rows(
    char *to, const TensorMap *m, Barrier *full, int k, int first, int count, bool shared,
    int rank) {
  const int part = rank * (count / 2);
  if (shared) tma_load2_multicast(to + part * 128, m, full, k * 64, first + part, 3);
  else tma_load2(to, m, full, k * 64, first);
}
DEVICE void load_weights(
    char *stage, const TensorMap *m, Barrier *full, int k, int column, int rank) {
  load_rows(stage + ROWS * 128, m, full, k, column * COLUMNS, COLUMNS, SHARE == WEIGHTS, rank);
}
/* This warp doesn't need the stage any more, which block `rank` writes to, too. */
DEVICE void release(Barrier *empty, int rank) {
  if (SHARE) barrier_arrive_cluster(empty, rank); else barrier_arrive(empty);
}
struct Fetched { Vec<half, 8> e2[1]; };
extern "C" __global__ void __launch_bounds__(256, 2) NAME(
  const half *p0, const half *__restrict__ p1, const float *__restrict__ p2, const half *p3, half *p4, int v0, int v1, int v2, int v3, int v4, int v5, int v6, int v7, int v8, int v9, const __grid_constant__ TensorMap m0, const __grid_constant__ TensorMap m1) {
  char *const ring = shared_memory();
  Barrier *const full = (Barrier *)(ring + STAGES * STAGE), *const empty = full + STAGES;
  Barrier *const turn = empty + STAGES;
  const int warp = lane_get((int)threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 4 * GROUPS * SHARERS);
    }
    for (int t = 0; t < 2; ++t) barrier_init(turn + t, 4 * GROUPS);
    barrier_fence();
  }
  if (SHARE) cluster_sync(); else __syncthreads();
  if (SPLIT > 1) cluster_arrive();  /* waited for before anything is sent */
  const int rank = SPLIT > 1 || SHARE ? cluster_rank() : 0;
  const int first_tile = blockIdx.x / CLUSTER, tile_step = gridDim.x / CLUSTER;
  grid_launch();
  const int tiles = v0;
  const int row_tiles = v1;
  const int column_tiles = v2;
  const int together = v3;
  const int all_steps = v4;
  const int columns = v5;
  const int bytes = v6;
  const int all_rows = v7;

  const int first_step = SPLIT > 1 ? rank * all_steps / SPLIT : 0;
  const int steps = (SPLIT > 1 ? (rank + 1) * all_steps / SPLIT : all_steps) - first_step;
  if (warp >= 4 * GROUPS * TEAMS) {  /* the producers; only one thread works */
    registers_down<FILLER>();
    if (threadIdx.x == 128 * GROUPS * TEAMS) {
      tma_prefetch(&m0);
      tma_prefetch(&m1);
      int slot = 0, phase = 1, early = 0;
      if (first_tile < tiles) {  /* weights don't depend on the kernels before */
        const int column = place(first_tile, row_tiles, column_tiles, together, rank).column;
        for (; early < imin(STAGES, steps); ++early) {
          barrier_expect(full + early, bytes);
          load_weights(ring + early * STAGE, &m1, full + early, first_step + early, column, rank);
        }
      }
      grid_wait();
      for (int tile = first_tile; tile < tiles; tile += tile_step) {
        const Place at = place(tile, row_tiles, column_tiles, together, rank);

        for (int k = first_step; k < first_step + steps; ++k) {
          char *const a = ring + slot * STAGE;
          if (early > 0) {
            --early;
          } else {
            barrier_wait(empty + slot, phase);
            barrier_expect(full + slot, bytes);
            load_weights(a, &m1, full + slot, k, at.column, rank);
          }
load_rows(a, &m0, full + slot, k, at.row * ROWS, ROWS, SHARE == INPUT, rank);
          if (++slot == STAGES) { slot = 0; phase ^= 1; }
        }
      }
    }
    sync_warp();
    if (SHARE) cluster_sync();  /* what others send here has arrived */
    if (SPLIT > 1) { cluster_wait(); cluster_sync(); }
    return;
  }
  registers_up<REGISTERS>();
  const int team = warp / (4 * GROUPS), part = warp / 4 % GROUPS;
  const int own = part * (64 * SUMS) + warp % 4 * 16 + lane / 4;  /* this lane's first row */
  const uint64_t a0 = wgmma_tile(ring + part * SUMS * 8192), b0 = wgmma_tile(ring + ROWS * 128);
  const int tid = threadIdx.x;
  const Place at = place(first_tile, row_tiles, column_tiles, together, rank);
auto row_of = [&](int local) {
  const int row = at.row * ROWS + local;
  return row < all_rows ? row : -1;
};
  float *const all = (float *)(turn + 2);  /* [block][row of a part][PITCH] */
const float *e1 = p2 + 0;
const half *e2 = p3 + 0;
half *y = p4 + 0;

const int f_column = at.column * COLUMNS + tid % 12 * 8, f_last = columns - 8;
const int f_first = (tid < 120 ? tid / 12 : 8), f_row = rank * PART + f_first;
const int f_rows = f_column <= f_last ? imin(ROWS - f_row, 8 - f_first) : 0;
float c1[8];
UNROLL for (int i = 0; i < 2; i++) {
  const auto piece = load_vec<float, 4>(e1 + 0 + (imin(f_column, f_last) + i * 4));
  UNROLL for (int j = 0; j < 4; j++) c1[i * 4 + j] = piece.v[j];
}

  grid_wait();

Fetched f_own[1];
UNROLL for (int r = 0; r < 1; r++) if (const int row = (0 + r) * 10 < f_rows ? row_of(f_row + (0 + r) * 10) : -1; row >= 0) {
UNROLL for (int i = 0; i < 1; i++) f_own[r].e2[i] = load_vec<half, 8>(e2 + (row) * v8 + (f_column + i * 8));
}

  int slot = 0, phase = 0;
    float sum[SUMS][COLUMNS / 2];
    int last = 0;
    for (int k = 0; k < steps; ++k) {
      barrier_wait(full + slot, phase);
      const uint64_t a = a0 + slot * (STAGE >> 4), b = b0 + slot * (STAGE >> 4);
      wgmma_fence();
      UNROLL for (int i = 0; i < 4; ++i)
        UNROLL for (int m = 0; m < SUMS; ++m)
          wgmma(sum[m], a + m * 512 + i * 2, b + i * 2, k > 0 || i > 0, Tag<T>());
      wgmma_commit();
      wgmma_wait<1>();  /* what the step before read is free */
      if (k > 0 && lane < SHARERS) release(empty + last, lane);
      last = slot;
      if (++slot == STAGES) { slot = 0; phase ^= 1; }
    }
  wgmma_wait<0>();
  UNROLL for (int m = 0; m < SUMS; ++m) wgmma_hold(sum[m]);
  cluster_wait();
  UNROLL for (int r = 0; r < 2 * SUMS; ++r) {
    const int local = own + r / 2 * 64 + r % 2 * 8;
    const uint32_t to = cluster_address(
        all + (rank * PART + local % PART) * PITCH + lane % 4 * 8, local / PART);
    UNROLL for (int g = 0; g < COLUMNS / 32; ++g)
      UNROLL for (int h = 0; h < 2; ++h) {
        const float *x = sum[r / 2] + (g * 4 + h * 2) * 4 + r % 2 * 2;
        cluster_store(to + (g * 32 + h * 4) * 4, Vec<float, 4>{{x[0], x[1], x[4], x[5]}});
      }
  }
  cluster_sync();
for (int r0 = 0; r0 < 1; r0 += 1) {
UNROLL for (int r = 0; r < 1; r++) if (const int row = (r0 + r) * 10 < f_rows ? row_of(f_row + (r0 + r) * 10) : -1; row >= 0) {
  float sum[8] = {};
  const float *from = all + (f_first + (r0 + r) * 10) * 100 + tid % 12 * 8;
  UNROLL for (int layer = 0; layer < 8; layer++)
    UNROLL for (int i = 0; i < 8; i += 4) {
      const auto part = load_vec<float, 4>(from + layer * 800 + i);
      UNROLL for (int j = 0; j < 4; j++) sum[i + j] += part.v[j];
    }
UNROLL for (int i = 0; i < 1; i++) {
  Vec<uint32_t, 4> piece;
  UNROLL for (int j = 0; j < 4; j++) piece.v[j] = pack2([&] { float e__0 = sum[i * 8 + j * 2 + 0]; float e__1 = c1[i * 8 + j * 2 + 0]; float e__2 = (e__0 + e__1); float e__3 = to_float(f_own[r].e2[(i * 8 + j * 2 + 0) / 8].v[(i * 8 + j * 2 + 0) % 8]); float e__4 = (e__2 + e__3); float e__5 = nan_max(e__4, 0.0f); return e__5; }(), [&] { float e__0 = sum[i * 8 + j * 2 + 1]; float e__1 = c1[i * 8 + j * 2 + 1]; float e__2 = (e__0 + e__1); float e__3 = to_float(f_own[r].e2[(i * 8 + j * 2 + 1) / 8].v[(i * 8 + j * 2 + 1) % 8]); float e__4 = (e__2 + e__3); float e__5 = nan_max(e__4, 0.0f); return e__5; }(), Tag<half>());
  store_vec(reinterpret_cast<uint32_t *>(y + (row) * v9 + f_column + i * 8), piece);
}
}
}

}
