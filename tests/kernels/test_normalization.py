"""Normalization against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from operands import TARGETS, check, floats, permuted, plain, spread

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels.normalization import cpu
from enginesmith.kernels.normalization.problem import NormalizationProblem

AFFINE = call("add", call("mul", Arg(0), Arg(1)), Arg(2))


def reference(x, axes, rms):
    x = x.astype(np.float64)
    x = x if rms else x - x.mean(axes, keepdims=True)
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + 1e-5)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 777), (4, 1, 64), (0, 3, 5)])
def test_rows_with_a_residual(isa, rms, shape):
    x, more = floats(1, *shape), 3 + floats(2, *shape)
    scale, bias = floats(3, shape[-1]), floats(4, shape[-1])
    affine = spread(shape, scale.shape)
    problem = NormalizationProblem(
        (plain(shape), plain(shape), affine, affine, plain(shape)), axes=(2,), eps=1e-5, inputs=2,
        rms=rms, prologue=call("add", Arg(0), Arg(1)), epilogue=AFFINE,
    )  # fmt: skip
    inputs = [x, more, *(np.broadcast_to(v, shape) for v in (scale, bias))]
    expected = reference(x + more, 2, rms) * scale + bias
    check(cpu, problem, inputs, expected, tolerance=3e-6, targets=[isa])


def test_instance_normalization():
    """Several axes in one row, a value per channel."""
    shape = (2, 5, 6, 7)
    x, scale, bias = 5 + floats(1, *shape), floats(2, 5, 1, 1), floats(3, 5, 1, 1)
    each = spread(shape, scale.shape)
    problem = NormalizationProblem(
        (plain(shape), each, each, plain(shape)), axes=(2, 3), eps=1e-5, epilogue=AFFINE
    )
    inputs = [x, *(np.broadcast_to(v, shape) for v in (scale, bias))]
    check(cpu, problem, inputs, reference(x, (2, 3), False) * scale + bias, tolerance=3e-6)


def test_rows_with_gaps():
    x = floats(1, 9, 20)
    problem = NormalizationProblem((permuted(x.shape, (1, 0)), plain(x.shape)), axes=(1,), eps=1e-5)
    check(cpu, problem, [x], reference(x, 1, False), tolerance=3e-6)


def test_why_not():
    shape = (2, 5, 6)
    problem = NormalizationProblem((plain(shape), plain(shape)), axes=(0, 2), eps=1e-5)
    assert "one row" in (cpu.why_not(problem, TARGETS["avx2"]) or "")
