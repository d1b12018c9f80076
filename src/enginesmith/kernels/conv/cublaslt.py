"""Convolutions by one pixel, channels innermost, as matrix products that cuBLASLt computes.

Rows are the results' pixels, columns the output channels. See kernels/matmul/cublaslt.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from enginesmith.kernels.base import Operand, Problem, Tactic, mul
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import LibrarySource
from enginesmith.kernels.matmul import cublaslt
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.plan.target import Target

tactics = cublaslt.tactics


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if problem.transposed or problem.groups != 1 or problem.prologue is not None:
        return "transposed, of groups, or with a prologue"
    if problem.kernel != (1, 1) or any(problem.pads):
        return "more than one pixel"
    return cublaslt.why_not(_product(problem), target)


def emit(problem: Problem, tactic: Tactic, target: Target) -> LibrarySource:
    """See `Family`."""
    return cublaslt.emit(_product(problem), tactic, target)


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """As of the product: its operands are the convolution's, in their order."""
    return cublaslt.pack(_product(problem), tactic, target, constants)


def _product(problem: Problem) -> MatMulProblem:
    """(n, oh, ow, ic) x (ic, oc)."""
    assert isinstance(problem, ConvProblem)
    x, w = problem.x, problem.w
    down, right = problem.strides
    n, _, oh, ow = problem.y.shape
    pixels = Operand(
        x.dtype, (n, oh, ow, problem.in_channels),
        (x.strides[0], mul(x.strides[2], down), mul(x.strides[3], right), x.strides[1]),
        constant=x.constant, alignment=x.alignment,
    )  # fmt: skip
    weights = Operand(
        w.dtype, (1, 1, problem.in_channels, problem.out_channels),
        (0, 0, w.strides[1], w.strides[0]), constant=w.constant, alignment=w.alignment,
    )  # fmt: skip
    rest = (_channels_last(o) for o in (*problem.extras, problem.y))
    return MatMulProblem(
        (pixels, weights, *rest), problem.hint, epilogue=problem.epilogue, tf32=problem.tf32
    )


def _channels_last(o: Operand) -> Operand:
    n, c, h, w = range(4)
    order = (n, h, w, c)
    return replace(
        o, shape=tuple(o.shape[k] for k in order), strides=tuple(o.strides[k] for k in order)
    )
