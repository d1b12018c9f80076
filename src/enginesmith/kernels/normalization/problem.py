"""Layer, instance, group and root-mean-square normalization."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Problem
from enginesmith.kernels.nest import RESULT


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizationProblem(Problem):
    """operands: inputs (as many as `inputs`), extras (scale, bias, ...), y; all of one shape,
    plain, float32, strides 0 where broadcast. With x = prologue(inputs), mean and variance (biased)
    over `axes`, which must be one row in memory or contiguous axes that merge into one:

    y = epilogue((x - mean) / sqrt(variance + eps)); rms: x / sqrt(mean(x^2) + eps). prologue:
    Arg(k) is operand k; epilogue: Arg(0) is the normalized value, Arg(k) operand inputs + k - 1:
    scale and bias are add(mul(Arg(0), Arg(1)), Arg(2)).
    """

    axes: tuple[int, ...]
    eps: float
    inputs: int = 1
    rms: bool = False
    prologue: Expr = RESULT
    epilogue: Expr = RESULT
