"""Matrix products against numpy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from operands import TARGETS, check, floats, permuted, plain, spread

from enginesmith.ir.expr import Arg, call, relu
from enginesmith.kernels.base import Operand
from enginesmith.kernels.matmul import cpu
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.matmul.tiled import shape_of

BIAS_RESIDUAL = relu(call("add", call("add", Arg(0), Arg(1)), Arg(2)))
SHAPES = [
    ((), 1, 7, 5), ((), 3, 64, 100), ((), 29, 33, 67), ((2, 3), 15, 8, 33), ((2,), 1, 16, 48),
    ((0,), 3, 4, 5), ((), 5, 0, 7), ((3,), 17, 70, 16),
]  # fmt: skip


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("form", ["whole", "one b", "transposed b"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, constant, form, shape):
    batch, m, k, n = shape
    rank = len(batch) + 2
    a, b = floats(1, *batch, m, k), floats(2, *batch, k, n)
    bias, residual = floats(3, n), floats(4, *batch, m, n)
    right = plain(b.shape)
    if form == "one b":
        b = np.broadcast_to(floats(2, k, n), b.shape)
        right = spread(b.shape, (k, n))
    elif form == "transposed b":
        right = permuted(b.shape, (*range(rank - 2), rank - 1, rank - 2))
    y = plain(residual.shape)
    problem = MatMulProblem(
        (plain(a.shape), replace(right, constant=constant), spread(y.shape, (n,)), y, y),
        epilogue=BIAS_RESIDUAL,
    )
    expected = np.maximum(a.astype(np.float64) @ b + bias + residual, 0)
    inputs = [a, b, np.broadcast_to(bias, residual.shape), residual]
    check(cpu, problem, inputs, expected, tolerance=3e-6, targets=[isa])


@pytest.mark.parametrize("isa", TARGETS)
def test_sizes_at_run_time(isa):
    problem = MatMulProblem(
        (plain(("d0", "d1")), plain(("d1", "d2")), plain(("d0", "d2"))), (10, 20, 30)
    )
    for m, k, n in ((1, 5, 7), (13, 20, 50), (40, 33, 64), (0, 3, 3)):
        a, b = floats(1, m, k), floats(2, k, n)
        expected = a.astype(np.float64) @ b
        check(cpu, problem, [a, b], expected, (m, k, n), 3e-6, targets=[isa])


def test_batch_at_run_time_with_packed_b():
    y = ("d0", 7, 33)
    b = spread(("d0", 20, 33), (20, 33))
    problem = MatMulProblem((plain(("d0", 7, 20)), replace(b, constant=True), plain(y)), (2,))
    assert shape_of(problem).batch == ()  # the batch is folded into rows
    weights = floats(2, 20, 33)
    for n in (0, 1, 5):
        a = floats(1, n, 7, 20)
        given = np.broadcast_to(weights, (max(n, 1), 20, 33))
        check(cpu, problem, [a, given], a.astype(np.float64) @ weights, (n,), 3e-6)


def test_strided_operands():
    a, b, bias = floats(1, 9, 12), floats(2, 12, 21), floats(3, 9)
    problem = MatMulProblem(
        (permuted(a.shape, (1, 0)), Operand("float32", b.shape, (50, 2)), spread((9, 21), (9, 1)),
         permuted((9, 21), (1, 0))),
        epilogue=call("mul", Arg(0), Arg(1)),
    )  # fmt: skip
    expected = (a.astype(np.float64) @ b) * bias[:, None]
    inputs = [a, b, np.broadcast_to(bias[:, None], (9, 21))]
    check(cpu, problem, inputs, expected, tolerance=3e-6)


@pytest.mark.parametrize("dtype", ["int64", "int32", "float64"])
def test_other_types(dtype):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, s).astype(dtype) for s in ((2, 3, 4), (2, 4, 5)))
    problem = MatMulProblem(tuple(plain(s, dtype) for s in ((2, 3, 4), (2, 4, 5), (2, 3, 5))))
    check(cpu, problem, [a, b], a @ b)


def test_why_not():
    mixed = MatMulProblem((plain((2, 3)), plain((3, 4), "float64"), plain((2, 4))))
    assert "float64" in (cpu.why_not(mixed, TARGETS["avx2"]) or "")
