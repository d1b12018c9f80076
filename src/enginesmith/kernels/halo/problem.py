"""Clearing the zeros that convolutions read around their input's planes."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Problem


@dataclass(frozen=True, slots=True)
class HaloProblem(Problem):
    """One operand: a blocked output with a halo. Writes its halo and nothing else."""
