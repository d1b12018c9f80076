"""Normalization's CUDA kernels in the emulator, against numpy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from operands import floats, permuted, plain, spread
from tests.kernels.cuda.checks import TARGET, Case, check, compile_all

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels import cuda_rows, cuda_rows_search
from enginesmith.kernels.base import Operand
from enginesmith.kernels.normalization import cuda
from enginesmith.kernels.normalization.problem import NormalizationProblem
from enginesmith.toolchain.cache import ArtifactCache

AFFINE = call("add", call("mul", Arg(0), Arg(1)), Arg(2))


def normalized(x: np.ndarray, axes: tuple[int, ...], rms: bool = False) -> np.ndarray:
    x = x.astype(np.float64)
    x = x if rms else x - x.mean(axes, keepdims=True)
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + 1e-5)


def layer_norm(
    shape: tuple[int, ...], dtype: str, *, residual: bool = False, rms: bool = False,
    symbolic: bool = False, weights: str = "",
) -> Case:  # fmt: skip
    """Over the last axis; symbolic: the first axis is d0 and the last d1."""
    rank = len(shape)
    given = ("d0", *shape[1:-1], "d1") if symbolic else shape
    count = 2 if residual else 1
    affine = Operand(weights or dtype, given, (0,) * (rank - 1) + (1,), constant=True)
    problem = NormalizationProblem(
        (*[plain(given, dtype)] * count, affine, affine, plain(given, dtype)),
        (shape[0], shape[-1]) if symbolic else (), axes=(rank - 1,), eps=1e-5, inputs=count,
        rms=rms, prologue=call("add", Arg(0), Arg(1)) if residual else Arg(0), epilogue=AFFINE,
    )  # fmt: skip
    extras = [np.broadcast_to(floats(seed, shape[-1]), shape) for seed in (3, 4)]
    inputs = [*(3 + floats(seed, *shape) for seed in range(count)), *extras]

    def expected(*values: np.ndarray) -> np.ndarray:
        *terms, scale, bias = values
        return normalized(sum(terms[1:], terms[0]), (rank - 1,), rms) * scale + bias

    slots = (shape[0], shape[-1]) if symbolic else ()
    return Case(cuda, problem, inputs, expected, slots)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (37, 768), (2, 3, 777), (4, 1, 64), (0, 3, 5)])
def test_last_axis(shape, dtype):
    check(layer_norm(shape, dtype), 2)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("symbolic", [False, True])
def test_residual_and_sizes_at_run_time(rms, symbolic):
    case = layer_norm((5, 2, 96), "float16", residual=True, rms=rms, symbolic=symbolic,
                      weights="float32")  # fmt: skip
    check(case, 3)


def test_long_rows():
    check(layer_norm((2, 20000), "float16"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 3, 1)])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (1, 2, 3), (0, 2)])
def test_any_axes_and_strides(axes, order, dtype):
    """Instance, channel and group normalization; a value per channel besides."""
    shape = (2, 24, 6, 7)
    operand = permuted(shape, order, dtype)
    each = spread(shape, (24, 1, 1), "float32")
    problem = NormalizationProblem((operand, each, each, operand), axes=axes, eps=1e-5,
                                   epilogue=AFFINE)  # fmt: skip
    extras = [np.broadcast_to(floats(seed, 24, 1, 1), shape) for seed in (2, 3)]
    inputs = [5 + floats(1, *shape), *extras]
    check(Case(cuda, problem, inputs, lambda x, a, b: normalized(x, axes) * a + b), 2)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(150, 96), (41, 768), (23, 1024), (75, 40)])
def test_rows_in_turn(rows, length, residual, symbolic, monkeypatch):
    """Few blocks, each of which takes several groups of rows."""
    monkeypatch.setattr(cuda_rows, "MULTIPROCESSORS", 1)
    monkeypatch.setattr(cuda_rows_search, "MULTIPROCESSORS", 1)
    case = layer_norm((rows, length), "float16", residual=residual, weights="float32")
    if symbolic:
        problem = case.problem
        operands = tuple(
            replace(o, shape=("d0", *o.shape[1:])) for o in problem.operands
        )  # fmt: skip
        problem = replace(problem, operands=operands, hint=(rows,))
        case = replace(case, problem=problem, slots=(rows,))
    looped = [t for t in cuda.tactics(case.problem, TARGET) if t.get("loop")]
    assert looped
    check(case, len(looped))


def test_no_cancellation():
    """A mean 100 times the deviation: the square of the mean would drown the variance."""
    x = (100 + floats(1, 3, 512)).astype(np.float32)
    problem = NormalizationProblem((plain(x.shape), plain(x.shape)), axes=(1,), eps=1e-5)
    check(Case(cuda, problem, [x], lambda x: normalized(x, (1,))), 3)


def test_compiles(tmp_path):
    image = permuted((1, 32, 64, 64), (0, 2, 3, 1), "float16")
    cases = [
        layer_norm((197, 768), "float16"), layer_norm((4, 768), "bfloat16", symbolic=True),
        Case(cuda, NormalizationProblem((image, image), axes=(2, 3), eps=1e-5), [], np.copy),
    ]  # fmt: skip
    compile_all(cases, ArtifactCache(tmp_path))
