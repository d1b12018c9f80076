"""Products by cuBLASLt against float64: by the library's stand-in on the emulated GPU, and marked
`cuda` by the library itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.cuda_emulator.cublas import FakeCublasLt
from tests.cuda_emulator.device import EmulatedDevice
from tests.kernels.cuda.library_cases import check, last

from enginesmith.ir.expr import Arg, Call, Const, Expr, call, relu
from enginesmith.kernels.base import (
    Operand,
    Problem,
    Size,
    ceildiv,
    dense_strides,
)
from enginesmith.kernels.conv import cublaslt as conv_cublaslt
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import LibrarySource
from enginesmith.kernels.library_ending import Unfit, ending_of
from enginesmith.kernels.matmul import cublaslt
from enginesmith.kernels.matmul import cuda as matmul_cuda
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cublas, cuda, cudnn

SUM = Arg(0)
BIAS = call("add", Arg(0), Arg(1))
RESIDUAL = call("add", call("add", Arg(0), Arg(1)), Arg(2))
RELU_BIAS = relu(BIAS)


def gelu(x: Expr, bell: Expr) -> Expr:
    return call("mul", call("mul", Const(0.5), x), call("add", bell, 1.0))


def gelu_by_tanh(x: Expr) -> Expr:
    cube = call("mul", call("mul", x, x), x)
    inner = call("add", x, call("mul", Const(0.044715), cube))
    return gelu(x, call("tanh", call("mul", Const(math.sqrt(2 / math.pi)), inner)))


def gelu_by_erf(x: Expr) -> Expr:
    return gelu(x, call("erf", call("mul", x, Const(math.sqrt(0.5)))))


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A GPU with the library."""
    if request.param == "emulated":
        device = EmulatedDevice()
        library = FakeCublasLt(device)
        monkeypatch.setattr(cuda, "cuda_device", lambda ordinal=0: device)
        monkeypatch.setattr(cublas, "library", lambda: library)
    elif (reason := cublas.why_missing()) is not None:
        pytest.skip(reason)
    return Target("cuda", f"sm_{cuda.cuda_device().arch}")


def operand(
    dtype: str, shape: Sequence[Size], strides: Sequence[Size] | None = None, **facts: Any
) -> Operand:
    return Operand(dtype, tuple(shape), tuple(strides or dense_strides(tuple(shape))), **facts)


def product(
    m: Size, k: int, n: Size, dtype: str = "float16", batch: tuple[Size, ...] = (), *,
    a: Sequence[Size] | None = None, b: Sequence[Size] | None = None,
    y: Sequence[Size] | None = None, bias: str = "", residual: Sequence[Size] | None = None,
    epilogue: Expr = SUM, y_dtype: str = "", hint: tuple[int, ...] = (), tf32: bool = False,
) -> MatMulProblem:  # fmt: skip
    """a, b, y, residual: strides. bias: the type of a constant one."""
    out = y_dtype or dtype
    none = (0,) * len(batch)
    extras = [operand(bias, (*batch, m, n), (*none, 0, 1), constant=True)] if bias else []
    if residual is not None:
        extras.append(operand(out, (*batch, m, n), residual or None))
    return MatMulProblem(
        (operand(dtype, (*batch, m, k), a), operand(dtype, (*batch, k, n), b), *extras,
         operand(out, (*batch, m, n), y)),
        hint, epilogue=epilogue, tf32=tf32,
    )  # fmt: skip


