"""Which register tiles and loop orders of the direct convolution to try, by estimated time."""

from __future__ import annotations

from enginesmith.kernels.base import Size, Tactic, mul, same, tactic
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.tiling import (
    half_block,
    most_pixels,
    step_cycles,
    units_per_task,
    weight_cycles,
)
from enginesmith.plan.target import Target

TASK_FLOPS = 4e6
"""Work of a task: 40 microseconds at full speed."""


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """Register tiles by estimated time; the best ones with other loop orders as well."""
    flat = walks_flat(problem)
    ranked = sorted(_register_tiles(problem, target, flat))
    found: list[Tactic] = []
    shapes = set[tuple[int, int]]()
    for _, r, t, b in ranked:
        if (r, b) not in shapes and len(shapes) < 4:
            shapes.add((r, b))
            found += _schedules(problem, target, r, t, b, flat, everything=not found)
    return tuple(dict.fromkeys(found))


def best_cycles(problem: ConvProblem, target: Target) -> float:
    """Estimated vector cycles of the best candidate."""
    kh, kw = problem.kernel
    tile = min(_register_tiles(problem, target, walks_flat(problem)))[0]
    depth = problem.group_in * kh * kw
    images = 1 if walks_flat(problem) == 2 else problem.typical(problem.batch)
    weights = weight_cycles(depth * problem.out_channels)
    return tile * depth * problem.groups * images + weights


def walks_flat(problem: ConvProblem) -> int:
    """Whether the plane (1) or the batch (2) can be walked as one long row."""
    x, y = problem.x, problem.y
    if not x.block or problem.kernel != (1, 1) or any(problem.pads):
        return 0
    if x.shape[2:] == (1, 1):
        return 2
    if problem.strides != (1, 1):
        return 0
    row = mul(y.shape[3], y.block)
    dense = (same(o.strides[2], mul(o.shape[3], o.block)) for o in (x, y))
    extras = (
        len(o.strides) < 3
        or o.strides[-2:] == (0, 0)
        or (same(o.strides[-2], row) and same(o.strides[-1], y.block))
        for o in problem.extras
    )
    return int(all(dense) and all(extras))


def extent(problem: ConvProblem, flat: int) -> tuple[Size, Size]:
    """Rows and columns the tiles walk over."""
    n, _, h, w = problem.y.shape
    return ((h, w), (1, mul(h, w)), (1, n))[flat]


def _register_tiles(
    problem: ConvProblem, target: Target, flat: int
) -> list[tuple[float, int, int, int]]:
    """(estimated vector cycles for the whole problem, R, T, B)."""
    rows, columns = (problem.typical(s) for s in extent(problem, flat))
    half = half_block(problem, target)
    blocks = -(-problem.group_out // target.lanes) - half
    fixed_rows = isinstance(extent(problem, flat)[0], int)
    found = []
    for b in range(1, min(8, max(1, blocks)) + 1):
        most = most_pixels(b, target)
        for r in (1, 2, 3) if fixed_rows else (1,):
            for t in (
                {-(-columns // k) for k in range(1, columns + 1)}
                if columns < 64
                else range(1, most + 1)
            ):
                if r * t <= most and r <= max(rows, 1):
                    found.append((_cycles(rows, columns, blocks, half, r, t, b, target), r, t, b))
    return found or [(0.0, 1, 1, 1)]


def _cycles(
    rows: int, columns: int, blocks: int, half: bool, r: int, t: int, b: int, target: Target
) -> float:
    """Vector cycles per input channel and tap: multiply-adds, latency, loads, loop overhead."""

    def tile(pixels: int, b: int) -> float:
        return step_cycles(pixels, b, target)

    def line(r: int) -> float:
        total = 0.0
        for width, count in ((t, columns // t), (columns % t, 1)):
            if width:
                total += count * (tile(r * width, b) * (blocks // b))
                if blocks % b:
                    total += count * tile(r * width, blocks % b)
                if half:
                    total += count * tile(r * width, 1) * 0.65
        return total

    return line(r) * (rows // r) + (line(rows % r) if rows % r else 0.0)


def _schedules(
    problem: ConvProblem, target: Target, r: int, t: int, b: int, flat: int, everything: bool
) -> list[Tactic]:
    """Ways to cut the problem into tasks and to order the loops for one register tile."""
    kh, kw = problem.kernel
    lanes = target.lanes
    block = problem.x.block or 1
    step = 2 * b * lanes * problem.group_in * kh * kw  # flops of a pixel in one tile of channels
    rows, columns = (problem.typical(s) for s in extent(problem, flat))
    panel = step * 2  # bytes of weights that a tile of channels reads
    out_blocks = -(-problem.group_out // lanes)
    oc_tiles = -(-out_blocks // b)
    budget = TASK_FLOPS
    units = -(-columns // t) if flat else -(-rows // r)
    work = step * (t if flat else r * columns)
    others = oc_tiles * problem.groups * (1 if flat == 2 else problem.typical(problem.batch))
    walk = units_per_task(units, work, max(1, others), budget)
    others = max(1, others // oc_tiles * -(-units // walk))
    tiles = units_per_task(oc_tiles, work * walk, others, budget)
    size = walk * (t if flat else r)
    weights = panel * oc_tiles * problem.groups
    half = int(half_block(problem, target))
    order = 0 if weights > 400_000 else 1
    if problem.prologue is not None:
        # A task copies its pixels once and makes all channels of them, from L2.
        fit = 4 * lanes * -(-problem.group_in // lanes) * (t if flat else r * columns)
        walk = min(walk, max(1, 300_000 // max(1, fit)))
        size, tiles, order, everything = walk * (t if flat else r), oc_tiles, 1, False
    full = problem.group_in // block
    chunk = max(1, int(160_000 * full / panel)) if full else 0
    chunks = [0]
    if flat != 2 and 0 < chunk < full and panel > 240_000:
        # Weights beyond L2 are re-read for each tile: pass over them in pieces.
        chunks = [chunk, 0] if panel > 600_000 else [0, chunk]
    orders = (order, 1 - order) if everything else (order,)
    return [
        tactic(
            "direct", r=r, t=t, b=b, chunk=c, rows=size, tiles=tiles, order=o, flat=flat, half=half
        )
        for o in orders
        for c in (chunks if o == order else chunks[:1])
    ]
