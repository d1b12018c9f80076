// wgmma(m=128,n=64,groups=2,teams=1,blocks=1,share=0,split=1)
// Launch(grid=(1, 1, 1), threads=384, values=(1, 1, 1, 1, 18, 64, 15872, 5, 4, 3, 3, 5, 4, 1, 1, 3, 2, 2, 1, 1, 1, 1, 9, 64, 72), suffix='', shared=196752, cluster=(1, 1, 1), maps=(TensorMap(operand=0, dtype='float16', sizes=(72, 7, 10, 3), strides=(72, 504, 5040), box=(64, 8, 10, 3), swizzle=128, element_strides=(1, 2, 2, 1)), TensorMap(operand=1, dtype='float16', sizes=(1152, 64), strides=(1152,), box=(64, 64), swizzle=128, element_strides=())))
typedef half T;
enum { ROWS = 128, COLUMNS = 64, GROUPS = 2, TEAMS = 1, CLUSTER = 1, SHARE = 0, WEIGHTS = 1, INPUT = 2, SHARERS = 1, SPLIT = 1, PART = 128, PITCH = 68, STAGES = 8, STAGE = 24576, SUMS = 1, AHEAD = 2, VECTOR = 8, FILLER = 40, REGISTERS = 232 };
#ifdef __CUDACC__
#ifndef ES_WGMMA_HOLD
#define ES_WGMMA_HOLD
template <int R> DEVICE void wgmma_hold(float (&c)[R]) {
  UNROLL for (int i = 0; i < R; i++) asm volatile("" : "+f"(c[i]) :: "memory");
}
#endif
DEVICE void wgmma(float (&c)[32], uint64_t a, uint64_t b, bool add, Tag<half>) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
    "%32, %33, p, 1, 1, 0, 0;\n}"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
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
extern "C" __global__ void __launch_bounds__(384, 1) NAME(
  const half *p0, const half *__restrict__ p1, const half *__restrict__ p2, const half *p3, half *p4, int v0, int v1, int v2, int v3, int v4, int v5, int v6, int v7, int v8, int v9, int v10, int v11, int v12, int v13, int v14, int v15, int v16, int v17, int v18, int v19, int v20, int v21, int v22, int v23, int v24, const __grid_constant__ TensorMap m0, const __grid_constant__ TensorMap m1) {
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
  const int box_h = v7;
  const int box_w = v8;
  const int box_n = v9;
  const int all_n = v10;
  const int all_h = v11;
  const int all_w = v12;
  const int boxes_h = v13;
  const int boxes_w = v14;
  const int kernel_w = v15;
  const int stride_h = v16;
  const int stride_w = v17;
  const int dilation_h = v18;
  const int dilation_w = v19;
  const int pad_h = v20;
  const int pad_w = v21;
  const int pieces = all_steps / v22;

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
const int w0 = at.row % boxes_w * box_w;
const int h0 = at.row / boxes_w % boxes_h * box_h, n0 = at.row / boxes_w / boxes_h * box_n;
int piece = first_step % pieces, kx = first_step / pieces % kernel_w;
int ky = first_step / pieces / kernel_w;
        for (int k = first_step; k < first_step + steps; ++k) {
          char *const a = ring + slot * STAGE;
          if (early > 0) {
            --early;
          } else {
            barrier_wait(empty + slot, phase);
            barrier_expect(full + slot, bytes);
            load_weights(a, &m1, full + slot, k, at.column, rank);
          }
tma_load4(a, &m0, full + slot, piece * 64, w0 * stride_w - pad_w + kx * dilation_w,
                  h0 * stride_h - pad_h + ky * dilation_h, n0);
        if (++piece == pieces) {
          piece = 0;
          if (++kx == kernel_w) { kx = 0; ++ky; }
        }
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
  grid_wait();
const half *e1 = p2 + 0;
const half *e2 = p3 + 0;
half *y = p4 + 0;

  int turns = team ^ 1;
  uint32_t step = team * steps;  /* of all steps of the block, those of the teams in turn */
  for (int tile = first_tile + team * tile_step; tile < tiles; tile += TEAMS * tile_step) {
    int slot = step % STAGES, phase = step / STAGES & 1;
    if (TEAMS == 2) { barrier_wait(turn + team, turns); turns ^= 1; }
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
    if (TEAMS == 2 && lane == 0) barrier_arrive(turn + (team ^ 1));
    const Place at = place(tile, row_tiles, column_tiles, together, rank);
    const int first = at.column * COLUMNS + lane % 4 * 8;  /* column */
const int w0 = at.row % boxes_w * box_w;
const int h0 = at.row / boxes_w % boxes_h * box_h, n0 = at.row / boxes_w / boxes_h * box_n;
auto row_of = [&](int local) {
  const int w = local % box_w, h = local / box_w % box_h, n = local / box_w / box_h;
  const bool inside = n < box_n && n0 + n < all_n && h0 + h < all_h && w0 + w < all_w;
  return inside ? ((n0 + n) * all_h + h0 + h) * all_w + w0 + w : -1;
};
    int rows[2 * SUMS];  /* of the result; -1: outside */
    UNROLL for (int r = 0; r < 2 * SUMS; ++r) rows[r] = row_of(own + r / 2 * 64 + r % 2 * 8);
    Fetched fetched[AHEAD][8 / VECTOR][2 * SUMS];
    int next = first;  /* loads that don't need the sums go ahead of them */
    UNROLL for (int g = 0; g < AHEAD; ++g)
  UNROLL for (int s = 0; s < 8 / VECTOR; ++s) {
    const int column = next + g * 32 + s * VECTOR;
    UNROLL for (int r = 0; r < 2 * SUMS; ++r) if (rows[r] >= 0 && column < columns) {
      UNROLL for (int i = 0; i < 1; i++) fetched[g][s][r].e2[i] = load_vec<half, 8>(e2 + (rows[r]) * v23 + (column + i * 8));

    }
  }

    wgmma_wait<0>();
    UNROLL for (int m = 0; m < SUMS; ++m) wgmma_hold(sum[m]);
    if (lane < SHARERS) release(empty + last, lane);
    step += TEAMS * steps;
    UNROLL for (int g0 = 0; g0 < COLUMNS / 32; g0 += AHEAD) {
      UNROLL for (int g = 0; g < AHEAD; ++g)
        UNROLL for (int s = 0; s < 8 / VECTOR; ++s) {
          const int column = first + (g0 + g) * 32 + s * VECTOR;
          float c1[8];
UNROLL for (int i = 0; i < 1; i++) {
  const auto piece = load_vec<half, 8>(e1 + 0 + (imin(column, columns - VECTOR) + i * 8));
  UNROLL for (int j = 0; j < 8; j++) c1[i * 8 + j] = to_float(piece.v[j]);
}

          UNROLL for (int r = 0; r < 2 * SUMS; ++r) if (rows[r] >= 0 && column < columns) {
            float x[VECTOR];
            UNROLL for (int i = 0; i < VECTOR; ++i) {
              const int e = s * VECTOR + i;
              x[i] = sum[r / 2][((g0 + g) * 4 + e / 2) * 4 + r % 2 * 2 + e % 2];
            }
            UNROLL for (int i = 0; i < 1; i++) {
  Vec<uint32_t, 4> piece;
  UNROLL for (int j = 0; j < 4; j++) piece.v[j] = pack2([&] { float e__0 = x[i * 8 + j * 2 + 0]; float e__1 = c1[i * 8 + j * 2 + 0]; float e__2 = (e__0 + e__1); float e__3 = to_float(fetched[g][s][r].e2[(i * 8 + j * 2 + 0) / 8].v[(i * 8 + j * 2 + 0) % 8]); float e__4 = (e__2 + e__3); float e__5 = nan_max(e__4, 0.0f); return e__5; }(), [&] { float e__0 = x[i * 8 + j * 2 + 1]; float e__1 = c1[i * 8 + j * 2 + 1]; float e__2 = (e__0 + e__1); float e__3 = to_float(fetched[g][s][r].e2[(i * 8 + j * 2 + 1) / 8].v[(i * 8 + j * 2 + 1) % 8]); float e__4 = (e__2 + e__3); float e__5 = nan_max(e__4, 0.0f); return e__5; }(), Tag<half>());
  store_vec(reinterpret_cast<uint32_t *>(y + (rows[r]) * v24 + column + i * 8), piece);
}

          }
        }
      next += AHEAD * 32;
      if (g0 + AHEAD < COLUMNS / 32) {
        UNROLL for (int g = 0; g < AHEAD; ++g)
  UNROLL for (int s = 0; s < 8 / VECTOR; ++s) {
    const int column = next + g * 32 + s * VECTOR;
    UNROLL for (int r = 0; r < 2 * SUMS; ++r) if (rows[r] >= 0 && column < columns) {
      UNROLL for (int i = 0; i < 1; i++) fetched[g][s][r].e2[i] = load_vec<half, 8>(e2 + (rows[r]) * v23 + (column + i * 8));

    }
  }

      }
    }
    sync_warp();  /* rows outside let lanes diverge */
  }
  if (SHARE) cluster_sync();
}
