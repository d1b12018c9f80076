"""Softmax against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from operands import TARGETS, check, floats, plain, spread

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels.softmax import cpu
from enginesmith.kernels.softmax.problem import SoftmaxProblem


def reference(x, axis, log=False):
    x = x.astype(np.float64)
    e = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
    y = e / e.sum(axis, keepdims=True)
    return np.log(y) if log else y


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 5, 7), 1), ((3, 5, 70), 1), ((3, 5, 7), -1), ((2, 777), 1), ((4, 5, 6, 7), 1), ((5,), 0),
     ((0, 4), 1), ((2, 1), 1)],
)  # fmt: skip
def test_any_axis(isa, log, shape, axis):
    x = 5 * floats(1, *shape)
    problem = SoftmaxProblem((plain(shape), plain(shape)), axis=axis, log=log)
    check(cpu, problem, [x], reference(x, axis, log), tolerance=2e-6, targets=[isa])


def test_scaled_and_masked():
    x, mask = floats(1, 2, 9, 33), np.where(floats(2, 9, 33) > 0, 0, -np.inf).astype(np.float32)
    mask[:, 0] = 0
    prologue = call("add", call("mul", Arg(0), 0.125), Arg(1))
    problem = SoftmaxProblem(
        (plain(x.shape), spread(x.shape, mask.shape), plain(x.shape)), axis=2, prologue=prologue
    )
    expected = reference(x * 0.125 + mask, 2)
    inputs = [x, np.broadcast_to(mask, x.shape)]
    check(cpu, problem, inputs, expected, tolerance=1e-6)


def test_large_values_do_not_overflow():
    x = np.array([[1e30, -1e30, 1e30], [200, 100, 0]], np.float32)
    problem = SoftmaxProblem((plain(x.shape), plain(x.shape)), axis=1)
    check(cpu, problem, [x], reference(x, 1), tolerance=1e-6)


def test_sizes_at_run_time():
    problem = SoftmaxProblem((plain(("d0", "d1")), plain(("d0", "d1"))), (3, 50), axis=1)
    for shape in ((0, 3), (1, 1), (5, 77)):
        x = floats(1, *shape)
        check(cpu, problem, [x], reference(x, 1), shape, 1e-6)
