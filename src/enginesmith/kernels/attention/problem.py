"""softmax(scale * q kT + mask) v."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProblem(Problem):
    """operands: q (B, H, Sq, D), k (B, H, Sk, D), v (B, H, Sk, Dv), perhaps a mask (B, H, Sq, Sk;
    added if float32, else bool: false hides), y (B, H, Sq, Dv); plain, float32, strides 0 where
    broadcast. causal: query i sees keys j <= i. Queries that see no key give 0."""

    scale: float
    causal: bool = False
