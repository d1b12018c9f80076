"""Offsets in one arena for buffers that don't all live at once.

Greedy by size: the largest buffer first, each at the lowest-waste gap among the buffers placed
before whose lives overlap its own (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural
Net Inference", 2020, algorithm 3, which TFLite uses). Optimal packing is NP-hard; on real networks
this one stays within a few per cent of the lower bound (`lower_bound`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

ALIGNMENT = 64
"""Bytes; a cache line and a 512-bit vector."""


def align(size: int) -> int:
    """`size` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def assign(
    sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]], slack: int = 0
) -> tuple[list[int], int]:
    """Byte offsets of the buffers, in order, and the arena's total size.

    lifetimes: first and last step, inclusive, in which a buffer is alive. slack: bytes at both ends
    of the arena that belong to no buffer (kernels may read past a buffer; in the middle they meet
    another buffer, which is as good). Offsets are multiples of ALIGNMENT; a buffer of no bytes
    conflicts with none.
    """
    base = align(slack)
    offsets = [base] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; sorted by offset
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], lifetimes[i]))
    total = base
    for i in order:
        size = align(sizes[i])
        if size == 0:
            continue
        first, last = lifetimes[i]
        best, waste, end = -1, 0, base
        for start, stop, begin, until in placed:
            if begin > last or until < first:
                continue
            gap = start - end
            if gap >= size and (best < 0 or gap < waste):
                best, waste = end, gap
            end = max(end, stop)
        offset = end if best < 0 else best
        offsets[i] = offset
        insort(placed, (offset, offset + size, first, last))
        total = max(total, offset + size)
    return offsets, total + align(slack)


def lower_bound(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]]) -> int:
    """The most bytes alive at one step: no assignment needs less."""
    change: dict[int, int] = {}
    for size, (first, last) in zip(sizes, lifetimes, strict=True):
        change[first] = change.get(first, 0) + align(size)
        change[last + 1] = change.get(last + 1, 0) - align(size)
    alive = most = 0
    for step in sorted(change):
        alive += change[step]
        most = max(most, alive)
    return most
