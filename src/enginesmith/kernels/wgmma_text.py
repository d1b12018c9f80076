"""The CUDA C++ of `kernels/wgmma_tile.py`, with @NAMES@ for what products differ in and enumerators
in capitals for what tiles differ in."""

KERNEL = """\
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
@SIZES@
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
@ORIGIN@
        for (int k = first_step; k < first_step + steps; ++k) {
          char *const a = ring + slot * STAGE;
          if (early > 0) {
            --early;
          } else {
            barrier_wait(empty + slot, phase);
            barrier_expect(full + slot, bytes);
            load_weights(a, &m1, full + slot, k, at.column, rank);
          }
@LOAD@
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
@CONSUME@
}
"""
"""The whole: barriers, the warp that fills the ring, and `CONSUME` or `CONSUME_PART`."""

CONSUME = """\
  grid_wait();
@POINTERS@
  int turns = team ^ 1;
  uint32_t step = team * steps;  /* of all steps of the block, those of the teams in turn */
  for (int tile = first_tile + team * tile_step; tile < tiles; tile += TEAMS * tile_step) {
    int slot = step % STAGES, phase = step / STAGES & 1;
    if (TEAMS == 2) { barrier_wait(turn + team, turns); turns ^= 1; }
@MULTIPLY@
    if (TEAMS == 2 && lane == 0) barrier_arrive(turn + (team ^ 1));
    const Place at = place(tile, row_tiles, column_tiles, together, rank);
    const int first = at.column * COLUMNS + lane % 4 * 8;  /* column */
@ROW@
    int rows[2 * SUMS];  /* of the result; -1: outside */
    UNROLL for (int r = 0; r < 2 * SUMS; ++r) rows[r] = row_of(own + r / 2 * 64 + r % 2 * 8);
    Fetched fetched[AHEAD][8 / VECTOR][2 * SUMS];
    int next = first;  /* loads that don't need the sums go ahead of them */
    @FETCH@
    wgmma_wait<0>();
    UNROLL for (int m = 0; m < SUMS; ++m) wgmma_hold(sum[m]);
    if (lane < SHARERS) release(empty + last, lane);
    step += TEAMS * steps;
    UNROLL for (int g0 = 0; g0 < COLUMNS / 32; g0 += AHEAD) {
      UNROLL for (int g = 0; g < AHEAD; ++g)
        UNROLL for (int s = 0; s < 8 / VECTOR; ++s) {
          const int column = first + (g0 + g) * 32 + s * VECTOR;
          @COLUMNS@
          UNROLL for (int r = 0; r < 2 * SUMS; ++r) if (rows[r] >= 0 && column < columns) {
            float x[VECTOR];
            UNROLL for (int i = 0; i < VECTOR; ++i) {
              const int e = s * VECTOR + i;
              x[i] = sum[r / 2][((g0 + g) * 4 + e / 2) * 4 + r % 2 * 2 + e % 2];
            }
            @STORE@
          }
        }
      next += AHEAD * 32;
      if (g0 + AHEAD < COLUMNS / 32) {
        @FETCH@
      }
    }
    sync_warp();  /* rows outside let lanes diverge */
  }
  if (SHARE) cluster_sync();"""
"""The others' work: tile after tile, results straight from registers."""

MULTIPLY = """\
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
    }"""
"""All steps of a tile, or of the part of one."""

CONSUME_PART = """\
  const int tid = threadIdx.x;
  const Place at = place(first_tile, row_tiles, column_tiles, together, rank);
@ROW@
  float *const all = (float *)(turn + 2);  /* [block][row of a part][PITCH] */
@POINTERS@
@BEGIN@
  grid_wait();
@FETCH@
  int slot = 0, phase = 0;
@MULTIPLY@
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
@STORE@"""
"""Their work where blocks split K: one part of one tile, sums sent to the block that finishes the
row."""

FETCH = """\
UNROLL for (int g = 0; g < AHEAD; ++g)
  UNROLL for (int s = 0; s < 8 / VECTOR; ++s) {
    const int column = next + g * 32 + s * VECTOR;
    UNROLL for (int r = 0; r < 2 * SUMS; ++r) if (rows[r] >= 0 && column < columns) {
      @ONE@
    }
  }
"""
"""A tile's own operands, ahead of the sums."""

FUNCTIONS = """\
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
"""
"""Device functions."""
