"""Pointwise kernels against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import BORDER, TARGETS, blocked, check, floats, permuted, plain, spread

from enginesmith.ir.expr import Arg, Call, Cast, Const, call, evaluate, relu
from enginesmith.kernels.base import Operand
from enginesmith.kernels.pointwise import cpu
from enginesmith.kernels.pointwise.problem import PointwiseProblem

GATED = call("mul", call("sigmoid", call("add", Arg(0), Arg(1))), Arg(0))


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [a.astype(np.float64) for a in arrays]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_broadcast(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 16, 37]), max_size=4)))
    given_shape = tuple(data.draw(st.sampled_from([1, n])) for n in shape)
    order = data.draw(st.permutations(range(len(shape))))
    a, b = floats(1, *shape), floats(2, *given_shape)
    problem = PointwiseProblem(
        (permuted(shape, order), spread(shape, given_shape), plain(shape)), expr=GATED
    )
    expected = evaluate(GATED, wide(a, b))
    isa = data.draw(st.sampled_from(list(TARGETS)))
    check(cpu, problem, [a, np.broadcast_to(b, shape)], expected, tolerance=1e-6, targets=[isa])


@pytest.mark.parametrize("shape", [(2, 20, 5, 7), (1, 16, 3, 3), (1, 3, 1, 1), (0, 5, 2, 2)])
@pytest.mark.parametrize("halo", [(0, 0, 0, 0), BORDER])
@pytest.mark.parametrize("isa", TARGETS)
def test_blocked_with_a_value_per_channel(shape, halo, isa):
    lanes, each = TARGETS[isa].lanes, (shape[0], shape[1], 1, 1)
    a, b = floats(1, *shape), floats(2, *each)
    operands = (
        blocked(shape, lanes), blocked(shape, lanes, given=each),
        Operand("float32", shape, (0,) * 4), blocked(shape, lanes, halo),
    )  # fmt: skip
    expr = call("add", GATED, Arg(2))  # not 0 at 0: lanes past the last channel must be cleared
    inputs = [a, np.broadcast_to(b, shape), np.broadcast_to(np.float32(1.5), shape)]
    expected = evaluate(expr, wide(*inputs))
    problem = PointwiseProblem(operands, expr=expr)
    check(cpu, problem, inputs, expected, tolerance=1e-6, targets=[isa])


@pytest.mark.parametrize("n", [0, 1, 7])
def test_sizes_at_run_time(n):
    shape = ("d0", 3, "2*d0+1")
    real = (n, 3, 2 * n + 1)
    a, b = floats(1, *real), floats(2, 3, 1)
    problem = PointwiseProblem(
        (plain(shape), Operand("float32", shape, (0, 1, 0)), plain(shape)), (5,), expr=GATED
    )
    expected = evaluate(GATED, wide(a, np.broadcast_to(b, real)))
    check(cpu, problem, [a, np.broadcast_to(b, real)], expected, (n,), 1e-6)


def test_output_with_gaps():
    a = floats(1, 4, 9)
    problem = PointwiseProblem((plain((4, 9)), plain((4, 9), strides=(30, 3))), expr=relu(Arg(0)))
    check(cpu, problem, [a], np.maximum(a, 0))


def test_integers_and_bools():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-50, 50, (6, 9)), rng.integers(1, 5, (9,))
    expr = Call("lt", (Call("mod", (Arg(0), Arg(1))), Const(2, "int64")))
    problem = PointwiseProblem(
        (plain((6, 9), "int64"), spread((6, 9), (9,), "int64"), plain((6, 9), "bool")), expr=expr
    )
    check(cpu, problem, [a, np.broadcast_to(b, (6, 9))], np.mod(a, b) < 2)


def test_casts_between_types():
    a = floats(3, 40) * 100
    expr = Cast("int32", call("mul", Arg(0), 2.0))
    problem = PointwiseProblem((plain((40,)), plain((40,), "int32")), expr=expr)
    check(cpu, problem, [a], (a * 2).astype(np.int32))


def test_why_not():
    target = TARGETS["avx512"]
    mixed = PointwiseProblem((plain((1, 16, 2, 2)), blocked((1, 16, 2, 2), 16)), expr=Arg(0))
    assert "plain and no scalar" in (cpu.why_not(mixed, target) or "")
    ranks = PointwiseProblem((plain((2,)), plain((1, 2))), expr=Arg(0))
    assert "rank" in (cpu.why_not(ranks, target) or "")
