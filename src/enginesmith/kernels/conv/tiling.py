"""Cutting extents into register tiles."""

from __future__ import annotations

from enginesmith.kernels.base import Size


def tile_sizes(size: Size, tile: int) -> list[int]:
    """Tile sizes that cover `size` when used greedily, largest first. No tile overlaps another: an
    output may lie in the memory of an extra, so nothing may be computed twice."""
    if isinstance(size, int):
        return [tile] + ([size % tile] if size % tile else [])
    return [tile, *sorted({max(1, tile // k) for k in (2, 4, tile)} - {tile}, reverse=True)]


def weight_cycles(count: int) -> float:
    """Estimated cycles that reading `count` packed weights once costs beside the arithmetic. Big
    weights come from memory at each inference, at about 4 bytes a cycle and core."""
    size = 4.0 * count
    return size / 32 if size < 1_000_000 else 0.7 * size / 4


def units_per_task(units: int, flops: float, others: int, budget: float) -> int:
    """How many of `units` equal pieces of work (`flops` each) make a task, when there are `others`
    as many tasks besides: at most `budget` flops, but 16 tasks if these take some microseconds."""
    tasks = max(1, min(16, int(units * flops * others / 3e5)))
    pieces = max(-(-units * flops // budget), -(-tasks // others), 1)
    return max(1, -int(-units // min(pieces, units)) if units else 1)
