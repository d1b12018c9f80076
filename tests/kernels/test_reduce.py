"""Reductions against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import BORDER, TARGETS, blocked, check, floats, permuted, plain

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels.base import Operand
from enginesmith.kernels.reduce import cpu
from enginesmith.kernels.reduce.problem import ReduceProblem

NUMPY = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "prod": np.prod}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_any_axes(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 5, 33, 140]), min_size=1, max_size=3)))
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    kind = data.draw(st.sampled_from(list(NUMPY)))
    keep = data.draw(st.booleans())
    isa = data.draw(st.sampled_from(list(TARGETS)))
    order = data.draw(st.permutations(range(len(shape))))
    x = floats(1, *shape) if kind != "prod" else 1 + 0.1 * floats(1, *shape)
    expected = NUMPY[kind](x.astype(np.float64), axis=axes, keepdims=keep)
    problem = ReduceProblem(
        (permuted(shape, order), plain(expected.shape)), kind=kind, axes=axes,
        epilogue=call("mul", Arg(0), 2.0),
    )  # fmt: skip
    check(cpu, problem, [x], 2 * np.asarray(expected), tolerance=2e-6, targets=[isa])


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("shape", [(2, 20, 5, 7), (1, 16, 33, 31), (1, 3, 1, 1), (0, 3, 2, 2)])
def test_global_pooling(isa, shape):
    lanes = TARGETS[isa].lanes
    x, small = floats(1, *shape), (*shape[:2], 1, 1)
    expected = 1 + x.astype(np.float64).mean((2, 3), keepdims=True)
    for halo in ((0, 0, 0, 0), BORDER):
        problem = ReduceProblem(
            (blocked(shape, lanes, halo), blocked(small, lanes)), kind="mean", axes=(2, 3),
            epilogue=call("add", Arg(0), 1.0),
        )  # fmt: skip
        check(cpu, problem, [x], expected, tolerance=1e-6, targets=[isa])


def test_prologue_and_two_inputs():
    a, b = floats(1, 6, 50), floats(2, 6, 50)
    difference = call("sub", Arg(0), Arg(1))
    problem = ReduceProblem(
        (plain((6, 50)), permuted((6, 50), (1, 0)), plain((6,))), kind="sum", axes=(1,),
        prologue=call("mul", difference, difference), epilogue=call("sqrt", Arg(0)),
    )  # fmt: skip
    check(cpu, problem, [a, b], np.linalg.norm(a - b, axis=1), tolerance=1e-6)


def test_sums_of_many_stay_exact():
    x = 1 + 0.1 * floats(1, 1 << 18)
    problem = ReduceProblem((plain(x.shape), plain(())), kind="sum", axes=(0,))
    check(cpu, problem, [x], np.asarray(x.astype(np.float64).sum()), tolerance=3e-7)


@pytest.mark.parametrize("kind", ["sum", "max", "prod"])
def test_integers(kind):
    x = np.random.default_rng(0).integers(-9, 9, (4, 5, 6))
    problem = ReduceProblem((plain(x.shape, "int64"), plain((4, 6), "int64")), kind=kind, axes=(1,))
    check(cpu, problem, [x], NUMPY[kind](x, axis=1))


def test_sizes_at_run_time():
    shape = ("d0", "d1", 4)
    problem = ReduceProblem(
        (plain(shape), Operand("float32", ("d0", 4), (4, 1))), (2, 20), kind="mean", axes=(1,)
    )
    for n, m in ((0, 5), (3, 77), (1, 1)):
        x = floats(1, n, m, 4)
        check(cpu, problem, [x], x.astype(np.float64).mean(1), (n, m), 1e-6)


def test_empty_sum_is_zero():
    problem = ReduceProblem((plain((2, 0, 3)), plain((2, 3))), kind="sum", axes=(1,))
    check(cpu, problem, [floats(1, 2, 0, 3)], np.zeros((2, 3), np.float32))
