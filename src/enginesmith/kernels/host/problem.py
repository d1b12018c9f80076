"""A step that `onnx.reference` computes on the host."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Cost, Operand, Problem, dense_strides, same
from enginesmith.kernels.nest import traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProblem(Problem):
    """operands: what the ONNX node names, plain and dense, of any numpy type. See ir.ops.HostAttrs
    for the rest."""

    operator: str
    node: str
    opset: int


def why_not(problem: Problem) -> str | None:
    """See `Family`."""
    if not isinstance(problem, HostProblem):
        return "not a host step"
    if not all(map(_is_dense, problem.operands)):
        return "operands must be plain and dense"
    return None


def _is_dense(operand: Operand) -> bool:
    expected = dense_strides(operand.shape)
    sizes = zip(operand.shape, operand.strides, expected, strict=True)
    return not operand.block and all(d == 1 or same(a, b) for d, a, b in sizes)


def cost(problem: Problem) -> Cost:
    """Work (unknown) and traffic, see `Family`."""
    return Cost(0, traffic(problem))
