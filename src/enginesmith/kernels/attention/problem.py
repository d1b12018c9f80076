"""softmax(scale * q kT + mask) v."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Cost, Problem, add, mul
from enginesmith.kernels.nest import traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProblem(Problem):
    """operands: q (B, H, Sq, D), k (B, H, Sk, D), v (B, H, Sk, Dv), perhaps a mask (B, H, Sq, Sk;
    bool: false hides; else added), y (B, H, Sq, Dv); plain, floats of any size, strides 0 where
    broadcast. The mask may have fewer batches, a number that divides B: batch b has that of
    b % batches (windows of several images). causal: query i sees keys j <= i. Queries that see no
    key give 0."""

    scale: float
    causal: bool = False


def cost(problem: Problem) -> Cost:
    """See `Family`."""
    assert isinstance(problem, AttentionProblem)
    q, k, v, *_ = problem.operands
    scores = mul(*q.shape[:3], k.shape[2])
    return Cost(add(mul(2, scores, q.shape[3]), mul(2, scores, v.shape[3])), traffic(problem))
