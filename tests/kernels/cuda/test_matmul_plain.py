"""Matrix products that are no tiles for tensor cores, on the emulator, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ml_dtypes import bfloat16
from tests.cuda_kernels import run_family

from enginesmith.ir.expr import Arg, Call, Cast, Expr, call, evaluate, relu
from enginesmith.kernels.base import Operand, Size, Tactic, dense_strides, value_of
from enginesmith.kernels.matmul import gemv, simple
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

TARGET = Target("cuda", "sm_90")
EPSILON = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-5, "float64": 1e-12}
BIAS = call("add", Arg(0), Arg(1))


def operand(
    shape: Sequence[Size], dtype: str, strides: Sequence[Size] | None = None, *,
    constant: bool = False,
) -> Operand:  # fmt: skip
    shape = tuple(shape)
    return Operand(dtype, shape, tuple(strides or dense_strides(shape)), constant=constant)


def product(
    batch: tuple[Size, ...], m: Size, k: Size, n: Size, dtype: str = "float16", *,
    a: Sequence[Size] | None = None, b: Sequence[Size] | None = None, constant: bool = False,
    bias: bool = False, epilogue: Expr = Arg(0), y_dtype: str | None = None,  # noqa: B008
    hint: tuple[int, ...] = (),
) -> MatMulProblem:  # fmt: skip
    """a, b: strides; b is one matrix for all of the batch where it is constant."""
    if constant and b is None:
        b = (*(0 for _ in batch), n, 1)
    extras = [Operand(dtype, (*batch, m, n), (*(0 for _ in batch), 0, 1))] if bias else []
    return MatMulProblem(
        (operand((*batch, m, k), dtype, a), operand((*batch, k, n), dtype, b, constant=constant),
         *extras, operand((*batch, m, n), y_dtype or dtype)),
        hint, epilogue=epilogue,
    )  # fmt: skip


def check(
    family: ModuleType, problem: MatMulProblem, tactics: Sequence[Tactic] | None = None,
    slots: tuple[int, ...] = (),
) -> None:  # fmt: skip
    """Every tactic gives numpy's result, computed in float64 (integers: in their own type)."""
    rng = np.random.default_rng(len(str(problem)))
    inputs, exact = [], []
    for o in problem.operands[:-1]:
        shape = [
            1 if s == 0 else value_of(n, slots) for n, s in zip(o.shape, o.strides, strict=True)
        ]
        full = [value_of(n, slots) for n in o.shape]
        if o.dtype.startswith(("int", "uint")):
            x = rng.integers(0, 9, shape).astype(o.dtype)
        else:
            x = rng.standard_normal(shape).astype(bfloat16 if o.dtype == "bfloat16" else o.dtype)
        inputs.append(np.broadcast_to(x, full))
        exact.append(inputs[-1].astype(np.float64) if x.dtype.kind not in "iu" else inputs[-1])
    expected = evaluate(problem.epilogue, [exact[0] @ exact[1], *exact[2:]])
    y = problem.operands[-1].dtype
    for t in family.tactics(problem, TARGET) if tactics is None else tactics:
        (got,) = run_family(family, problem, t, TARGET, inputs, slots)
        assert got.shape == expected.shape
        if y not in EPSILON:
            np.testing.assert_array_equal(got, expected, err_msg=str(t))
            continue
        error = np.abs(got.astype(np.float64) - expected).max(initial=0)
        assert error <= EPSILON[y] * max(1.0, np.abs(expected).max(initial=0)), (str(t), error)


PRODUCTS = [
    product((), 17, 33, 20, bias=True, epilogue=relu(BIAS)),
    product((2, 3), 5, 8, 6, "float32", a=(240, 40, 1, 5)),
    product((2,), 19, 7, 18, "bfloat16", b=(126, 1, 7)),
    product((), 3, 5, 4, "int64"),
    product((), 3, 5, 4, "int8", y_dtype="int32", epilogue=Cast("int32", Arg(0))),
    product((), 6, 40, 5, "float64"),
    product((0,), 3, 4, 5),
    product((), 3, 0, 5, "float32"),
    product(("d0",), "d1", "d2", 9, hint=(2, 18, 21)),
    product((3,), 8, 16, 8, constant=True),
]


@pytest.mark.parametrize("problem", PRODUCTS, ids=range(len(PRODUCTS)))
def test_simple(problem: MatMulProblem) -> None:
    check(simple, problem, slots=problem.hint)


@pytest.mark.parametrize("side", [2, 4])
def test_simple_tiles(side: int) -> None:
    problem = product((2,), 67, 35, 70, bias=True, epilogue=relu(BIAS))
    check(simple, problem, [Tactic("simple", (("rows", side), ("columns", side)))])


VECTORS = [
    product((), 1, 2048, 40, constant=True, bias=True, epilogue=BIAS),
    product((), 3, 100, 37, constant=True, bias=True, epilogue=Call("sigmoid", (BIAS,))),
    product((), 8, 320, 12, "bfloat16", constant=True),
    product((), 2, 73, 9, "float32", a=(1, 2), constant=True),
    product((2,), 3, 64, 10, constant=True),
    product(("d0",), 1, 24, 8, hint=(11,), constant=True, y_dtype="float32"),
    product((), 1, 5000, 5, constant=True),
    product((), 0, 64, 5, constant=True),
]


@pytest.mark.parametrize("problem", VECTORS, ids=range(len(VECTORS)))
def test_gemv(problem: MatMulProblem) -> None:
    check(gemv, problem, slots=problem.hint)


@pytest.mark.parametrize(("lanes", "columns", "rows", "ahead"), [
    (32, 4, 8, 2), (16, 2, 4, 3), (8, 1, 2, 8), (4, 2, 2, 1),
])  # fmt: skip
def test_gemv_forms(lanes: int, columns: int, rows: int, ahead: int) -> None:
    """Tails of rows, columns and k; loops over pieces of k."""
    names = ("lanes", "columns", "rows", "ahead")
    form = Tactic("gemv", tuple(zip(names, (lanes, columns, rows, ahead), strict=True)))
    check(gemv, product((), 7, 1350, 10, constant=True, bias=True, epilogue=BIAS), [form])


def test_why_not() -> None:
    """Reasons name what is missing."""
    assert "constant" in str(gemv.why_not(product((), 1, 8, 8), TARGET))
    assert "rows" in str(gemv.why_not(product((), 64, 8, 8, constant=True), TARGET))
    mixed = MatMulProblem(
        (operand((2, 3), "float16"), operand((3, 4), "int32"), operand((2, 4), "float16"))
    )
    assert "int32" in str(simple.why_not(mixed, TARGET))


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_compiles(isa: str, tmp_path: Path) -> None:
    """NVRTC takes the text of every algorithm."""
    target, cache = Target("cuda", isa), ArtifactCache(tmp_path)
    for family, problem in ((simple, PRODUCTS[0]), (simple, PRODUCTS[3]), (gemv, VECTORS[0]),
                            (gemv, VECTORS[3])):  # fmt: skip
        for t in family.tactics(problem, target):
            assert compile_cubin(family.emit(problem, t, target).code, target, cache)
