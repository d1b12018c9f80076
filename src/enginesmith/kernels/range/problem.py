"""Range."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeProblem(Problem):
    """operands: start and delta (scalars: rank 0), y (rank 1), of one dtype: y[i] = start + i *
    delta."""
