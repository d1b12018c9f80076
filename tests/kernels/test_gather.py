"""Gathers and scatters against numpy; indices out of range are harmless."""

from __future__ import annotations

import numpy as np
import pytest
from operands import check, floats, plain

from enginesmith.kernels.gather import cpu
from enginesmith.kernels.gather.problem import GatherProblem

DTYPES = ["float32", "int64", "bool"]
RNG = np.random.default_rng(0)


def data(dtype):
    return (floats(1, 4, 5, 6) * 50).astype(dtype)


def gather(kind, x, index, expected, updates=(), **fields):
    operands = [plain(x.shape, str(x.dtype)), plain(index.shape, str(index.dtype))]
    operands += [plain(u.shape, str(u.dtype)) for u in (*updates, expected)]
    problem = GatherProblem(tuple(operands), kind=kind, **fields)
    check(cpu, problem, [x, index, *updates], expected, targets=["avx2"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(dtype, axis):
    x = data(dtype)
    for shape in ((), (3,), (2, 3), (0,)):
        index = RNG.integers(-x.shape[axis], x.shape[axis], shape)
        gather("gather", x, index, np.take(x, index, axis=axis), axis=axis)
    index = RNG.integers(-x.shape[axis], x.shape[axis], x.shape).astype(np.int32)
    expected = np.take_along_axis(x, index, axis)
    gather("gather_elements", x, index, expected, axis=axis)


def test_gather_nd():
    x = data("float32")
    index = np.stack([RNG.integers(-4, 4, 7), RNG.integers(0, 5, 7)], -1)
    gather("gather_nd", x, index, x[index[:, 0], index[:, 1]])
    index = RNG.integers(0, 5, (4, 2, 1))
    expected = np.stack([x[n][index[n, :, 0]] for n in range(4)])
    gather("gather_nd", x, index, expected, batch_dims=1)


def test_out_of_range_reads_zeros():
    x, index = data("float32"), np.array([0, 9, -7, 2, 2**62, -(2**62)])
    inside = (index >= -4) & (index < 4)
    expected = np.where(inside[:, None, None], x[np.clip(index, -4, 3)], np.float32(0))
    gather("gather", x, index, expected)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_nd(reduction):
    combine = {"none": lambda a, b: b, "add": np.add, "mul": np.multiply, "max": np.maximum,
               "min": np.minimum}[reduction]  # fmt: skip
    x, updates = data("int64"), RNG.integers(-9, 9, (4, 6))
    index = np.array([[0, 1], [3, -1], [0, 1], [9, 0]])  # one twice, one out of range
    expected = x.copy()
    for (i, j), u in zip(index[:3], updates, strict=False):
        expected[i, j] = combine(expected[i, j], u)
    gather("scatter_nd", x, index, expected, [updates], reduction=reduction)


def test_scatter_elements():
    x, index = data("float32"), RNG.integers(-5, 5, (2, 3, 6))
    updates, expected = floats(2, *index.shape), x.copy()
    for at in np.ndindex(*index.shape):
        expected[at[0], index[at], at[2]] = updates[at]
    gather("scatter_elements", x, index, expected, [updates], axis=1)


def test_sizes_at_run_time():
    problem = GatherProblem(
        (plain(("d0", 6)), plain(("d1",), "int64"), plain(("d1", 6))), (9, 3), kind="gather"
    )
    for n in (0, 1, 5):
        x, index = floats(1, 4, 6), RNG.integers(-4, 4, n)
        check(cpu, problem, [x, index], x[index], (4, n), targets=["avx2"])
