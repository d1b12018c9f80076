"""Squeeze-and-excitation in the emulator, against numpy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from operands import floats, permuted, plain
from tests.kernels.cuda.checks import Case, check, compile_all

from enginesmith.ir.expr import Arg, Expr, call, evaluate
from enginesmith.kernels.base import Operand
from enginesmith.kernels.squeeze_excite import cuda
from enginesmith.kernels.squeeze_excite.problem import SqueezeExciteProblem
from enginesmith.toolchain.cache import ArtifactCache

RELU = call("max", Arg(0), 0.0)
SIGMOID = call("sigmoid", Arg(0))
BIAS = call("max", call("add", Arg(0), Arg(1)), 0.0)
GATE = call("sigmoid", call("add", call("mul", Arg(0), Arg(2)), Arg(1)))
LAST, FIRST = (0, 2, 3, 1), (0, 1, 2, 3)


def case(
    n: int, c: int, r: int, o: int, h: int, w: int, dtype: str = "float16", *,
    order: tuple[int, ...] = LAST, biases: bool = False, symbolic: bool = False,
    wider: int = 0,
) -> Case:  # fmt: skip
    """biases: `inner` and `outer` have operands of their own; wider: x is a slice of so many more
    channels."""
    shape = (n, c, h, w)
    x = permuted(shape, order, dtype)
    if wider:
        x = Operand(dtype, shape, (h * w * (c + wider), 1, w * (c + wider), c + wider))
    weights = [replace(plain(s, dtype), constant=True) for s in ((r, c, 1, 1), (o, r, 1, 1))]
    given = [x, *weights]
    inputs = [floats(1, *shape), floats(2, r, c, 1, 1) / 3, floats(3, o, r, 1, 1) / 3]
    inner: Expr = RELU
    outer: Expr = SIGMOID
    if biases:
        inner, outer = BIAS, GATE
        for seed, size, batch in ((4, r, 1), (5, o, 1), (6, o, n)):
            each = (0 if batch == 1 else size, 1, 0, 0)
            given.append(Operand("float32", (batch, size, 1, 1), each))
            inputs.append(floats(seed, batch, size, 1, 1))
    y = plain((n, o, 1, 1), dtype)
    hint = ()
    if symbolic:
        hint = (n, h, w)
        given[0] = Operand(dtype, ("d0", c, "d1", "d2"), (f"d1*d2*{c}", 1, f"d2*{c}", c))
        y = Operand(dtype, ("d0", o, 1, 1), (o, 1, 1, 1))
    problem = SqueezeExciteProblem(
        (*given, y), hint, inner=inner, outer=outer, extras=int(biases)
    )  # fmt: skip

    def expected(x: np.ndarray, w1: np.ndarray, w2: np.ndarray, *extras: np.ndarray) -> np.ndarray:
        pooled = x.astype(np.float64).mean((2, 3), keepdims=True)
        first = evaluate(inner, [np.einsum("nc,rc->nr", pooled[:, :, 0, 0], w1[:, :, 0, 0])
                                 [:, :, None, None], *extras[: int(biases)]])  # fmt: skip
        second = np.einsum("nr,or->no", np.asarray(first)[:, :, 0, 0], w2[:, :, 0, 0])
        return np.asarray(evaluate(outer, [second[:, :, None, None], *extras[int(biases) :]]))

    return Case(cuda, problem, inputs, expected, hint)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "sizes",
    [(1, 16, 8, 16, 9, 7), (2, 72, 24, 72, 4, 5), (3, 5, 3, 7, 3, 3), (1, 40, 10, 24, 1, 2)],
)
def test_sizes(sizes: tuple[int, ...], dtype: str) -> None:
    check(case(*sizes, dtype))


def test_more_channels_than_threads_load_at_once() -> None:
    check(case(1, 2304, 40, 600, 2, 3))
    check(case(1, 300, 4, 4, 2, 3, order=FIRST))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("order", [LAST, FIRST])
def test_strides_and_operands(biases: bool, order: tuple[int, ...]) -> None:
    check(case(2, 24, 6, 24, 6, 5, order=order, biases=biases))


def test_a_slice_of_more_channels() -> None:
    check(case(2, 24, 6, 24, 6, 5, wider=8))
    check(case(2, 24, 6, 24, 6, 5, wider=3))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_sizes_at_run_time(n: int) -> None:
    check(case(n, 24, 6, 24, 5, 4, symbolic=True))


def test_compiles(tmp_path) -> None:
    compile_all([case(1, 96, 4, 96, 56, 56)], ArtifactCache(tmp_path))
