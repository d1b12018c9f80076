"""Cutting extents into register tiles."""

from __future__ import annotations

from enginesmith.kernels.base import Size


def tile_sizes(size: Size, tile: int) -> list[int]:
    """Tile sizes that cover `size` when used greedily, largest first. No tile overlaps another: an
    output may lie in the memory of an extra, so nothing may be computed twice."""
    if isinstance(size, int):
        return [tile] + ([size % tile] if size % tile else [])
    return [tile, *sorted({max(1, tile // k) for k in (2, 4, tile)} - {tile}, reverse=True)]
