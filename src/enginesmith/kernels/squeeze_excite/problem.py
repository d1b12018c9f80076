"""Squeeze-and-excitation (Hu, Shen, Sun: Squeeze-and-Excitation Networks, 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Cost, Operand, Problem, add, mul
from enginesmith.kernels.nest import traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class SqueezeExciteProblem(Problem):
    """y = outer(w2 inner(w1 mean(x))), the mean over rows and columns.

    operands: x (n, c, h, w), w1 (r, c, 1, 1), w2 (o, r, 1, 1), the further operands of `inner`
    (n, r, 1, 1) and of `outer` (n, o, 1, 1), with strides 0 where broadcast, y (n, o, 1, 1).
    inner, outer: Arg(0) is the product, Arg(k) the k-th further operand; inner has `extras`."""

    inner: Expr
    outer: Expr
    extras: int = 0

    @property
    def inner_operands(self) -> range:
        """Slots of the operands of `inner`."""
        return range(3, 3 + self.extras)

    @property
    def outer_operands(self) -> range:
        """Slots of the operands of `outer`."""
        return range(3 + self.extras, len(self.operands) - 1)

    @property
    def x(self) -> Operand:
        return self.operands[0]

    @property
    def channels(self) -> tuple[int, int, int]:
        """c, r, o."""
        (r, c, *_), (o, *_) = self.operands[1].shape, self.operands[2].shape
        assert isinstance(r, int)
        assert isinstance(c, int)
        assert isinstance(o, int)
        return c, r, o


def cost(problem: Problem) -> Cost:
    """Work and traffic, see `Family`."""
    assert isinstance(problem, SqueezeExciteProblem)
    c, r, o = problem.channels
    n = problem.x.shape[0]
    return Cost(add(mul(*problem.x.shape), mul(n, 2 * r * (c + o))), traffic(problem))
