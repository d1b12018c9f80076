"""How far outputs are from those of a reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Outputs: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one output is from the reference.

    relative: norm of the difference / norm of the reference (over the reference's finite elements;
    absolute where that norm is zero). largest: the greatest absolute difference. problem: why the
    two can't be compared or agree in no way (shape, dtype, NaN or infinity in different places);
    then both figures are infinite.
    """

    output: str
    relative: float
    largest: float
    problem: str = ""


def compare_outputs(ours: Outputs, theirs: Outputs) -> list[Difference]:
    """One Difference for each output of `theirs`, in that order."""
    return [
        difference(name, np.asarray(ours[name]), np.asarray(expected))
        if name in ours
        else _incomparable(name, "the engine has no such output")
        for name, expected in theirs.items()
    ]


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """The Difference of two arrays; sums are in float64."""
    if ours.shape != theirs.shape:
        return _incomparable(name, f"shape {ours.shape}, expected {theirs.shape}")
    if ours.dtype != theirs.dtype:
        return _incomparable(name, f"dtype {ours.dtype}, expected {theirs.dtype}")
    if theirs.dtype.kind not in "fiub":
        same = np.array_equal(ours, theirs)
        return Difference(name, 0, 0) if same else _incomparable(name, "values differ")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return _incomparable(name, "NaN or infinity differ")
    a, b = a[finite], b[finite]
    if not np.isfinite(a).all():
        return _incomparable(name, "NaN or infinity where the reference has none")
    distance, norm = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    largest = float(np.abs(a - b).max(initial=0))
    return Difference(name, distance / norm if norm else distance, largest)


def worst(differences: Iterable[Difference]) -> float:
    """The largest relative error; 0 of none."""
    return max((d.relative for d in differences), default=0.0)


def _incomparable(name: str, problem: str) -> Difference:
    return Difference(name, float("inf"), float("inf"), problem)
