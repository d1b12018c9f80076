"""Range, CumSum, ArgMax and ArgMin against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from operands import check, floats, plain

from enginesmith.kernels.argmax import cpu as argmax
from enginesmith.kernels.argmax.problem import ArgMaxProblem
from enginesmith.kernels.cumsum import cpu as cumsum
from enginesmith.kernels.cumsum.problem import CumSumProblem
from enginesmith.kernels.range import cpu as range_
from enginesmith.kernels.range.problem import RangeProblem


@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "float64"])
def test_range(dtype):
    scalar = plain((), dtype)
    for n in (0, 1, 10):
        expected = (3 + 4 * np.arange(n)).astype(dtype)
        problem = RangeProblem((scalar, scalar, plain(("d0",), dtype)), (5,))
        check(range_, problem, [np.array(3), np.array(4)], expected, (n,), targets=["avx2"])


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(("exclusive", "reverse"), [(False, False), (True, False), (True, True)])
def test_cumsum(dtype, axis, exclusive, reverse):
    x = (floats(1, 4, 5, 6) * 9).astype(dtype)
    way = np.flip(x, axis) if reverse else x
    expected = np.cumsum(way, axis) - (way if exclusive else 0)
    expected = np.flip(expected, axis) if reverse else expected
    problem = CumSumProblem(
        (plain(x.shape, dtype), plain(x.shape, dtype)), axis=axis, exclusive=exclusive,
        reverse=reverse,
    )  # fmt: skip
    tolerance = 1e-6 if dtype == "float32" else 0
    check(cumsum, problem, [x], expected, tolerance=tolerance, targets=["avx2"])


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_argmax(dtype, axis):
    x = (floats(1, 4, 5, 6) * 2).astype(dtype)  # with equals among the integers
    first = x.argmax(axis)
    operand = plain(x.shape, dtype)
    problem = ArgMaxProblem((operand, plain(first.shape, "int64")), axis=axis)
    check(argmax, problem, [x], first, targets=["avx2"])
    low = np.expand_dims(x.shape[axis] - 1 - np.flip(x, axis).argmin(axis), axis)
    problem = ArgMaxProblem(
        (operand, plain(low.shape, "int64")), axis=axis, minimum=True, last=True
    )
    check(argmax, problem, [x], low, targets=["avx2"])
