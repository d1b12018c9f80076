"""Sizes as data on CPUs: one tactic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Tactic,
    c_size,
    declare_sizes,
    tactic,
)
from enginesmith.kernels.sizes.problem import SizesProblem
from enginesmith.kernels.sizes.problem import cost as sizes_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    return None if problem.operands[0].dtype == "int64" else "not int64"


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("stores"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, SizesProblem)
    stride = c_size(problem.operands[0].strides[0])
    stores = "".join(
        f"  ((int64_t *)p[0])[{i} * {stride}] = {c_size(v)};\n"
        for i, v in enumerate(problem.values)
    )
    text = f"""
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
{stores}}}
"""
    return KernelSource(text, (Phase(1),))


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """See `Family`."""
    return {}


cost = sizes_cost
