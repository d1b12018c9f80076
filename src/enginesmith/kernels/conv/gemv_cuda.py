"""1x1 convolutions of 1x1 planes with few images, as in squeeze-and-excitation: a matrix product
with few rows, see `matmul/gemv.py`. Parameters are those of `gemv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from enginesmith.kernels.base import Operand, Problem, Tactic
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.ending import strides_of
from enginesmith.kernels.matmul import gemv
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if problem.kernel != (1, 1) or problem.groups != 1 or problem.transposed:
        return "not a plain 1x1 convolution"
    if any(s != 1 for o in (problem.x, problem.y) for s in o.shape[2:]) or any(problem.pads):
        return "planes of more than a pixel"
    if not problem.w.constant:
        return "the weights are not constant"
    return gemv.why_not(_product(problem), target)


def _product(problem: ConvProblem) -> MatMulProblem:
    """The problem as a product of (images, input channels) and (input, output channels)."""

    def rows(o: Operand, columns: int) -> Operand:
        return replace(o, shape=(problem.batch, columns), strides=strides_of(o)[:2])

    into, out = problem.in_channels, problem.out_channels
    weights = replace(problem.w, shape=(into, out), strides=(1, into))
    others = (rows(o, out) for o in problem.operands[2:])  # a prologue's have `into` columns
    return MatMulProblem(
        (rows(problem.x, into), weights, *others), problem.hint, epilogue=problem.epilogue
    )


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `gemv`."""
    assert isinstance(problem, ConvProblem)
    return gemv.tactics(_product(problem), target)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `gemv`."""
    assert isinstance(problem, ConvProblem)
    return gemv.source(_product(problem), tactic, problem.epilogue, problem.prologue)


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """See `gemv`."""
    assert isinstance(problem, ConvProblem)
    w = constants[1]
    return gemv.pack(_product(problem), tactic, target, {1: w.reshape(w.shape[:2]).T})
