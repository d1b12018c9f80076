"""Layer, instance, group and root-mean-square normalization."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr, count_ops
from enginesmith.kernels.base import Cost, Problem, mul
from enginesmith.kernels.nest import RESULT, traffic


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


def cost(problem: Problem) -> Cost:
    """See `Family`."""
    assert isinstance(problem, NormalizationProblem)
    work = 6 + count_ops(problem.prologue) + count_ops(problem.epilogue)
    return Cost(mul(work, *problem.operands[-1].shape), traffic(problem))
