"""Convolution with larger kernels on tensor cores by `mma.sync`, from patches of x in shared
memory: see kernels/tile_patch.py and kernels/tile_mma.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import prod

import numpy as np

from enginesmith.kernels.base import ITEMSIZE, Size, Tactic, mul
from enginesmith.kernels.conv import mma
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.cuda_nest import factor
from enginesmith.kernels.tile import Epilogue, Roles
from enginesmith.kernels.tile_loads import Packed
from enginesmith.kernels.tile_mma import Product, Shape, shape_of
from enginesmith.kernels.tile_mma import pack as pack_tiles
from enginesmith.kernels.tile_patch import Box, Patch
from enginesmith.kernels.tile_shapes import SHARED, SPLITS, TILES, cycles, fits, product_cycles
from enginesmith.plan.target import Target

CANDIDATES = 6

WIDEST, PIXELS = 128, 1 << 13
"""See `pays`: bytes of a pixel of x at most, pixels of the result at least."""

LEAST = 64
"""Bytes of channels in a patch: a k-tile of `tile_mma` at its smallest."""


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None where taps overlap and channels come in whole k-tiles."""
    if reason := mma.why_not(problem, target):
        return reason
    x = problem.x
    if prod(problem.kernel) < 4 or problem.groups != 1 or problem.prologue is not None:
        return "one tap, groups or a prologue"
    if max(problem.strides) > 2 or problem.strides[0] >= 2 * problem.kernel[0]:
        return "taps that hardly overlap"
    item = ITEMSIZE[x.dtype]
    if problem.in_channels * item % LEAST:
        return f"channels that don't fill {LEAST} bytes"
    unit = 16 // item
    if x.strides[1] != 1 or factor(x.alignment) < 16:
        return "channels that aren't consecutive"
    if any(factor(x.strides[k]) < unit for k in (0, 2, 3) if x.shape[k] != 1):
        return "pixels that don't begin at multiples of 16 bytes"
    return None


