"""Large matrix products on Hopper: the kernel that products and convolutions share.

A persistent block computes tiles of the result, `Tile.rows` x `Tile.columns`, one after the other.
Its last warp group keeps a ring of shared memory filled by the copy engine (TMA): per step 64
columns of A (rows of 128 bytes) and the same 64 of the weights, both with the 128-byte swizzle that
`wgmma` reads. `Tile.groups` warp groups multiply one tile, each some of its rows. With two `teams`
of them, the one finishes its tile (epilogue, stores) while the other multiplies. Two blocks of a
cluster compute neighbours: each loads half of what both read, see `Tile.share`.

Weights are packed as B transposed, [columns][depth], see `pack_weights`: within 32 columns they are
ordered such that the eight sums that a lane holds of a row and 32 columns belong to eight
*consecutive* columns of the result. So results go from registers to memory 16 bytes a lane, with
the epilogue's operands read the same way, and never through shared memory.

The structure (a producer warp, consumers that take turns) is that of CUTLASS's "warp specialized,
persistent, cooperative or ping-pong" kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.codegen.cuda_wgmma import wgmma_functions
from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import (
    ITEMSIZE,
    Operand,
    Problem,
    Size,
    Tactic,
    ceildiv,
    least,
    mul,
    tactic,
)
from enginesmith.kernels.cuda import CudaSource, Launch, TensorMap
from enginesmith.kernels.cuda_nest import factor, kernel_head
from enginesmith.kernels.tile import Epilogue, Matrix, Roles

TYPES = ("float16", "bfloat16")
"""What is multiplied."""

DEPTH = 64
"""Elements of K per step: 128 bytes."""

MULTIPROCESSORS = 132
"""Of an H100 (SXM) or H200; others have a few less, where tiles are then worked off unevenly."""

SHARED = 227 * 1024
"""Bytes of shared memory a block can have; several on one multiprocessor need 1 KiB more each."""

NOTHING, WEIGHTS, INPUT = range(3)
"""What the two blocks of a cluster share."""


@dataclass(frozen=True, slots=True)
class Tile:
    """rows (a multiple of 64 * groups), columns (a multiple of 32, at most 256): of the result.
    groups: warp groups that multiply one tile. teams: 1 or 2, tiles in work at once. blocks: per
    multiprocessor. share: NOTHING; WEIGHTS: the two tiles of a cluster lie below each other and
    share weights; INPUT: they lie side by side and share rows of A."""

    rows: int
    columns: int
    groups: int
    teams: int = 1
    blocks: int = 1
    share: int = NOTHING

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return 1 if self.share == NOTHING else 2

    @property
    def consumers(self) -> int:
        """Warp groups that multiply."""
        return self.groups * self.teams

    @property
    def threads(self) -> int:
        """The last warp group fills the ring; only one of its threads works, but registers are
        dealt out by warp groups."""
        return 128 * (self.consumers + 1)

    @property
    def sums(self) -> int:
        """Registers per thread that hold sums."""
        return self.rows * self.columns // (128 * self.groups)

    @property
    def first_registers(self) -> int:
        """Of each thread when a block begins."""
        return 65536 // (self.threads * self.blocks) // 8 * 8

    @property
    def filler(self) -> int:
        """Registers that a thread keeps which fills the ring."""
        return 40 if self.consumers == 2 else 32

    @property
    def registers(self) -> int:
        """Of a thread that multiplies: what the others give back is theirs."""
        left = self.first_registers * self.threads - self.filler * 128
        return min(240, left // (128 * self.consumers) // 8 * 8)

    @property
    def fits(self) -> bool:
        """True if there are registers for sums and some 64 other things. The compiler wants those
        of one instruction and 26 others in the first ones, too."""
        enough = self.sums + 64 <= self.registers
        return enough and self.columns // 2 + 26 <= self.first_registers and self.stages >= 3

    @property
    def stage(self) -> int:
        """Bytes of one stage of the ring."""
        return (self.rows + self.columns) * DEPTH * 2

    @property
    def stages(self) -> int:
        return min(8, ((SHARED + 1024) // self.blocks - 2048) // self.stage)

    @property
    def shared(self) -> int:
        """Bytes: the ring, and its barriers."""
        return self.stages * self.stage + 8 * (2 * self.stages + 2)

    def counts(self, row_tiles: Size, columns: int) -> tuple[Size, int]:
        """Tiles, or pairs of tiles of a cluster, in a column and in a row."""
        column_tiles = -(-columns // self.columns)
        if self.share == WEIGHTS:
            row_tiles = ceildiv(row_tiles, 2)
        return row_tiles, -(-column_tiles // (2 if self.share == INPUT else 1))

    @property
    def tactic(self) -> Tactic:
        return tactic("wgmma", m=self.rows, n=self.columns, groups=self.groups, teams=self.teams,
                      blocks=self.blocks, share=self.share)  # fmt: skip


def tile_of(tactic: Tactic) -> Tile:
    """The tile of one of the tactics made here."""
    names = ("m", "n", "groups", "teams", "blocks", "share")
    return Tile(*(tactic[name] for name in names))


@dataclass(frozen=True, slots=True)
class Box:
    """A tile's rows as a box of pixels of (n, h, w) images, and which place of x each step reads.

    size: pixels of the box along n, h, w (their product is at most the tile's rows); counts:
    boxes along each; plane: pixels in all. kernel, strides, dilations, pads: along h, w."""

    size: tuple[int, int, int]
    plane: tuple[Size, Size, Size]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]

    @property
    def counts(self) -> tuple[Size, Size, Size]:
        n, h, w = (ceildiv(p, s) for p, s in zip(self.plane, self.size, strict=True))
        return n, h, w


@dataclass(frozen=True, slots=True)
class Product:
    """y (rows, columns) = epilogue(a * weights), as both families describe it.

    a: its tensor map: (depth, rows), or (depth, w, h, n) with `box`. depth: elements of a row of a;
    box: None, or the pixels of a tile, with a product per place of the kernel.
    extras: by epilogue argument."""

    problem: Problem
    dtype: str
    epilogue: Expr
    extras: dict[int, Matrix]
    output: Matrix
    a: TensorMap
    rows: Size
    columns: int
    depth: int
    box: Box | None = None

    @property
    def steps(self) -> int:
        """Steps of the sum over K."""
        return -(-self.depth // DEPTH) * (prod(self.box.kernel) if self.box else 1)


def why_not_operand(x: Operand, inner: int, name: str) -> str | None:
    """Why the copy engine can't read operand x, whose axis `inner` is that of K."""
    if x.dtype not in TYPES:
        return f"{name} is {x.dtype}, not float16 or bfloat16"
    if x.strides[inner] != 1:
        return f"{name} isn't contiguous along the summed axis"
    unit = 16 // ITEMSIZE[x.dtype]
    outer = [s for k, s in enumerate(x.strides) if k != inner % len(x.strides) and x.shape[k] != 1]
    if any(s == 0 for s in outer):
        return f"{name} is broadcast"
    if factor(x.alignment) < 16 or any(factor(s) < unit for s in outer):
        return f"rows of {name} don't start at multiples of 16 bytes"
    return None


# -- weights ---------------------------------------------------------------------------------------


def pack_weights(weights: np.ndarray) -> np.ndarray:
    """(columns, places, depth) to [columns, padded to 32][places][depth, padded to 64], zeros where
    padded, the columns of each 32 in the order of the sums in registers: lane q of four holds the
    columns 8 * q to 8 * q + 7 as two of each of four groups of eight."""
    columns, places, depth = weights.shape
    padded = np.zeros((-(-columns // 32) * 32, places, -(-depth // DEPTH) * DEPTH), weights.dtype)
    padded[:columns, :, :depth] = weights
    # Column 8 * q + 2 * j + e of 32 is in row 8 * j + 2 * q + e.
    ordered = padded.reshape(-1, 4, 4, 2, *padded.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(ordered.reshape(padded.shape))


def _weights_map(product: Product, tile: Tile) -> TensorMap:
    depth = product.steps * DEPTH
    columns = -(-product.columns // 32) * 32
    return TensorMap(1, product.dtype, (depth, columns), (depth,),
                     (DEPTH, tile.columns // (2 if tile.share == WEIGHTS else 1)))  # fmt: skip


# -- choice ----------------------------------------------------------------------------------------


def candidates(
    row_tiles: dict[int, int], columns: int, steps: int, work: int, moved: float, boxes: bool
) -> tuple[Tactic, ...]:
    """The tactics that an estimate expects to be fastest: those of clusters and those of single
    blocks, whose difference it can't foresee. row_tiles: how many tiles of so many rows there are
    in a column; work: operations of the epilogue per element; moved: bytes of y and extras per
    element; boxes: rows are boxes of pixels."""
    times: dict[Tile, float] = {}
    for tile in forms():
        high, wide = tile.counts(row_tiles[tile.rows], columns)
        assert isinstance(high, int)
        slots = MULTIPROCESSORS // tile.cluster
        if high * wide <= slots * max(tile.teams - 1, tile.blocks - 1):
            continue  # a part of the blocks or teams had no work
        if boxes and tile.share == INPUT:
            continue  # half a box isn't always a box
        times[tile] = _clocks(tile, high * wide * tile.cluster, steps, work, moved)
    chosen: list[Tile] = []
    for cluster in (1, 2):
        kinds: dict[tuple[int, int, int], Tile] = {}
        for tile in sorted(times, key=lambda t: times[t]):
            if tile.cluster == cluster:
                kinds.setdefault((tile.rows, tile.columns, tile.teams), tile)
        chosen += list(kinds.values())[:4]
    chosen.sort(key=lambda t: times[t])
    return tuple(t.tactic for t in chosen if times[t] <= 2 * times[chosen[0]])


@cache
def forms() -> tuple[Tile, ...]:
    """All tiles that fit the machine."""
    kinds = ((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (3, 1, 1), (1, 1, 3))
    found = (
        Tile(64 * sums * groups, columns, groups, teams, blocks, share)
        for groups, teams, blocks in kinds
        for sums in (1, 2, 3)
        for columns in (64, 96, 128, 192, 256)
        for share in (NOTHING, WEIGHTS, INPUT)
        if 64 * sums * groups <= 256
    )
    return tuple(t for t in found if t.fits)


def _clocks(tile: Tile, tiles: int, steps: int, work: int, moved: float) -> float:
    """Clocks that a multiprocessor takes, roughly: the slowest of what a step asks of tensor cores
    (2048 multiply-adds a clock), shared memory (128 bytes) and the L2 cache (some 36 bytes), and
    the ends of tiles that nothing hides."""
    rows, columns = tile.rows, tile.columns
    read = 4 * (rows // 64) * (64 + columns) * 32
    loaded = rows / (1 + (tile.share == INPUT)) + columns / (1 + (tile.share == WEIGHTS))
    step = max(
        rows * columns * DEPTH / 2048,
        (read + tile.stage) / 128,
        2 * DEPTH * loaded / 36,
    )
    end = rows * columns * max((4 + 2 * work) / 128, moved / 13) + 600
    waves = -(-tiles // (MULTIPROCESSORS * tile.blocks))
    main = waves * tile.blocks * steps * step
    start = 800 * tile.cluster
    if tile.teams * tile.blocks > 1:  # ends overlap with other tiles' steps
        return max(main, waves * tile.blocks * end) + min(steps * step, end) + start
    return main + waves * end + start


# -- text ------------------------------------------------------------------------------------------

_KERNEL = """\
  char *const ring = shared_memory();
  Barrier *const full = (Barrier *)(ring + STAGES * STAGE), *const empty = full + STAGES;
  Barrier *const turn = empty + STAGES;
  const int warp = lane_get((int)threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 4 * GROUPS * CLUSTER);
    }
    for (int t = 0; t < 2; ++t) barrier_init(turn + t, 4 * GROUPS);
    barrier_fence();
  }
  if (SHARE) cluster_sync(); else __syncthreads();
  const int rank = SHARE ? cluster_rank() : 0;
  const int first_tile = blockIdx.x / CLUSTER, tile_step = gridDim.x / CLUSTER;
  grid_launch();
@SIZES@
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
          load_weights(ring + early * STAGE, &m1, full + early, early, column, rank);
        }
      }
      grid_wait();
      for (int tile = first_tile; tile < tiles; tile += tile_step) {
        const Place at = place(tile, row_tiles, column_tiles, together, rank);
@ORIGIN@
        for (int k = 0; k < steps; ++k) {
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
    return;
  }
  registers_up<REGISTERS>();
  const int team = warp / (4 * GROUPS), part = warp / 4 % GROUPS;
  const int own = part * (64 * SUMS) + warp % 4 * 16 + lane / 4;  /* this lane's first row */
  const uint64_t a0 = wgmma_tile(ring + part * SUMS * 8192), b0 = wgmma_tile(ring + ROWS * 128);
  grid_wait();
@POINTERS@
  int turns = team ^ 1;
  uint32_t step = team * steps;  /* of all steps of the block, those of the teams in turn */
  for (int tile = first_tile + team * tile_step; tile < tiles; tile += TEAMS * tile_step) {
    float sum[SUMS][COLUMNS / 2];
    int slot = step % STAGES, phase = step / STAGES & 1, last = 0;
    if (TEAMS == 2) { barrier_wait(turn + team, turns); turns ^= 1; }
    for (int k = 0; k < steps; ++k) {
      barrier_wait(full + slot, phase);
      const uint64_t a = a0 + slot * (STAGE >> 4), b = b0 + slot * (STAGE >> 4);
      wgmma_fence();
      UNROLL for (int i = 0; i < 4; ++i)
        UNROLL for (int m = 0; m < SUMS; ++m)
          wgmma(sum[m], a + m * 512 + i * 2, b + i * 2, k > 0 || i > 0, Tag<T>());
      wgmma_commit();
      wgmma_wait<1>();  /* what the step before read is free */
      if (k > 0 && lane < CLUSTER) release(empty + last, lane);
      last = slot;
      if (++slot == STAGES) { slot = 0; phase ^= 1; }
    }
    if (TEAMS == 2 && lane == 0) barrier_arrive(turn + (team ^ 1));
    const Place at = place(tile, row_tiles, column_tiles, together, rank);
    const int first = at.column * COLUMNS + lane % 4 * 8;  /* column */
    int rows[2 * SUMS];  /* of the result; -1: outside */
    UNROLL for (int r = 0; r < 2 * SUMS; ++r) {
      const int local = own + r / 2 * 64 + r % 2 * 8;
      @ROW@
    }
    Fetched fetched[AHEAD][8 / VECTOR][2 * SUMS];
    int next = first;  /* loads that don't need the sums go ahead of them */
    @FETCH@
    wgmma_wait<0>();
    UNROLL for (int m = 0; m < SUMS; ++m) wgmma_hold(sum[m]);
    if (lane < CLUSTER) release(empty + last, lane);
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
  if (SHARE) cluster_sync();
}
"""

_FETCH = """\
UNROLL for (int g = 0; g < AHEAD; ++g)
  UNROLL for (int s = 0; s < 8 / VECTOR; ++s) {
    const int column = next + g * 32 + s * VECTOR;
    UNROLL for (int r = 0; r < 2 * SUMS; ++r) if (rows[r] >= 0 && column < columns) {
      @ONE@
    }
  }
"""

_FUNCTIONS = """\
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


def source(product: Product, tile: Tile) -> CudaSource:
    """The kernel and its launch."""
    values = Roles()
    epilogue = Epilogue(product.epilogue, product.extras, product.output, product.columns, values)
    sums = tile.rows // (64 * tile.groups)
    groups = tile.columns // 32
    free = tile.registers - tile.sums - 48  # a piece of a moving operand takes 4 registers
    ahead = next(n for n in (4, 3, 2, 1) if groups % n == 0 and (8 * sums * n <= free or n == 1))
    box = product.box
    filled = prod(box.size) if box else tile.rows
    constants = {
        "ROWS": tile.rows, "COLUMNS": tile.columns, "GROUPS": tile.groups, "TEAMS": tile.teams,
        "CLUSTER": tile.cluster, "SHARE": tile.share, "WEIGHTS": WEIGHTS, "INPUT": INPUT,
        "STAGES": tile.stages, "STAGE": tile.stage, "SUMS": sums,
        "AHEAD": ahead, "VECTOR": epilogue.vector, "FILLER": tile.filler,
        "REGISTERS": tile.registers,
    }  # fmt: skip
    row_tiles: Size = mul(*box.counts) if box else ceildiv(product.rows, tile.rows)
    row_tiles, column_tiles = tile.counts(row_tiles, product.columns)
    tiles = mul(row_tiles, column_tiles)
    sizes = {
        "tiles": tiles, "row_tiles": row_tiles, "column_tiles": column_tiles,
        "together": 1 if column_tiles <= 16 else 8, "steps": product.steps,
        "columns": product.columns, "bytes": (filled + tile.columns) * DEPTH * 2,
    }  # fmt: skip
    names = "".join(f"  const int {k} = {values.value(v)};\n" for k, v in sizes.items())
    parts = _box_parts(box, values) if box else _row_parts(product, values)
    fetch = epilogue.fetch("fetched[g][s][r]", "rows[r]", "column")
    parts |= {
        "SIZES": names + parts["SIZES"],
        "POINTERS": epilogue.begin("0"),
        "FETCH": _FETCH.replace("@ONE@", fetch) if epilogue.moving else "",
        "COLUMNS": epilogue.columns("imin(column, columns - VECTOR)"),
        "STORE": epilogue.store("x", "fetched[g][s][r]", "rows[r]", "column"),
    }
    body = _KERNEL
    for name, text in parts.items():
        body = body.replace(f"@{name}@", text)
    head = kernel_head(product.problem, values, tile.threads, blocks=tile.blocks, maps=2)
    text = (
        f"typedef {CUDA_TYPES[product.dtype]} T;\n"
        f"enum {{ {', '.join(f'{k} = {v}' for k, v in constants.items())} }};\n"
        + wgmma_functions(product.dtype, [tile.columns])
        + _FUNCTIONS + epilogue.functions + head + body
    )  # fmt: skip
    slots = MULTIPROCESSORS * tile.blocks // tile.cluster
    maps = (product.a, _weights_map(product, tile))
    return CudaSource(
        text,
        (Launch((mul(tile.cluster, least(tiles, slots)), 1, 1), tile.threads, values.launch,
                shared=tile.shared, cluster=(tile.cluster, 1, 1), maps=maps),),
    )  # fmt: skip


def _row_parts(product: Product, values: Roles) -> dict[str, str]:
    """A tile's rows are consecutive rows of a."""
    return {
        "SIZES": f"  const int all_rows = {values.value(product.rows)};\n",
        "ORIGIN": "",
        "LOAD": "load_rows(a, &m0, full + slot, k, at.row * ROWS, ROWS, SHARE == INPUT, rank);",
        "ROW": "rows[r] = at.row * ROWS + local;\n      if (rows[r] >= all_rows) rows[r] = -1;",
    }


def _box_parts(box: Box, values: Roles) -> dict[str, str]:
    """A tile's rows are a box of pixels; steps go over the channels of each place of the kernel."""
    sizes = {
        "box_h": box.size[1], "box_w": box.size[2], "box_n": box.size[0],
        "all_n": box.plane[0], "all_h": box.plane[1], "all_w": box.plane[2],
        "boxes_h": box.counts[1], "boxes_w": box.counts[2], "kernel_w": box.kernel[1],
        "stride_h": box.strides[0], "stride_w": box.strides[1],
        "dilation_h": box.dilations[0], "dilation_w": box.dilations[1],
        "pad_h": box.pads[0], "pad_w": box.pads[1],
    }  # fmt: skip
    origin = """\
const int w0 = at.row % boxes_w * box_w;
const int h0 = at.row / boxes_w % boxes_h * box_h, n0 = at.row / boxes_w / boxes_h * box_n;
"""
    return {
        "SIZES": "".join(f"  const int {k} = {values.value(v)};\n" for k, v in sizes.items())
        + f"  const int pieces = steps / {values.value(prod(box.kernel))};\n",
        "ORIGIN": origin + "int piece = 0, kx = 0, ky = 0;",
        "LOAD": """\
tma_load4(a, &m0, full + slot, piece * 64, w0 * stride_w - pad_w + kx * dilation_w,
                  h0 * stride_h - pad_h + ky * dilation_h, n0);
        if (++piece == pieces) {
          piece = 0;
          if (++kx == kernel_w) { kx = 0; ++ky; }
        }""",
        "ROW": origin
        + """\
const int w = local % box_w, h = local / box_w % box_h, n = local / box_w / box_h;
const bool inside = n < box_n && n0 + n < all_n && h0 + h < all_h && w0 + w < all_w;
rows[r] = inside ? ((n0 + n) * all_h + h0 + h) * all_w + w0 + w : -1;""",
    }
