"""Products and convolutions by mma.sync, on the emulator, against float64."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from tests.cuda_kernels import run_family
from tests.kernels.conv_cases import reference

from enginesmith.ir.expr import Arg, Expr, call, evaluate, relu
from enginesmith.kernels.base import Operand, Size, add, dense_strides, mul, value_of
from enginesmith.kernels.conv import mma as conv_mma
from enginesmith.kernels.conv.problem import ACCUMULATOR, ConvProblem
from enginesmith.kernels.matmul import mma as matmul_mma
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.tile_mma import Shape
from enginesmith.kernels.tile_shapes import TILES
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

TARGET = Target("cuda", "sm_90")
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 3e-6}
"""Of the largest result."""

SMALL = Shape(32, 32, (1, 2, 1), 64, 3)
SHAPES = [
    SMALL,
    Shape(64, 32, (2, 1, 2), 128, 2, 2, True),
    Shape(32, 64, (1, 2, 2), 64, 4, 3, False),
    Shape(64, 64, (2, 2, 1), 64, 3, 4, True),
]
BIAS = relu(call("add", Arg(0), Arg(1)))
RESIDUAL = relu(call("add", call("add", Arg(0), Arg(1)), Arg(2)))


def inputs(problem: Any, slots: tuple[int, ...]) -> list[np.ndarray]:
    """Random numbers for all inputs; broadcast axes hold one."""
    rng = np.random.default_rng(zlib.crc32(repr(problem).encode()))
    arrays = []
    for o in problem.operands[:-1]:
        sizes = zip(o.shape, o.strides, strict=True)
        shape = [1 if s == 0 else value_of(n, slots) for n, s in sizes]
        dtype = np.dtype(bfloat16 if o.dtype == "bfloat16" else o.dtype)
        arrays.append(rng.standard_normal(shape).astype(dtype))
    return arrays


def check(
    family: Any, problem: Any, shape: Shape, slots: tuple[int, ...] = (), isa: str = "sm_90"
) -> None:
    """The emulated result is that of float64, to the precision of the types."""
    target = Target("cuda", isa)
    arrays = inputs(problem, slots)
    (y,) = run_family(family, problem, shape.tactic, target, arrays, slots)
    wide = [
        np.broadcast_to(a.astype(np.float64), [value_of(n, slots) for n in o.shape])
        for a, o in zip(arrays, problem.operands, strict=False)
    ]
    if isinstance(problem, ConvProblem):
        expected = reference(problem, wide, slots)
    else:
        expected = evaluate(problem.epilogue, [wide[0] @ wide[1], *wide[2:]])
    expected = np.broadcast_to(expected, y.shape)
    worst = max(TOLERANCE[problem.operands[i].dtype] for i in (0, -1))
    error = np.abs(y.astype(np.float64) - expected).max(initial=0)
    assert error <= worst * np.abs(expected).max(initial=1e-9)


# -- convolution ----------------------------------------------------------------------------------


def last(shape: Sequence[Size], wider: int = 0) -> tuple[Size, ...]:
    """Strides of channels-last memory, of a slice out of `wider` more channels."""
    _, c, h, w = shape
    pixel = add(c, wider)
    return (mul(h, w, pixel), 1, mul(w, pixel), pixel)


def conv(
    n: Size, ic: int, h: Size, w: Size, oc: int, kernel: int | tuple[int, int] = 1,
    stride: int = 1, pads: int | tuple[int, int, int, int] = 0, dilation: int = 1,
    groups: int = 1, *, dtype: str = "float16", y_dtype: str = "", plain: bool = False,
    wider: tuple[int, int] = (0, 0), extras: Sequence[str] = ("bias",), epilogue: Expr = BIAS,
    prologue: Expr | None = None, hint: tuple[int, ...] = (), alignment: int = 64,
) -> ConvProblem:  # fmt: skip
    """Channels-last unless `plain`; `wider`: x and y are slices of so many more channels."""
    kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    pads = pads if isinstance(pads, tuple) else (pads,) * 4

    def out(size: Size, k: int, p: int) -> Size:
        if isinstance(size, str):  # k == 1 + p and stride 1
            return size
        return (size + p - (k - 1) * dilation - 1) // stride + 1

    shape = (n, oc, out(h, kh, pads[0] + pads[2]), out(w, kw, pads[1] + pads[3]))

    def value(shape: tuple[Size, ...], dtype: str, wider: int = 0) -> Operand:
        strides = dense_strides(shape) if plain else last(shape, wider)
        return Operand(dtype, shape, strides, alignment=alignment)

    weights = (oc, ic // groups, kh, kw)
    kinds = {
        "bias": Operand(dtype, (1, oc, 1, 1), (0, 1, 0, 0), constant=True),
        "residual": value(shape, dtype, wider[1]),
        "gate": Operand("float32", (n, oc, 1, 1), (oc, 1, 0, 0)),
        "turned": Operand(dtype, shape, dense_strides(shape)),
        "scalar": Operand("float32", (1,), (0,)),
        "mask": Operand("bool", (n, 1, *shape[2:]), (mul(*shape[2:]), 0, shape[3], 1)),
        "scale": Operand(dtype, (1, ic, 1, 1), (0, 1, 0, 0), constant=True),
        "shift": Operand("float32", (1, ic, 1, 1), (0, 1, 0, 0), constant=True),
        "input gate": Operand(dtype, (n, ic, 1, 1), (ic, 1, 0, 0)),
    }
    operands = (
        value((n, ic, h, w), dtype, wider[0]),
        Operand(dtype, weights, dense_strides(weights), constant=True),
        *(kinds[e] for e in extras),
        value(shape, y_dtype or dtype, wider[1]),
    )
    return ConvProblem(
        operands, hint, strides=(stride, stride), pads=pads, dilations=(dilation, dilation),
        groups=groups, epilogue=epilogue, prologue=prologue,
    )  # fmt: skip


def planes(problem: ConvProblem) -> ConvProblem:
    """The result is row-major, whatever the order of the input."""
    *rest, y = problem.operands
    return replace(problem, operands=(*rest, replace(y, strides=dense_strides(y.shape))))


GATED = call("mul", call("sigmoid", call("add", Arg(0), Arg(1))), call("add", Arg(2), Arg(3)))
SCALED = relu(call("add", call("mul", Arg(0), Arg(2)), Arg(3)))

CONVS = {
    "3x3": conv(1, 32, 7, 9, 40, 3, 1, 1),
    "residual": conv(2, 48, 5, 6, 48, 3, 1, 1, extras=("bias", "residual"), epilogue=RESIDUAL),
    "1x1": conv(1, 72, 6, 7, 24, extras=(), epilogue=ACCUMULATOR),
    "1x1 strided": conv(2, 40, 9, 7, 32, 1, 2),
    "3x3 strided": conv(1, 16, 11, 12, 24, 3, 2, (0, 1, 2, 0)),
    "dilated": conv(1, 24, 9, 9, 32, 3, 1, 2, dilation=2),
    "asymmetric": conv(1, 8, 8, 9, 16, (1, 5), 1, (0, 3, 0, 1)),
    "no pads": conv(1, 16, 8, 9, 16, (3, 2)),
    "padded 1x1": conv(1, 16, 4, 5, 16, 1, 1, 1),
    "4 channels at once": conv(1, 20, 6, 6, 24, 3, 1, 1),
    "2 channels at once": conv(1, 6, 6, 6, 18, 3, 1, 1),
    "odd channels": conv(1, 5, 6, 6, 7, 3, 1, 1),
    "one channel": conv(2, 16, 6, 6, 1, 3, 1, 1),
    "3 channels": conv(1, 3, 12, 11, 16, 7, 2, 3),
    "unaligned": conv(1, 16, 6, 6, 16, 3, 1, 1, alignment=2),
    "plain": conv(2, 12, 6, 7, 16, 3, 1, 1, plain=True, extras=("bias", "residual"),
                  epilogue=RESIDUAL),
    "slices": conv(1, 16, 6, 7, 24, 3, 1, 1, wider=(8, 16), extras=("bias", "residual"),
                   epilogue=RESIDUAL),
    "odd slices": conv(1, 16, 6, 7, 24, wider=(4, 2), extras=("bias", "residual"),
                       epilogue=RESIDUAL),
    "groups": conv(1, 128, 6, 7, 64, 3, 1, 1, groups=2),
    "merged groups": conv(1, 32, 6, 7, 48, 3, 1, 1, groups=8),
    "depthwise": conv(1, 48, 6, 7, 48, 3, 1, 1, groups=48),
    "gate": conv(2, 16, 5, 5, 24, extras=("bias", "gate", "scalar"), epilogue=GATED),
    "turned": conv(2, 16, 5, 5, 24, extras=("bias", "turned"), epilogue=RESIDUAL),
    "mask": conv(2, 16, 5, 5, 24, extras=("bias", "mask"),
                 epilogue=call("where", Arg(2), Arg(0), Arg(1))),
    "float32": conv(1, 20, 7, 7, 40, 3, 1, 1, dtype="float32"),
    "float32, odd": conv(1, 3, 7, 7, 10, 3, 2, 1, dtype="float32"),
    "bfloat16": conv(1, 32, 7, 7, 40, 3, 1, 1, dtype="bfloat16"),
    "float32 result": conv(1, 32, 6, 7, 24, y_dtype="float32"),
    "prologue": conv(2, 40, 5, 6, 24, extras=("bias", "scale", "shift"), prologue=SCALED),
    "prologue strided": conv(2, 20, 5, 6, 24, 1, 2, extras=("bias", "input gate"),
                             prologue=call("mul", Arg(0), Arg(2))),
    "prologue float32": conv(2, 20, 5, 6, 24, extras=("bias", "scale", "shift"), prologue=SCALED,
                             dtype="float32"),
    "prologue, odd": conv(2, 7, 5, 6, 24, extras=("bias", "scale", "shift"), prologue=SCALED),
    "planes": planes(conv(2, 16, 6, 5, 2, 3, 1, 1, y_dtype="float32")),
    "planes, one channel": planes(conv(3, 16, 6, 5, 1, y_dtype="float32")),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_conv(name: str) -> None:
    check(conv_mma, CONVS[name], SHAPES[list(CONVS).index(name) % 4])


@pytest.mark.parametrize("slots", [(1, 5, 6), (3, 4, 4), (0, 5, 6)])
def test_runtime_sizes(slots: tuple[int, ...]) -> None:
    problem = conv("d0", 16, "d1", "d2", 24, 3, 1, 1, hint=(1, 5, 6),
                   extras=("bias", "residual"), epilogue=RESIDUAL)  # fmt: skip
    for shape in SHAPES[1:3]:
        check(conv_mma, problem, shape, slots)


# -- products -------------------------------------------------------------------------------------


def product(
    a: Operand, b: Operand, *extras: Operand, dtype: str = "", hint: tuple[int, ...] = (),
    epilogue: Expr | None = None,
) -> MatMulProblem:  # fmt: skip
    batch = [n if m == 1 else m for n, m in zip(a.shape[:-2], b.shape[:-2], strict=True)]
    shape = (*batch, a.shape[-2], b.shape[-1])
    y = Operand(dtype or a.dtype, shape, dense_strides(shape))
    default = BIAS if len(extras) == 1 else RESIDUAL if extras else ACCUMULATOR
    return MatMulProblem((a, b, *extras, y), hint, epilogue=epilogue or default)


def array(*shape: Size, dtype: str = "float16", turned: bool = False, **more: Any) -> Operand:
    """Dense; the last two axes the other way round in memory if `turned`."""
    strides = dense_strides(shape)
    if turned:
        *front, m, n = shape
        strides = dense_strides((*front, n, m))
        strides = (*strides[:-2], strides[-1], strides[-2])
    return Operand(dtype, shape, strides, **more)


def repeated(operand: Operand, *axes: int) -> Operand:
    """The operand with strides 0 along `axes`."""
    strides = tuple(0 if i in axes else s for i, s in enumerate(operand.strides))
    return Operand(operand.dtype, operand.shape, strides, constant=operand.constant)


F = {"dtype": "float32"}
PRODUCTS = {
    "weights": product(array(40, 72), array(72, 48, constant=True),
                       repeated(array(1, 48, constant=True), 0)),
    "odd weights": product(array(5, 37), array(37, 19, constant=True)),
    "float32 weights": product(array(33, 40, **F), array(40, 24, constant=True, **F)),
    "batch is rows": product(array(3, 10, 40), array(1, 40, 24, constant=True)),
    "batch of weights": product(array(3, 10, 40), array(3, 40, 24, constant=True)),
    "scores": product(array(2, 3, 20, 32), array(2, 3, 32, 24, turned=True)),
    "values": product(array(2, 3, 20, 24), array(2, 3, 24, 32)),
    "turned a": product(array(2, 24, 40, turned=True), array(2, 40, 32)),
    "all turned": product(array(2, 24, 40, turned=True), array(2, 40, 32, turned=True)),
    "odd": product(array(2, 9, 11), array(2, 11, 13)),
    "odd turned": product(array(2, 9, 11, turned=True), array(2, 11, 13, turned=True)),
    "float32": product(array(2, 20, 24, **F), array(2, 24, 40, **F)),
    "float32 turned": product(array(2, 20, 24, turned=True, **F),
                              array(2, 24, 40, turned=True, **F)),
    "float32 odd": product(array(2, 9, 11, turned=True, **F), array(2, 11, 13, **F)),
    "repeated a": product(repeated(array(3, 10, 40), 0), array(3, 40, 24)),
    "repeated b": product(array(3, 10, 40), repeated(array(1, 40, 24), 0)),
    "interactions": product(array(4, 27, 16), array(4, 16, 27, turned=True)),
    "bias per row": product(array(20, 24), array(24, 16), repeated(array(20, 1), 1)),
    "transposed result": MatMulProblem(
        (array(20, 24), array(24, 16), array(20, 16, turned=True), array(20, 16, turned=True)),
        epilogue=BIAS),
    "scattered": MatMulProblem(
        (Operand("float16", (10, 12), (50, 3)), Operand("float16", (12, 14), (2, 40)),
         Operand("float16", (10, 14), (70, 5)))),
    "bfloat16": product(array(20, 24, dtype="bfloat16"), array(24, 16, dtype="bfloat16")),
    "float32 result": product(array(20, 24), array(24, 16, constant=True), dtype="float32"),
    "no depth": product(array(5, 0), array(0, 16)),
    "no rows": product(array(0, 8), array(8, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name: str) -> None:
    check(matmul_mma, PRODUCTS[name], SHAPES[list(PRODUCTS).index(name) % 4])


@pytest.mark.parametrize("slots", [(3, 5), (1, 8), (0, 2)])
def test_runtime_rows(slots: tuple[int, ...]) -> None:
    problem = product(array("d0", "d1", 24), array(1, 24, 32, constant=True), hint=(2, 4))
    check(matmul_mma, problem, SHAPES[2], slots)


@pytest.mark.parametrize("number", range(len(TILES)))
def test_tile(number: int) -> None:
    """Every shape of tiles, with tails in rows and columns."""
    rows, columns, warps = TILES[number]
    dtype = ("float16", "float32")[number % 2]
    b = array(40, columns + 8, dtype=dtype, constant=number % 3 > 0, turned=number % 3 == 0)
    problem = product(array(rows + 3, 40, dtype=dtype), b)
    check(matmul_mma, problem, Shape(rows, columns, warps, 128, 2))


def test_many_rows_through_registers() -> None:
    """Element by element, a thread copies 64 rows."""
    check(conv_mma, CONVS["plain"], Shape(128, 16, (4, 1, 1), 128, 2))
    check(conv_mma, CONVS["prologue, odd"], Shape(128, 16, (4, 1, 1), 128, 2))


def test_older() -> None:
    """Without clusters."""
    check(conv_mma, CONVS["residual"], SHAPES[2], isa="sm_80")


def test_candidates_make_sense() -> None:
    """Few tiles are cut along k; much work gets large tiles."""
    few = conv(1, 256, 14, 14, 256, 3, 1, 1)
    many = conv(64, 256, 14, 14, 256, 3, 1, 1)
    first = conv_mma.tactics(few, TARGET)[0]
    assert first["split"] * first["wk"] > 1
    assert first["bm"] * first["bn"] <= 64 * 64
    large = conv_mma.tactics(many, TARGET)[0]
    assert large["split"] == 1
    assert large["bm"] * large["bn"] >= 128 * 128
    assert all(t["cluster"] == 0 for t in conv_mma.tactics(few, Target("cuda", "sm_80")))


def test_one_text_for_many_sizes() -> None:
    """Layers of one form share a kernel."""
    texts = {
        conv_mma.emit(conv(1, c, s, s, 2 * c, 3, 1, 1), SMALL.tactic, TARGET).text
        for c, s in ((64, 56), (128, 28), (256, 14))
    }
    assert len(texts) == 1


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_compiles(isa: str, tmp_path: Path) -> None:
    target, cache = Target("cuda", isa), ArtifactCache(tmp_path)
    sources = [
        conv_mma.emit(CONVS[name], shape.tactic, target)
        for name in ("residual", "prologue", "float32")
        for shape in (SHAPES[2], *(SHAPES[1:2] if isa != "sm_80" else ()))
    ]
    sources += [
        matmul_mma.emit(PRODUCTS[name], SMALL.tactic, target)
        for name in ("all turned", "float32 turned", "odd")
    ]
    for source in sources:
        assert compile_cubin(source.code, target, cache)
