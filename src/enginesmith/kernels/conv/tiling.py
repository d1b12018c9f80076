"""Cutting extents into register tiles."""

from __future__ import annotations

from enginesmith.kernels.base import Size
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.plan.target import Target

HALF = """\
typedef float vh __attribute__((vector_size(32), aligned(4)));
INLINE vh h_load(const float *p) { return *(const vh *)p; }
INLINE void h_store(float *p, vh x) { *(vh *)p = x; }
INLINE vh h_splat(float x) { return x - (vh){0}; }
INLINE vf h_widen(vh x) {
  return __builtin_shufflevector(x, (vh){0}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
"""
"""Half vectors of a 16-lane target."""


def half_block(problem: ConvProblem, target: Target) -> bool:
    """Whether the last channel block fits half a vector, which takes half the time."""
    tail = problem.group_out % target.lanes
    return target.isa == "avx512" and problem.groups == 1 and 0 < tail <= target.lanes // 2


def tile_sizes(size: Size, tile: int) -> list[int]:
    """Tile sizes that cover `size` when used greedily, largest first. No tile overlaps another: an
    output may lie in the memory of an extra, so nothing may be computed twice."""
    if isinstance(size, int):
        return [tile] + ([size % tile] if size % tile else [])
    return [tile, *sorted({max(1, tile // k) for k in (2, 4, tile)} - {tile}, reverse=True)]


def most_pixels(blocks: int, target: Target) -> int:
    """Pixels of the largest register tile with this many channel blocks that does not spill.
    AVX-512 multiplies by a broadcast from memory: with many blocks the input needs no register."""
    if target.isa == "avx512" and blocks >= 4:
        return (target.registers - blocks) // blocks
    spare = 1 if target.isa == "avx512" else 2
    return (target.registers - spare - blocks) // blocks


def step_cycles(pixels: int, blocks: int, target: Target) -> float:
    """Estimated time a register tile takes per input channel and tap, 1 being a multiply-add of a
    vector at full speed: multiply-adds, or their latency, or loads; loop overhead and weights."""
    load, latency = (0.6, 4.0) if target.isa == "avx512" else (1.5, 8.0)
    return max(pixels * blocks, latency, (pixels + blocks) * load) + 0.3 + 0.12 * blocks


def weight_cycles(count: int) -> float:
    """Estimated cycles that reading `count` packed weights once costs beside the arithmetic. Big
    weights come from memory at each inference, at about 10 bytes a cycle and core (measured)."""
    size = 4.0 * count
    return size / 32 if size < 1_000_000 else size / 10


def units_per_task(units: int, flops: float, others: int, budget: float) -> int:
    """How many of `units` equal pieces of work (`flops` each) make a task, when there are `others`
    as many tasks besides: at most `budget` flops, but 16 tasks if these take some microseconds."""
    tasks = max(1, min(16, int(units * flops * others / 3e5)))
    pieces = max(-(-units * flops // budget), -(-tasks // others), 1)
    return max(1, -int(-units // min(pieces, units)) if units else 1)