PRODUCTS = {
    "float16": product(64, 72, 48),
    "bfloat16": product(40, 24, 56, "bfloat16"),
    "float32": product(33, 17, 29, "float32"),
    "tf32": product(32, 64, 24, "float32", tf32=True),
    "float16 to float32": product(24, 32, 40, y_dtype="float32"),
    "odd sizes": product(37, 19, 23),
    "one row": product(1, 64, 40),
    "one column": product(19, 33, 1, "float32"),
    "one of k": product(7, 1, 9),
    "transposed a": product(24, 40, 16, a=(1, 24)),
    "transposed b": product(24, 40, 16, b=(1, 40)),
    "both transposed": product(13, 21, 11, "bfloat16", a=(1, 13), b=(1, 21)),
    "wider rows": product(24, 40, 16, a=(64, 1), b=(24, 1), y=(40, 1)),
    "batch": product(16, 24, 8, batch=(3,)),
    "batches": product(9, 16, 7, "float32", batch=(2, 3)),
    "batch of one b": product(16, 24, 8, batch=(5,), b=(0, 8, 1)),
    "batch of one b, apart": product(
        16, 24, 8, batch=(5,), a=(500, 24, 1), b=(0, 8, 1), y=(200, 8, 1)
    ),
    "batch of one a": product(16, 24, 8, batch=(3,), a=(0, 24, 1)),
    "heads": product(12, 16, 12, batch=(4,), a=(16, 64, 1), b=(16, 1, 64), y=(144, 12, 1)),
    "bias": product(24, 40, 16, bias="float32", epilogue=BIAS),
    "bias, float32": product(24, 40, 16, "float32", bias="float32", epilogue=BIAS),
    "bias, relu": product(35, 40, 24, bias="float16", epilogue=relu(BIAS)),
    "relu": product(35, 40, 24, "bfloat16", epilogue=relu(Arg(0))),
    "gelu": product(24, 40, 16, epilogue=gelu_by_tanh(Arg(0))),
    "bias, gelu": product(24, 40, 16, "bfloat16", bias="float32", epilogue=gelu_by_tanh(BIAS)),
    "residual": product(24, 40, 16, residual=(), epilogue=BIAS),
    "bias, residual": product(24, 40, 16, bias="float32", residual=(), epilogue=RESIDUAL),
    "residual of another pitch": product(
        24, 40, 16, bias="float32", residual=(80, 1), epilogue=relu(RESIDUAL)
    ),
    "batch, residual": product(
        8, 16, 24, batch=(3,), residual=(0, 24, 1), epilogue=call("add", Arg(1), Arg(0))
    ),
    "scaled": product(16, 24, 32, batch=(2,), epilogue=call("mul", Arg(0), Const(0.125))),
    "divided": product(16, 24, 32, "float32", epilogue=call("div", Arg(0), Const(8.0))),
    "split sums": product(8, 16384, 8),
    "symbolic": product(
        "d0", 24, 40, batch=("d1",), b=(0, 40, 1), bias="float32", residual=(), epilogue=RESIDUAL,
        hint=(17, 3),
    ),
    "symbolic batch": product("d0", 16, "d0", batch=("d1",), hint=(13, 3)),
}  # fmt: skip


@pytest.mark.parametrize("problem", PRODUCTS.values(), ids=PRODUCTS)
def test_results(problem: MatMulProblem, target: Target) -> None:
    assert cublaslt.why_not(problem, target) is None
    check(cublaslt, problem, target, problem.hint)


def test_gelu_is_precise(target: Target) -> None:
    """Near zero, too, where an approximation of tanh would show."""
    x = call("mul", Arg(0), Const(0.25))
    problem = product(64, 32, 48, epilogue=gelu_by_tanh(x))
    check(cublaslt, problem, target, (), lambda y: 1e-4 + 2.0**-10 * np.abs(y))


@pytest.mark.parametrize("slots", [(1, 1), (8, 2), (31, 5)])
def test_other_sizes(slots: tuple[int, ...], target: Target) -> None:
    check(cublaslt, PRODUCTS["symbolic"], target, slots)
    check(cublaslt, PRODUCTS["symbolic batch"], target, slots)


