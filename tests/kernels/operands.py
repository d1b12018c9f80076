"""Operands as the families' tests lay them out, and a run of every tactic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from harness import run_kernel

from enginesmith.kernels.base import Operand, Problem, Size, dense_strides
from enginesmith.plan.target import Target

TARGETS = {isa: Target("cpu", isa) for isa in ("avx2", "avx512")}
BORDER = (1, 2, 3, 1)


def plain(shape: Sequence[Size], dtype: str = "float32", **changes: Any) -> Operand:
    """A dense row-major operand; `changes` replaces fields."""
    shape = tuple(shape)
    return Operand(dtype, shape, changes.pop("strides", dense_strides(shape)), **changes)


def permuted(shape: Sequence[int], order: Sequence[int], dtype: str = "float32") -> Operand:
    """An operand of logical `shape` whose axes lie in memory in `order`, outermost first."""
    dense = dense_strides(tuple(shape[k] for k in order))
    strides = [dense[list(order).index(k)] for k in range(len(shape))]
    return Operand(dtype, tuple(shape), tuple(strides))


def spread(shape: Sequence[Size], given: Sequence[Size], dtype: str = "float32") -> Operand:
    """An operand of shape `given` (of the same rank or lower) broadcast to `shape`."""
    given = (1,) * (len(shape) - len(given)) + tuple(given)
    strides = [
        0 if g == 1 and s != 1 else t
        for g, s, t in zip(given, shape, dense_strides(given), strict=True)
    ]
    return Operand(dtype, tuple(shape), tuple(strides))


def blocked(
    shape: Sequence[Size], block: int, halo: tuple[int, int, int, int] = (0, 0, 0, 0),
    given: Sequence[int] | None = None,
) -> Operand:  # fmt: skip
    """A blocked operand with room for its halo; `given`: its own shape where it is broadcast."""
    _, c, h, w = given or shape
    top, left, bottom, right = halo
    row = (w + left + right) * block
    plane = (h + top + bottom) * row
    strides = [-(-c // block) * plane, plane, row, block]
    for k, own in enumerate(given or ()):
        if own != shape[k]:
            strides[k] = 0
    return Operand("float32", tuple(shape), tuple(strides), block, halo)


def check(
    family: Any, problem: Problem, inputs: Sequence[np.ndarray], expected: np.ndarray,
    slots: tuple[int, ...] = (), tolerance: float = 0.0, targets: Sequence[str] = tuple(TARGETS),
) -> None:  # fmt: skip
    """Every tactic on every target gives `expected`: exactly, or to `tolerance` relative to its
    greatest magnitude."""
    scale = max(1.0, float(np.abs(expected.astype(np.float64)).max(initial=0)))
    for isa in targets:
        for tactic in family.tactics(problem, TARGETS[isa]):
            (y,) = run_kernel(family, problem, tactic, TARGETS[isa], inputs, slots)
            assert y.shape == expected.shape
            if tolerance == 0:
                assert np.array_equal(y, expected, equal_nan=y.dtype.kind == "f"), str(tactic)
            else:
                error = np.abs(y - expected).max(initial=0) / scale
                assert error <= tolerance, (isa, str(tactic), error)


def floats(seed: int, *shape: int) -> np.ndarray:
    """Normally distributed float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
