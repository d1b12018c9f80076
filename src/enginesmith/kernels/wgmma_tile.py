"""Large matrix products on Hopper: the kernel that products and convolutions share.

A persistent block computes tiles of the result, `Tile.rows` x `Tile.columns`, one after the other.
Its last warp group keeps a ring of shared memory filled by the copy engine (TMA): per step 64
columns of A (rows of 128 bytes) and the same 64 of the weights, both with the 128-byte swizzle that
`wgmma` reads. `Tile.groups` warp groups multiply one tile, each some of its rows. With two `teams`
of them, the one finishes its tile (epilogue, stores) while the other multiplies. Two blocks of a
cluster compute neighbours: each loads half of what both read, see `Tile.share`.

Small products have fewer tiles than there are multiprocessors, and each of these reads no more
than some 40 bytes a clock from the L2 cache. So K can be cut: the `Tile.split` blocks of a cluster
sum up parts of the steps of one tile, each gets the partial sums of some rows from the others,
written straight into its shared memory, and finishes them.

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
from enginesmith.kernels import wgmma_text
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
from enginesmith.kernels.tile import Epilogue, Matrix, Roles, finish_shared

TYPES = ("float16", "bfloat16")
"""What is multiplied."""

DEPTH = 64
"""Elements of K per step: 128 bytes."""

MULTIPROCESSORS = 132
"""Of an H100 (SXM) or H200; others have a few less, where tiles are then worked off unevenly."""

SHARED = 227 * 1024
"""Bytes of shared memory a block can have; several on one multiprocessor need 1 KiB more each."""

SPLIT_LIMIT = 1.5
"""Times the best estimate up to which splitting K is tried: measured, it was far from winning where
the estimate was."""

NOTHING, WEIGHTS, INPUT = range(3)
"""What the two blocks of a cluster share."""


@dataclass(frozen=True, slots=True)
class Tile:
    """rows (a multiple of 64 * groups), columns (a multiple of 32, at most 256): of the result.
    groups: warp groups that multiply one tile. teams: 1 or 2, tiles in work at once. blocks: per
    multiprocessor. share: NOTHING; WEIGHTS: the two tiles of a cluster lie below each other and
    share weights; INPUT: they lie side by side and share rows of A. split: blocks that sum up a
    part of K each, of one tile, and share nothing else."""

    rows: int
    columns: int
    groups: int
    teams: int = 1
    blocks: int = 1
    share: int = NOTHING
    split: int = 1

    @property
    def sharers(self) -> int:
        """Blocks that read the same."""
        return 1 if self.share == NOTHING else 2

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return max(self.split, self.sharers)

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
    def pitch(self) -> int:
        """Floats between rows of partial sums, which the stores of a warp spread over the banks."""
        return self.columns + 4

    @property
    def exchange(self) -> int:
        """Bytes for the partial sums of the rows that a block finishes."""
        return 4 * self.rows * self.pitch if self.split > 1 else 0

    @property
    def stages(self) -> int:
        return min(8, ((SHARED + 1024) // self.blocks - 2048 - self.exchange) // self.stage)

    @property
    def shared(self) -> int:
        """Bytes: the ring, its barriers, and partial sums."""
        return self.stages * self.stage + 8 * (2 * self.stages + 2) + self.exchange

    def counts(self, row_tiles: Size, columns: int) -> tuple[Size, int]:
        """Tiles, or pairs of tiles of a cluster, in a column and in a row."""
        column_tiles = -(-columns // self.columns)
        if self.share == WEIGHTS:
            row_tiles = ceildiv(row_tiles, 2)
        return row_tiles, -(-column_tiles // (2 if self.share == INPUT else 1))

    @property
    def tactic(self) -> Tactic:
        return tactic("wgmma", m=self.rows, n=self.columns, groups=self.groups, teams=self.teams,
                      blocks=self.blocks, share=self.share, split=self.split)  # fmt: skip


def tile_of(tactic: Tactic) -> Tile:
    """The tile of one of the tactics made here."""
    names = ("m", "n", "groups", "teams", "blocks", "share", "split")
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
    """The tactics that an estimate expects to be fastest: those of single blocks, of clusters that
    share and of clusters that split K, whose differences it can't foresee. row_tiles: how many
    tiles of so many rows there are in a column; work: operations of the epilogue per element;
    moved: bytes of y and extras per element; boxes: rows are boxes of pixels."""
    times: dict[Tile, float] = {}
    for tile in forms():
        high, wide = tile.counts(row_tiles[tile.rows], columns)
        assert isinstance(high, int)
        blocks = high * wide * tile.cluster
        if tile.split > 1:
            if blocks > 2 * MULTIPROCESSORS or steps < 2 * tile.split:
                continue  # there are enough tiles, or too few steps
        elif blocks <= MULTIPROCESSORS * max(tile.teams - 1, tile.blocks - 1):
            continue  # a part of the blocks or teams had no work
        if boxes and tile.share == INPUT:
            continue  # half a box isn't always a box
        times[tile] = _clocks(tile, blocks, steps, work, moved)
    chosen: list[Tile] = []
    for sharers, splits in ((1, False), (2, False), (1, True)):
        kinds: dict[tuple[int, ...], Tile] = {}
        for tile in sorted(times, key=lambda t: times[t]):
            if tile.sharers == sharers and (tile.split > 1) == splits:
                kinds.setdefault((tile.rows, tile.columns, tile.teams), tile)
        chosen += list(kinds.values())[: 6 if splits else 4]
    chosen.sort(key=lambda t: times[t])
    limits = {tile: 2 if tile.split == 1 else SPLIT_LIMIT for tile in chosen}
    return tuple(t.tactic for t in chosen if times[t] <= limits[t] * times[chosen[0]])


@cache
def forms() -> tuple[Tile, ...]:
    """All tiles that fit the machine."""
    kinds = ((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (3, 1, 1), (1, 1, 3))
    whole = (
        Tile(64 * sums * groups, columns, groups, teams, blocks, share)
        for groups, teams, blocks in kinds
        for sums in (1, 2, 3)
        for columns in (64, 96, 128, 192, 256)
        for share in (NOTHING, WEIGHTS, INPUT)
        if 64 * sums * groups <= 256
    )
    parts = (
        Tile(rows, columns, 1, 1, 1 if rows * columns > 8192 else 2, NOTHING, split)
        for rows in (64, 128)
        for columns in (32, 64, 96, 128)
        for split in (2, 4, 8)
    )
    return tuple(t for t in (*whole, *parts) if t.fits)


def _clocks(tile: Tile, blocks: int, steps: int, work: int, moved: float) -> float:
    """Clocks that a multiprocessor takes, roughly: the slowest of what a step asks of tensor cores
    (2048 multiply-adds a clock), shared memory (128 bytes) and the L2 cache (some 36 bytes), and
    the ends of tiles that nothing hides. blocks: a tile each, or a part of one."""
    rows, columns = tile.rows, tile.columns
    read = 4 * (rows // 64) * (64 + columns) * 32
    loaded = rows / (1 + (tile.share == INPUT)) + columns / (1 + (tile.share == WEIGHTS))
    step = max(
        rows * columns * DEPTH / 2048,
        (read + tile.stage) / 128,
        2 * DEPTH * loaded / 36,
    )
    results = rows * columns // tile.split
    end = results * max((4 + 2 * work) / 128, moved / 13) + 600
    if tile.split > 1:  # the exchange
        end += rows * columns / 8 + 2500
    waves = -(-blocks // MULTIPROCESSORS)
    steps = -(-steps // tile.split)
    main = waves * steps * step
    start = 800 * tile.sharers
    if tile.teams * min(tile.blocks, waves) > 1:  # ends overlap with other tiles' steps
        return max(main, waves * end) + min(steps * step, end) + start
    return main + waves * end + start


# -- text ------------------------------------------------------------------------------------------


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
        "SHARERS": tile.sharers, "SPLIT": tile.split, "PART": tile.rows // tile.split,
        "PITCH": tile.pitch, "STAGES": tile.stages, "STAGE": tile.stage, "SUMS": sums,
        "AHEAD": ahead, "VECTOR": epilogue.vector, "FILLER": tile.filler,
        "REGISTERS": tile.registers,
    }  # fmt: skip
    row_tiles: Size = mul(*box.counts) if box else ceildiv(product.rows, tile.rows)
    row_tiles, column_tiles = tile.counts(row_tiles, product.columns)
    tiles = mul(row_tiles, column_tiles)
    sizes = {
        "tiles": tiles, "row_tiles": row_tiles, "column_tiles": column_tiles,
        "together": 1 if column_tiles <= 16 else 8, "all_steps": product.steps,
        "columns": product.columns, "bytes": (filled + tile.columns) * DEPTH * 2,
    }  # fmt: skip
    names = "".join(f"  const int {k} = {values.value(v)};\n" for k, v in sizes.items())
    parts = _box_parts(box, values) if box else _row_parts(product, values)
    parts["SIZES"] = names + parts["SIZES"]
    parts |= _end_of_part(epilogue, tile) if tile.split > 1 else _end_of_tile(epilogue)
    body = wgmma_text.KERNEL.replace(
        "@CONSUME@", wgmma_text.CONSUME_PART if tile.split > 1 else wgmma_text.CONSUME
    )
    for name, text in ({"MULTIPLY": wgmma_text.MULTIPLY} | parts).items():
        body = body.replace(f"@{name}@", text)
    head = kernel_head(product.problem, values, tile.threads, blocks=tile.blocks, maps=2)
    text = (
        f"typedef {CUDA_TYPES[product.dtype]} T;\n"
        f"enum {{ {', '.join(f'{k} = {v}' for k, v in constants.items())} }};\n"
        + wgmma_functions(product.dtype, [tile.columns])
        + wgmma_text.FUNCTIONS + epilogue.functions + head + body
    )  # fmt: skip
    # Blocks stay for several tiles, unless they are parts of one.
    slots = MULTIPROCESSORS * tile.blocks // tile.cluster
    clusters = tiles if tile.split > 1 else least(tiles, slots)
    maps = (product.a, _weights_map(product, tile))
    return CudaSource(
        text,
        (Launch((mul(tile.cluster, clusters), 1, 1), tile.threads, values.launch,
                shared=tile.shared, cluster=(tile.cluster, 1, 1), maps=maps),),
    )  # fmt: skip


def _end_of_tile(epilogue: Epilogue) -> dict[str, str]:
    """Results go from registers to memory."""
    fetch = epilogue.fetch("fetched[g][s][r]", "rows[r]", "column")
    return {
        "POINTERS": epilogue.begin("0"),
        "FETCH": wgmma_text.FETCH.replace("@ONE@", fetch) if epilogue.moving else "",
        "COLUMNS": epilogue.columns("imin(column, columns - VECTOR)"),
        "STORE": epilogue.store("x", "fetched[g][s][r]", "rows[r]", "column"),
    }


def _end_of_part(epilogue: Epilogue, tile: Tile) -> dict[str, str]:
    """Each block of a cluster finishes some rows, of sums that it gets from all."""
    part = tile.rows // tile.split
    finish = finish_shared(
        epilogue, "all", part, tile.columns, 128 * tile.groups, tile.pitch,
        tile.split, part * tile.pitch, "row_of",
    )  # fmt: skip
    return {
        "POINTERS": epilogue.begin("0"),
        "BEGIN": finish.begin("rank * PART", "at.column * COLUMNS", "ROWS", "columns"),
        "FETCH": finish.fetch(),
        "STORE": finish.store(),
    }


def _row_parts(product: Product, values: Roles) -> dict[str, str]:
    """A tile's rows are consecutive rows of a."""
    return {
        "SIZES": f"  const int all_rows = {values.value(product.rows)};\n",
        "ORIGIN": "",
        "LOAD": "load_rows(a, &m0, full + slot, k, at.row * ROWS, ROWS, SHARE == INPUT, rank);",
        "ROW": """\
auto row_of = [&](int local) {
  const int row = at.row * ROWS + local;
  return row < all_rows ? row : -1;
};""",
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
        + f"  const int pieces = all_steps / {values.value(prod(box.kernel))};\n",
        "ORIGIN": origin
        + """\
int piece = first_step % pieces, kx = first_step / pieces % kernel_w;
int ky = first_step / pieces / kernel_w;""",
        "LOAD": """\
tma_load4(a, &m0, full + slot, piece * 64, w0 * stride_w - pad_w + kx * dilation_w,
                  h0 * stride_h - pad_h + ky * dilation_h, n0);
        if (++piece == pieces) {
          piece = 0;
          if (++kx == kernel_w) { kx = 0; ++ky; }
        }""",
        "ROW": origin
        + """\
auto row_of = [&](int local) {
  const int w = local % box_w, h = local / box_w % box_h, n = local / box_w / box_h;
  const bool inside = n < box_n && n0 + n < all_n && h0 + h < all_h && w0 + w < all_w;
  return inside ? ((n0 + n) * all_h + h0 + h) * all_w + w0 + w : -1;
};""",
    }
