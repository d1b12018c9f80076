"""Reductions' CUDA kernels in the emulator, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import floats, permuted, plain, spread
from tests.kernels.cuda.checks import TARGET, Case, check, compile_all

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels.base import Operand
from enginesmith.kernels.reduce import cuda
from enginesmith.kernels.reduce.problem import ReduceProblem
from enginesmith.toolchain.cache import ArtifactCache

NUMPY = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "prod": np.prod}
NHWC = (0, 2, 3, 1)


def global_pool(shape: tuple[int, ...], dtype: str, order: tuple[int, ...] = NHWC) -> Case:
    """With a doubled result, so that there is an epilogue."""
    small = (*shape[:2], 1, 1)
    problem = ReduceProblem(
        (permuted(shape, order, dtype), permuted(small, order, dtype)), kind="mean", axes=(2, 3),
        epilogue=call("mul", Arg(0), 2.0),
    )  # fmt: skip
    inputs = [1 + floats(1, *shape)]
    return Case(cuda, problem, inputs, lambda x: 2 * x.mean((2, 3), np.float64, keepdims=True))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_any_axes(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 5, 16, 33]), min_size=1, max_size=4)))
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    kind, keep = data.draw(st.sampled_from(list(NUMPY))), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16", "float64"]))
    order = data.draw(st.permutations(range(len(shape))))
    x = floats(1, *shape) if kind != "prod" else 1 + 0.1 * floats(1, *shape)
    result = NUMPY[kind](x, axis=axes, keepdims=keep).shape
    problem = ReduceProblem(
        (permuted(shape, order, dtype), plain(result, "float32")), kind=kind, axes=axes
    )

    def expected(x: np.ndarray) -> np.ndarray:
        return np.asarray(NUMPY[kind](x.astype(np.float64), axis=axes, keepdims=keep))

    check(Case(cuda, problem, [x], expected), 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(1, 480, 14, 14), (3, 20, 5, 7), (0, 8, 2, 2)])
@pytest.mark.parametrize("order", [NHWC, (0, 1, 2, 3)])
def test_global_pooling(shape, dtype, order):
    check(global_pool(shape, dtype, order), 2)


def test_few_channels_of_a_large_image():
    """Blocks of a cluster share the pixels."""
    case = global_pool((1, 16, 40, 50), "float16")
    assert any(t["s"] > 1 for t in cuda.tactics(case.problem, TARGET))
    check(case)


def test_prologue_and_two_inputs():
    a, b = floats(1, 6, 50), floats(2, 6, 1)
    difference = call("sub", Arg(0), Arg(1))
    problem = ReduceProblem(
        (permuted((6, 50), (1, 0)), spread((6, 50), (6, 1)), plain((6,), "float16")), kind="sum",
        axes=(1,), prologue=call("mul", difference, difference), epilogue=call("sqrt", Arg(0)),
    )  # fmt: skip
    inputs = [a, np.broadcast_to(b, a.shape)]
    check(Case(cuda, problem, inputs, lambda a, b: np.linalg.norm(a - b, axis=1)), 2)


def test_everything():
    """One sum of many."""
    problem = ReduceProblem((plain((1 << 17,)), plain(())), kind="sum", axes=(0,))
    x = 1 + 0.1 * floats(1, 1 << 17)
    check(Case(cuda, problem, [x], lambda x: np.asarray(x.sum(dtype=np.float64))), 2)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8", "bool"])
@pytest.mark.parametrize("kind", NUMPY)
def test_integers(kind, dtype):
    """Sums wrap as numpy's do; a mean is truncated."""
    x = np.random.default_rng(0).integers(0 if dtype in ("uint8", "bool") else -9, 9, (4, 5, 24))
    x = x.astype(dtype)
    if dtype == "bool" and kind not in ("max", "min"):
        return
    for axis in (1, 2) if dtype in ("int32", "int8") else (2,):
        result = NUMPY[kind](x, axis=axis)
        result = np.trunc(result) if kind == "mean" else result
        problem = ReduceProblem(
            (plain(x.shape, dtype), plain(result.shape, dtype)), kind=kind, axes=(axis,)
        )
        check(Case(cuda, problem, [x], lambda x, y=result: y), 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_not_a_number(kind, dtype):
    x = floats(1, 6, 40)
    x[1, 7], x[2, 3], x[4] = np.nan, np.inf, -np.inf
    for axis in (0, 1):
        problem = ReduceProblem(
            (plain(x.shape, dtype), plain(x.max(axis).shape, dtype)), kind=kind, axes=(axis,)
        )
        with np.errstate(invalid="ignore"):
            check(Case(cuda, problem, [x], lambda x, a=axis: NUMPY[kind](x, axis=a)), 1)


def test_sizes_at_run_time():
    shape = ("d0", "d1", 4)
    problem = ReduceProblem(
        (plain(shape), Operand("float32", ("d0", 4), (4, 1))), (2, 20), kind="mean", axes=(1,)
    )
    for n, m in ((0, 5), (3, 77), (1, 1)):
        check(Case(cuda, problem, [floats(1, n, m, 4)], lambda x: x.mean(1), (n, m)), 2)


def test_empty_sum_is_zero():
    problem = ReduceProblem((plain((2, 0, 3)), plain((2, 3))), kind="sum", axes=(1,))
    check(Case(cuda, problem, [floats(1, 2, 0, 3)], lambda x: x.sum(1)), 1)


def test_compiles(tmp_path):
    integers = ReduceProblem((plain((4, 30), "int8"), plain((4,), "int8")), kind="max", axes=(1,))
    cases = [
        global_pool((1, 2048, 7, 7), "float16"), global_pool((1, 96, 56, 56), "bfloat16"),
        Case(cuda, integers, [], np.copy),
    ]  # fmt: skip
    compile_all(cases, ArtifactCache(tmp_path))
