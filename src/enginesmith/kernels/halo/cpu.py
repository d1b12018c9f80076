"""Halo clearing on CPUs: one tactic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.kernels.base import (
    Cost,
    KernelSource,
    Phase,
    Problem,
    Tactic,
    add,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
    tactic,
)
from enginesmith.plan.target import Target

TASK_BYTES = 32768
"""Roughly what one task writes."""


def why_not(problem: Problem, target: Target) -> str | None:
    y = problem.operands[0]
    return None if y.block == target.lanes and y.dtype == "float32" else "not blocked float32"


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    return (tactic("rows"),)


def _halo_pixels(problem: Problem) -> int:
    """Pixels of one plane's halo at the hint."""
    y = problem.operands[0]
    top, left, bottom, right = y.halo
    h, w = problem.typical(y.shape[2]), problem.typical(y.shape[3])
    return (h + top + bottom) * (w + left + right) - h * w


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    y = problem.operands[0]
    top, left, bottom, right = y.halo
    n, c, h, w = y.shape
    blocks = ceildiv(c, y.block)
    group = max(1, TASK_BYTES // max(1, _halo_pixels(problem) * y.block * 4))
    planes = mul(n, blocks)
    text = f"""
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
  const int64_t last = imin(end * {group}, {c_size(planes)}), h = {c_size(h)}, w = {c_size(w)};
  const int64_t row = {c_size(y.strides[2])};
  const vf zero = {{0}};
  for (int64_t i = begin * {group}; i < last; i++) {{
    float *y = (float *)p[0] + i / {c_size(blocks)} * {c_size(y.strides[0])}
               + i % {c_size(blocks)} * {c_size(y.strides[1])};
    for (int64_t r = -{top}; r < h + {bottom}; r++) {{
      float *q = y + r * row;
      if (r < 0 || r >= h) {{
        for (int64_t x = -{left}; x < w + {right}; x++) store(q + x * LANES, zero);
      }} else {{
        for (int64_t x = -{left}; x < 0; x++) store(q + x * LANES, zero);
        for (int64_t x = w; x < w + {right}; x++) store(q + x * LANES, zero);
      }}
    }}
  }}
}}
"""
    return KernelSource(text, (Phase(ceildiv(planes, group)),))


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    return {}


def cost(problem: Problem) -> Cost:
    y = problem.operands[0]
    top, left, bottom, right = y.halo
    planes = mul(y.shape[0], ceildiv(y.shape[1], y.block))
    sides = mul(planes, y.shape[2], (left + right) * y.block * 4)
    rows = mul(planes, add(y.shape[3], left + right), (top + bottom) * y.block * 4)
    return Cost(0, add(sides, rows))
