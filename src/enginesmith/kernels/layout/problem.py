"""Copy a tensor from one layout to another."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import ITEMSIZE, Cost, Problem, add, mul


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutProblem(Problem):
    """operands: source, target; one dtype, each plain or blocked; shapes are alike (source strides
    of 0 repeat), with one exception:

    channels > 0, both blocked: only channels source_channel .. + channels - 1 of the source are
    copied, to target_channel on. In the target blocks that are touched, lanes before stay and lanes
    after are cleared (so the pieces of a concatenation are copied in order).
    """

    channels: int = 0
    source_channel: int = 0
    target_channel: int = 0


def cost(problem: Problem) -> Cost:
    """No arithmetic; every element is read and written."""
    dest = problem.operands[-1]
    size = ITEMSIZE[dest.dtype]
    total = mul(size, *dest.shape)
    return Cost(0, add(total, total))
