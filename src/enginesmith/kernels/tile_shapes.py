"""Which tiles are worth timing for a matrix product by `mma.sync`.

The order comes from a simple estimate (`cycles`): a block's steps take the time of its products or
of its copies, whichever is longer, blocks share multiprocessors evenly, and what happens once -
the first copies' latency, exchanging partial sums, the epilogue - has a price each.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from enginesmith.kernels.base import ITEMSIZE
from enginesmith.kernels.tile_mma import Shape
from enginesmith.plan.target import Target

MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
"""Of the largest common GPU of each compute capability."""

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory a block may use."""

TILES = (
    (256, 128, (4, 2, 1)), (128, 256, (2, 4, 1)), (128, 128, (2, 4, 1)), (128, 128, (2, 2, 1)),
    (256, 64, (4, 2, 1)), (64, 256, (2, 4, 1)), (128, 64, (2, 2, 1)), (64, 128, (1, 4, 1)),
    (64, 64, (2, 2, 1)), (64, 64, (2, 2, 2)), (128, 32, (4, 1, 1)), (32, 128, (1, 4, 1)),
    (64, 32, (2, 1, 2)), (64, 32, (4, 1, 1)), (64, 32, (2, 1, 4)), (32, 64, (1, 2, 2)),
    (32, 64, (2, 2, 1)), (32, 32, (1, 1, 4)), (16, 128, (1, 4, 1)), (16, 64, (1, 2, 2)),
    (16, 32, (1, 1, 4)), (128, 16, (4, 1, 1)), (64, 16, (2, 1, 2)),
)  # fmt: skip
"""Rows and columns of a tile, and warps along rows, columns and k."""

SPLITS = (1, 2, 4, 8)

CANDIDATES = 14

PRODUCT = {"float16": 7.0, "bfloat16": 7.0, "float32": 30.0, "tf32": 9.0}
"""Cycles in which a quarter of a multiprocessor multiplies 16 rows, 8 columns and 32 bytes of k;
"tf32": of float32 as one product."""

COPIED = (30.0, 60.0)
"""Bytes a multiprocessor copies from the second-level cache per cycle, about: when all do, and at
most."""


def shapes(
    m: int, n: int, k: int, batch: int, dtype: str, vector: int, target: Target, tf32: bool = False
) -> list[Shape]:
    """Candidates for m x n results of depth k, the fastest by the estimate first. vector: columns a
    thread finishes at once; tf32: see `tile_mma.Product`."""
    each = product_cycles(dtype, tf32)
    short = k * ITEMSIZE[dtype] <= 64
    found: list[tuple[float, Shape]] = []
    for (rows, columns, warps), split in product(TILES, SPLITS):
        shape = _staged(
            Shape(rows, columns, warps, 64 if short else 128, 2, split), k, dtype, target
        )
        if shape is not None and fits(shape, dtype, vector):
            cost = cycles(shape, m, n, k, batch, dtype, target, each)
            found.append((cost, shape))
    found.sort(key=lambda item: item[0])
    best = [shape for _, shape in found[:CANDIDATES]]
    finer = (_staged(replace(s, depth=64), k, dtype, target) for s in best[:2])
    return list(dict.fromkeys([*best[: CANDIDATES - 2], *(s for s in finer if s is not None)]))


def product_cycles(dtype: str, tf32: bool) -> float:
    """The entry of `PRODUCT`."""
    return PRODUCT["tf32" if tf32 else dtype]


def fits(shape: Shape, dtype: str, vector: int) -> bool:
    """The registers suffice, and all threads have columns to finish."""
    rows, columns = shape.warp
    most = 32 * 64 if dtype == "float32" else 64 * 64
    return rows * columns <= most and shape.columns // vector <= shape.threads


def _staged(base: Shape, k: int, dtype: str, target: Target) -> Shape | None:
    """The shape with as many stages as are useful and fit; None if it makes no sense."""
    k_tiles = -(-k // (base.depth // ITEMSIZE[dtype]))
    if base.split > 1 and k_tiles < 2 * base.split:
        return None
    if base.depth // 32 < base.warps[2]:
        return None
    shape = replace(base, cluster=base.split > 1 and target.arch >= 90)
    # Large tiles have enough work in flight; small ones share a multiprocessor with others, also
    # with those of the next kernel.
    room = SHARED[target.arch] * 1024 // (1 if base.rows * base.columns >= 128 * 128 else 2)
    for stages in (8, 6, 5, 4, 3, 2):
        shape = replace(shape, stages=stages)
        useful = stages == 2 or stages <= -(-k_tiles // base.split) + 1
        if useful and shape.shared <= room:
            return shape
    return None


def cycles(
    s: Shape, m: int, n: int, k: int, batch: int, dtype: str, target: Target, each: float
) -> float:
    """The estimated time of the kernel. each: see `product_cycles`."""
    tiles = -(-m // s.rows) * -(-n // s.columns) * batch
    k_tiles = -(-k // (s.depth // ITEMSIZE[dtype]))
    steps = -(-k_tiles // s.split)
    units = MULTIPROCESSORS[target.arch]
    blocks = -(-tiles * s.split // units)
    rows, columns = s.warp
    warps = s.threads // 32
    # A warp's products of a k-tile, and what it waits for the rest of it.
    products = rows // 16 * columns / 8 * (s.depth // 32 // s.warps[2]) * each
    multiply = products * warps / 4
    alone = products * max(1, warps / 4) + 100
    together, most = COPIED
    busy = min(units, tiles * s.split)
    copy = s.copied / min(most, together * units / max(1, busy))
    # What a block moves after its last product, and how long the slowest waits for it.
    results = s.rows * s.columns
    moved, wait = results / 8, 1500 + results / s.threads * 4
    if not s.in_registers:
        wait += 100 + results / s.threads * s.split * s.warps[2]
    if s.cluster:
        moved, wait = moved + results / 4, wait + 1000
    elif s.split > 1:
        moved, wait = moved + results / 4, wait + 2000 + results * s.split / 16
    return wait + max(blocks * (steps * max(multiply, copy) + moved), steps * alone)
