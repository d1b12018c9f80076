"""Arena offsets: buffers alive together never overlap, and little is wasted."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from enginesmith.plan.arena import ALIGNMENT, align, assign, lower_bound

buffers = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 12)), max_size=40
)


def check(
    sizes: list[int], lifetimes: list[tuple[int, int]], slack: int, offsets: list[int], total: int
) -> None:
    """AssertionError if two live buffers overlap, or one is misaligned or outside."""
    for i, (size, (first, last)) in enumerate(zip(sizes, lifetimes, strict=True)):
        assert offsets[i] % ALIGNMENT == 0
        assert slack <= offsets[i]
        assert offsets[i] + size + slack <= total
        for j in range(i):
            together = first <= lifetimes[j][1] and lifetimes[j][0] <= last
            apart = offsets[i] + size <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
            assert apart or not together or not size or not sizes[j]


@given(buffers, st.sampled_from([0, 64, 4096]))
def test_no_overlap(items: list[tuple[int, int, int]], slack: int) -> None:
    """Any sizes and lifetimes."""
    sizes = [size for size, _, _ in items]
    lifetimes = [(first, first + length) for _, first, length in items]
    offsets, total = assign(sizes, lifetimes, slack)
    check(sizes, lifetimes, slack, offsets, total)
    least = lower_bound(sizes, lifetimes)
    assert least <= total - 2 * align(slack) <= sum(map(align, sizes))
    assert (offsets, total) == assign(sizes, lifetimes, slack)


def test_networks_need_little_more_than_the_lower_bound() -> None:
    """Chains with some long lives, as networks with shortcuts have."""
    for seed in range(10):
        rng = random.Random(seed)
        sizes = [rng.choice([1, 4, 16, 64]) * 1000 * rng.randint(1, 50) for _ in range(200)]
        lifetimes = [(i, i + rng.choice([1, 1, 1, 2, 3, 10, 40])) for i in range(200)]
        offsets, total = assign(sizes, lifetimes)
        check(sizes, lifetimes, 0, offsets, total)
        assert total <= 1.2 * lower_bound(sizes, lifetimes)


def test_a_chain_needs_two_buffers() -> None:
    """Every buffer lives from one step to the next."""
    _, total = assign([640] * 50, [(i, i + 1) for i in range(50)])
    assert total == 1280


def test_nothing() -> None:
    """No buffers, or empty ones, need the slack alone."""
    assert assign([], []) == ([], 0)
    assert assign([0, 0], [(0, 1), (0, 1)], 100) == ([128, 128], 256)