def conv(
    x: Sequence[Size], channels: int, dtype: str = "float16", *, stride: int = 1, wider: int = 0,
    residual: bool = False, epilogue: Expr = RELU_BIAS, hint: tuple[int, ...] = (), **facts: Any,
) -> ConvProblem:  # fmt: skip
    """By one pixel, with a bias. wider: of which x and the residual are slices."""
    n, c, h, w = x
    down, right = (ceildiv(size, stride) for size in (h, w))
    y = (n, channels, down, right)
    vector = Operand("float32", (1, channels, 1, 1), (0, 1, 0, 0), constant=True)
    extras = [vector, Operand(dtype, y, last(y, wider), alignment=16)][: 1 + residual]
    weights = Operand(dtype, (channels, c, 1, 1), (c, 1, 1, 1), constant=True)
    return ConvProblem(
        (Operand(dtype, tuple(x), last(x, wider), alignment=16), weights, *extras,
         Operand(dtype, y, last(y))),
        hint, strides=(stride, stride), epilogue=epilogue, **facts,
    )  # fmt: skip


CONVS = {
    "bias, relu": conv((2, 24, 6, 5), 32),
    "bfloat16": conv((1, 16, 7, 7), 24, "bfloat16"),
    "float32": conv((2, 8, 4, 4), 12, "float32"),
    "residual": conv((2, 24, 6, 5), 32, residual=True, epilogue=relu(RESIDUAL)),
    "slices": conv((2, 24, 6, 5), 32, wider=8, residual=True, epilogue=relu(RESIDUAL)),
    "stride": conv((2, 16, 8, 6), 24, stride=2),
    "odd stride": conv((1, 16, 7, 9), 24, stride=2),
    "planes": replace(
        conv((2, 16, 8, 6), 24),
        operands=(
            replace(conv((2, 16, 8, 6), 24).x, strides=(768, 48, 6, 1)),
            *conv((2, 16, 8, 6), 24).operands[1:],
        ),
    ),
    "symbolic": conv(("d0", 24, "d1", "d2"), 32, hint=(2, 5, 3)),
}


@pytest.mark.parametrize("problem", CONVS.values(), ids=CONVS)
def test_convolutions_by_one_pixel(problem: ConvProblem, target: Target) -> None:
    assert conv_cublaslt.why_not(problem, target) is None
    check(cublaslt, problem, target, problem.hint)


def test_other_convolutions() -> None:
    x = (1, 8, 4, 4)
    problem = conv(x, 8)
    planes = replace(problem.y, strides=(128, 16, 4, 1))
    for refused, reason in [
        (conv(x, 8, pads=(1, 1, 1, 1)), "more than one pixel"),
        (conv(x, 8, prologue=relu(Arg(0))), "with a prologue"),
        (conv(x, 8, transposed=True), "transposed"),
        (replace(problem, operands=(*problem.operands[:-1], planes)), "rows of the result"),
        (PRODUCTS["float16"], "not a convolution"),
    ]:
        found = conv_cublaslt.why_not(refused, Target("cuda", "sm_90"))
        assert found is not None and reason in found


