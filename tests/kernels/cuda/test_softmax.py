"""Softmax's CUDA kernels in the emulator, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from operands import floats, permuted, plain, spread
from tests.kernels.cuda.checks import Case, check, compile_all

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels.softmax import cuda
from enginesmith.kernels.softmax.problem import SoftmaxProblem
from enginesmith.toolchain.cache import ArtifactCache


def softmax(x: np.ndarray, axis: int, log: bool = False) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(axis, keepdims=True)
    total = np.exp(x).sum(axis, keepdims=True)
    return x - np.log(total) if log else np.exp(x) / total


def case(
    shape: tuple[int, ...], axis: int, dtype: str, *, log: bool = False,
    order: tuple[int, ...] | None = None, output: str = "",
) -> Case:  # fmt: skip
    order = order or tuple(range(len(shape)))
    operands = (permuted(shape, order, dtype), permuted(shape, order, output or dtype))
    problem = SoftmaxProblem(operands, axis=axis, log=log)
    return Case(cuda, problem, [5 * floats(1, *shape)], lambda x: softmax(x, axis, log))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 197), (70, 8), (2, 5, 1000), (3, 1), (0, 7)])
def test_last_axis(shape, dtype):
    check(case(shape, len(shape) - 1, dtype, log=dtype in ("float16", "float64")), 2)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_any_axis(axis, order):
    check(case((3, 20, 5, 6), axis, "float16", order=order, output="float32"), 2)


def test_long_rows():
    check(case((2, 30011), 1, "float16"))


def test_prologue_with_a_broadcast_mask():
    """Scaled scores and a mask with -inf, as attention has them."""
    shape = (2, 3, 5, 64)
    mask = np.where(floats(2, 2, 1, 1, 64) < 1, 0, -np.inf).astype(np.float32)
    problem = SoftmaxProblem(
        (plain(shape, "float16"), spread(shape, mask.shape), plain(shape, "float16")), axis=3,
        prologue=call("add", call("mul", Arg(0), 0.125), Arg(1)),
    )  # fmt: skip
    inputs = [9 * floats(1, *shape), np.broadcast_to(mask, shape)]
    check(Case(cuda, problem, inputs, lambda x, m: softmax(x * 0.125 + m, 3)), 3)


@pytest.mark.parametrize("log", [False, True])
def test_sizes_at_run_time(log):
    problem = SoftmaxProblem(
        (plain(("d0", "d1"), "float16"), plain(("d0", "d1"), "float32")), (4, 300), axis=1, log=log
    )
    for shape in ((4, 300), (1, 1), (0, 5), (7, 33)):
        check(Case(cuda, problem, [floats(1, *shape)], lambda x: softmax(x, 1, log), shape), 2)


def test_compiles(tmp_path):
    cases = [
        case((1200, 197), 1, "float16"), case((8, 50257), 1, "float32", log=True),
        case((1, 19, 64, 128), 1, "bfloat16", order=(0, 2, 3, 1)), case((4, 40), 0, "float64"),
    ]  # fmt: skip
    compile_all(cases, ArtifactCache(tmp_path))
