"""Attention for GPUs: on tensor cores where q, k, v and y are half precision with aligned rows, on
CUDA cores otherwise."""

from __future__ import annotations

from enginesmith.kernels.attention import flash_mma, flash_short, flash_wgmma, simple_cuda, triton
from enginesmith.kernels.attention.problem import AttentionProblem, cost
from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.nest import nothing_packed
from enginesmith.plan.target import Target

FLOATS = ("float32", "float16", "bfloat16")

FILLED = 128
"""Blocks of 64 queries from which on work counts more than the time one block takes."""

MOST = 10
"""Candidates that are timed."""

EMITTERS = {
    "flash_mma": flash_mma.emit,
    "flash_short": flash_short.emit,
    "flash_wgmma": flash_wgmma.emit,
    "simple": simple_cuda.emit,
    "triton": triton.emit,
}


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, AttentionProblem):
        return "not attention"
    if any(o.block or len(o.strides) != 4 for o in problem.operands):
        return "operands must be plain and 4-D"
    q, k, v, *mask, y = problem.operands
    if any(o.dtype not in FLOATS for o in (q, k, v, y)):
        return f"operands must be of {', '.join(FLOATS)}"
    if mask and mask[0].dtype not in ("bool", *FLOATS):
        return f"a mask of {mask[0].dtype}"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, AttentionProblem)
    short = flash_short.tactics(problem, target)
    found = flash_mma.tactics(problem, target)
    batch, heads, queries = (problem.typical(n) for n in problem.operands[0].shape[:3])
    if batch * heads * -(-queries // 64) < FILLED:
        found += short
    else:
        found = (*short, *flash_wgmma.tactics(problem, target), *found)
    return found[:MOST] or simple_cuda.tactics(problem, target)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, AttentionProblem)
    return EMITTERS[tactic.name](problem, tactic, target)


pack = nothing_packed

__all__ = ["cost", "emit", "pack", "tactics", "why_not"]