CLIPPED = call("min", relu(Arg(0)), 6.0)
REFUSED = {
    "no product": (Problem(()), "not a matrix product"),
    "int8": (product(8, 8, 8, "int8", y_dtype="int32"), "factors of int8"),
    "mixed": (product(8, 8, 8, "float32", y_dtype="float16"), "a result of float16 from"),
    "nothing to sum": (product(8, 0, 8), "of nothing"),
    "k unknown": (product(8, "d0", 8, hint=(8,)), "unknown length"),  # type: ignore[arg-type]
    "uneven batch": (
        product(8, 8, 8, batch=(2, 3), a=(192, 64, 8, 1), b=(400, 64, 8, 1)), "not evenly spaced"
    ),
    "sparse a": (product(8, 8, 8, a=(16, 2)), "columns of the first operand"),
    "sparse b": (product(8, 8, 8, b=(16, 2)), "columns of the second operand"),
    "y by columns": (product(8, 8, 8, y=(1, 8)), "rows of the result"),
    "windows": (product(8, 8, 8, a=(4, 1)), "overlap or repeat"),
    "gelu in float32": (
        product(8, 8, 8, "float32", epilogue=gelu_by_tanh(Arg(0))), "GELU in float32"
    ),
    "erf": (product(8, 8, 8, epilogue=gelu_by_erf(Arg(0))), "epilogue"),
    "clipped": (product(8, 8, 8, epilogue=CLIPPED), "epilogue"),
    "relu before the residual": (
        product(8, 8, 8, residual=(), epilogue=call("add", relu(Arg(0)), Arg(1))), "epilogue"
    ),
    "product of extras": (
        product(8, 8, 8, residual=(), epilogue=call("mul", Arg(0), Arg(1))), "epilogue"
    ),
    "twice the residual": (
        product(8, 8, 8, residual=(), epilogue=call("add", BIAS, Arg(1))), "epilogue"
    ),
    "bias per row": (
        product(8, 8, 8, residual=(1, 0), epilogue=BIAS), "what is added to it, are not dense"
    ),
    "residual of float32": (
        MatMulProblem(
            (*product(8, 8, 8).operands[:2], operand("float32", (8, 8)),
             operand("float16", (8, 8))),
            epilogue=BIAS,
        ),
        "no bias of the result's type",
    ),
    "bias that is computed in float32": (
        MatMulProblem(
            (*product(8, 8, 8).operands[:2], operand("float32", (8, 8), (0, 1)),
             operand("float16", (8, 8))),
            epilogue=BIAS,
        ),
        "no bias of the result's type",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("problem", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_serve(problem: Problem, reason: str) -> None:
    found = cublaslt.why_not(problem, Target("cuda", "sm_90"))
    assert found is not None and reason in found


def test_it_needs_a_gpu_of_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "cuda_device", lambda ordinal=0: EmulatedDevice(90))
    problem = PRODUCTS["float16"]
    assert cublaslt.why_not(problem, Target("cuda", "sm_90")) is None
    reason = cublaslt.why_not(problem, Target("cuda", "sm_100"))
    assert reason is not None and "no GPU of sm_100" in reason


def test_its_text_says_what_it_computes(target: Target) -> None:
    problem = PRODUCTS["bias, residual"]
    source = matmul_cuda.emit(problem, cublaslt.tactics(problem, target)[1], target)
    assert isinstance(source, LibrarySource)
    for part in ("algorithm 1 ", "d = 1 * op(a) @ op(b) + c + bias", "a: float16, 16 x 40"):
        assert part in source.code
    other = matmul_cuda.emit(problem, cublaslt.tactics(problem, target)[2], target)
    assert source.name != other.name


def test_activations_are_known_by_their_values() -> None:
    x = call("add", call("mul", Const(2.0), Arg(0)), Arg(1))
    for epilogue, name in ((x, "none"), (relu(x), "relu"), (gelu_by_tanh(x), "gelu")):
        ending = ending_of(epilogue, 1, cublas.ACTIVATIONS.keys())
        assert (ending.activation, ending.scale, ending.extras) == (name, 2.0, (1,))
    leaky = Call("where", (Call("lt", (Arg(0), Const(0.0))), call("mul", Arg(0), 1e-3), Arg(0)))
    with pytest.raises(Unfit):
        ending_of(leaky, 0, cublas.ACTIVATIONS.keys())
    every = {"none", *cudnn.ACTIVATIONS}
    for epilogue, name in ((gelu_by_erf(x), "gelu_erf"), (call("tanh", x), "tanh"),
                           (call("sigmoid", x), "sigmoid"),
                           (call("mul", x, call("sigmoid", x)), "swish")):  # fmt: skip
        assert ending_of(epilogue, 1, every).activation == name
        with pytest.raises(Unfit):
            ending_of(epilogue, 1, cublas.ACTIVATIONS.keys())