def pays(problem: ConvProblem) -> bool:
    """Whether copies are what bounds the other algorithms: few channels in, few out, many pixels.
    Elsewhere patches lose to the tiles of `mma` and `wgmma` (docs/performance.md)."""
    pixels = prod(_typical(problem))
    channels = problem.in_channels * ITEMSIZE[problem.x.dtype]
    return channels <= WIDEST and problem.out_channels <= 64 and pixels >= PIXELS


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """Shapes of tiles with their boxes, the most promising first."""
    (_, n, k), _ = mma._sizes(problem)
    columns, depth = problem.typical(n), problem.typical(k)
    plane = _typical(problem)
    dtype = problem.x.dtype
    vector = factor(n, 8)
    each = product_cycles(dtype, problem.tf32)
    found: list[tuple[float, Tactic]] = []
    for rows in sorted({t[0] for t in TILES}):
        box = _box(problem, rows, plane)
        blocks = prod(-(-p // s) for p, s in zip(plane, box.size, strict=True))
        for (_, width, warps), split in (
            (t, split) for t in TILES if t[0] == rows for split in SPLITS
        ):
            for bytes_ in (128, 64):
                base = Shape(rows, width, warps, bytes_, 2, split)
                shape = _staged(problem, base, box, depth, target)
                if shape is None or not fits(shape, dtype, vector):
                    continue
                cost = cycles(shape, blocks * rows, columns, depth, 1, dtype, target, each)
                found.append((cost, _tactic(shape, box)))
                break
    found.sort(key=lambda item: item[0])
    return tuple(tactic for _, tactic in found[:CANDIDATES])


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> CudaSource:
    """One kernel."""
    box = _box_of(problem, tactic)
    shape, values = _with_patch(problem, shape_of(tactic), box), Roles()
    (_, columns, depth), _ = mma._sizes(problem)
    n, _, oh, ow = problem.y.shape
    last = len(problem.operands) - 1
    extras = {i - 1: mma._matrix(problem, i, problem.out_channels) for i in range(2, last)}
    output = mma._matrix(problem, last, problem.out_channels)
    epilogue = Epilogue(problem.epilogue, extras, output, columns, values)
    (_, _, h, w), (xn, _, xh, xw) = problem.x.shape, problem.x.strides
    a = Patch(
        shape.tile("a", problem.x.dtype), box, (n, h, w), (n, oh, ow), problem.pads[:2],
        (xn, xh, xw), shape.warp[0], shape.stages * shape.stage, shape.patches,
    )  # fmt: skip
    b = Packed(shape.tile("b", problem.x.dtype), 1)
    sizes: tuple[Size, Size, Size] = (mul(a.tiles, shape.rows), columns, depth)
    return Product(problem, shape, a, b, epilogue, values, sizes, 1, problem.tf32).source()


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The weights in tiles; k counts (slab of channels, tap, channel)."""
    if 1 not in constants:
        return {}
    w, shape = constants[1], shape_of(tactic)
    oc, ic, kh, kw = w.shape
    each = shape.depth // w.dtype.itemsize
    ordered = w.reshape(oc, ic // each, each, kh * kw).swapaxes(2, 3)
    return {1: pack_tiles(np.ascontiguousarray(ordered).reshape(1, oc, -1), shape)}


def _tactic(shape: Shape, box: Box) -> Tactic:
    images, h, w = box.size
    params = (*shape.tactic.params, ("images", images), ("h", h), ("w", w))
    return Tactic("patch", params)


def _box_of(problem: ConvProblem, tactic: Tactic) -> Box:
    size = (tactic["images"], tactic["h"], tactic["w"])
    return Box(size, problem.kernel, problem.strides, problem.dilations)


def _typical(problem: ConvProblem) -> tuple[int, int, int]:
    """Pixels (n, h, w) of the result."""
    n, _, h, w = (problem.typical(s) for s in problem.y.shape)
    return n, h, w


def _box(problem: ConvProblem, rows: int, plane: tuple[int, int, int]) -> Box:
    """The box of at most `rows` pixels for which least is multiplied and copied."""
    size = _best_size(rows, plane, problem.kernel, problem.strides, problem.dilations)
    return Box(size, problem.kernel, problem.strides, problem.dilations)


@cache
def _best_size(
    rows: int, plane: tuple[int, int, int], kernel: tuple[int, int], strides: tuple[int, int],
    dilations: tuple[int, int],
) -> tuple[int, int, int]:  # fmt: skip
    def sizes() -> Iterator[tuple[int, int, int]]:
        for w in range(1, min(rows, max(1, plane[2])) + 1):
            h = min(rows // w, max(1, plane[1]))
            whole = h >= plane[1] and w >= plane[2]
            yield (min(rows // (w * h), max(1, plane[0])) if whole else 1), h, w

    def work(size: tuple[int, int, int]) -> float:
        blocks = prod(-(-p // s) for p, s in zip(plane, size, strict=True))
        copied = prod(Box(size, kernel, strides, dilations).patch)
        # Fragments of eight pixels in a row meet no bank of shared memory twice.
        return blocks * (rows * (1.1 if size[2] % 8 else 1) + copied / 2)

    return min(sizes(), key=lambda size: (work(size), -size[2]))


def _with_patch(problem: ConvProblem, shape: Shape, box: Box) -> Shape:
    channels = problem.in_channels * ITEMSIZE[problem.x.dtype]
    return replace(
        shape, patch=prod(box.patch) * shape.depth, taps=box.taps,
        patches=1 if channels == shape.depth else 2,
    )  # fmt: skip


def _staged(problem: ConvProblem, base: Shape, box: Box, k: int, target: Target) -> Shape | None:
    """The shape with as many stages of weights as are useful and fit; None if it makes no sense."""
    item = ITEMSIZE[problem.x.dtype]
    if problem.in_channels * item % base.depth or base.depth // 32 < base.warps[2]:
        return None
    k_tiles = k * item // base.depth
    if base.split > 1 and k_tiles < 2 * base.split:
        return None
    shape = replace(base, cluster=base.split > 1 and target.arch >= 90)
    shape = _with_patch(problem, shape, box)
    room = SHARED[target.arch] * 1024
    # A patch is copied for all its taps at once, so it must be due no later than its first tap.
    for share in (2, 1):
        for stages in (8, 6, 5, 4, 3, 2):
            shape = replace(shape, stages=stages)
            useful = stages == 2 or stages <= min(box.taps, -(-k_tiles // base.split)) + 1
            if useful and shape.shared <= room // share and (stages > 2 or share == 1):
                return shape
    return None
