"""Convolutions that are no tiles for tensor cores, on the emulator, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from tests.cuda_kernels import run_family
from tests.kernels.conv_cases import reference

from enginesmith.ir.expr import Arg, Expr, call, relu
from enginesmith.kernels.base import Operand, Size, Tactic, add, dense_strides, mul
from enginesmith.kernels.conv import (
    banded_cuda,
    depthwise_cuda,
    direct_cuda,
    gathered,
    gemv_cuda,
    grouped_cuda,
    stem_cuda,
)
from enginesmith.kernels.conv.problem import ACCUMULATOR, ConvProblem
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

TARGET = Target("cuda", "sm_90")
EPSILON = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-5, "float64": 1e-12}
BIAS = call("add", Arg(0), Arg(1))


def lay(
    shape: Sequence[Size], dtype: str = "float16", *, plain: bool = False, more: int = 0,
    given: Sequence[int] | None = None, **changes: Any,
) -> Operand:  # fmt: skip
    """A channels-last value, or a row-major one; `more` channels lie between pixels. given: its own
    shape where it is broadcast."""
    n, c, h, w = given or shape
    pixel = add(c, more)
    strides = (mul(h, w, pixel), 1, mul(w, pixel), pixel)
    if plain:
        strides = dense_strides((n, c, h, w))
    if given:
        strides = tuple(
            0 if g == 1 != s else t for g, s, t in zip(given, shape, strides, strict=True)
        )  # type: ignore[assignment]
    return Operand(dtype, tuple(given or shape), strides, **changes)


def conv(
    n: Size, ic: int, h: Size, w: Size, oc: int, kernel: int | tuple[int, int], stride: int = 1,
    pads: int | tuple[int, int, int, int] = 0, dilation: int = 1, groups: int = 1, *,
    transposed: bool = False, more: tuple[int, int] = (0, 0), extras: Sequence[str] = (),
    epilogue: Expr = ACCUMULATOR, prologue: Expr | None = None, dtype: str = "float16",
    x: dict[str, Any] | None = None, y: dict[str, Any] | None = None, constant: bool = True,
    w_dtype: str | None = None, hint: tuple[int, ...] = (),
) -> ConvProblem:  # fmt: skip
    """extras: of "bias", "residual", "gate", "scale", "input gate". more: output padding."""
    kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    pads = pads if isinstance(pads, tuple) else (pads,) * 4

    def out(size: Size, k: int, p: int, past: int) -> Size:
        reach = (k - 1) * dilation + 1
        if transposed:
            return add(mul(stride, size), reach - stride - p + past)
        if isinstance(size, int):
            return (size + p - reach) // stride + 1
        return f"({size}+{p + stride - reach})//{stride}"

    oh, ow = out(h, kh, pads[0] + pads[2], more[0]), out(w, kw, pads[1] + pads[3], more[1])
    shape = (ic, oc // groups, kh, kw) if transposed else (oc, ic // groups, kh, kw)
    result = lay((n, oc, oh, ow), **{"dtype": dtype, **(y or {})})
    kinds = {
        "bias": Operand(dtype, (1, oc, 1, 1), (0, 1, 0, 0), constant=True),
        "residual": lay((n, oc, oh, ow), dtype, more=8),
        "gate": Operand(dtype, (n, oc, 1, 1), (oc, 1, 0, 0)),
        "scale": Operand(dtype, (1, ic, 1, 1), (0, 1, 0, 0), constant=True),
        "input gate": Operand(dtype, (n, ic, 1, 1), (ic, 1, 0, 0)),
    }
    weights = Operand(w_dtype or dtype, shape, dense_strides(shape), constant=constant)
    return ConvProblem(
        (lay((n, ic, h, w), **{"dtype": dtype, **(x or {})}), weights,
         *(kinds[e] for e in extras), result),
        hint, strides=(stride, stride), pads=pads, dilations=(dilation, dilation), groups=groups,
        transposed=transposed, epilogue=epilogue, prologue=prologue,
    )  # fmt: skip


def random_inputs(problem: ConvProblem, slots: tuple[int, ...] = ()) -> list[np.ndarray]:
    """What the operands can hold, scaled so that results are about 1."""
    from enginesmith.kernels.base import value_of

    rng = np.random.default_rng(len(str(problem)))
    found = []
    for i, o in enumerate(problem.operands[:-1]):
        shape = [value_of(s, slots) for s in o.shape]
        x = rng.standard_normal(shape)
        if i == 1:
            x /= np.sqrt(max(1, problem.group_in * shape[2] * shape[3]))
        found.append(x.astype(bfloat16 if o.dtype == "bfloat16" else o.dtype))
    return found


def check(
    family: ModuleType, problem: ConvProblem, tactics: Sequence[Tactic] | None = None,
    slots: tuple[int, ...] = (),
) -> None:  # fmt: skip
    inputs = random_inputs(problem, slots)
    expected = reference(problem, [x.astype(np.float64) for x in inputs], slots)
    for t in family.tactics(problem, TARGET) if tactics is None else tactics:
        (got,) = run_family(family, problem, t, TARGET, inputs, slots)
        assert got.shape == expected.shape
        error = np.abs(got.astype(np.float64) - expected).max(initial=0)
        bound = EPSILON[problem.y.dtype] * max(1.0, np.abs(expected).max(initial=0))
        assert error <= bound, (str(t), error)


PLAIN = {"plain": True}
CONVOLUTIONS = [
    conv(2, 16, 6, 7, 24, 3, 1, 1, extras=["bias", "residual"],
         epilogue=relu(call("add", BIAS, Arg(2)))),
    conv(1, 5, 9, 8, 7, (2, 3), 2, (0, 1, 2, 1), 2, x=PLAIN, y=PLAIN),
    conv(1, 12, 5, 6, 18, 3, 1, 1, groups=3, dtype="bfloat16"),
    conv(2, 3, 10, 9, 8, 3, 2, 1, x={"plain": True, "dtype": "float32"}, extras=["gate"],
         epilogue=call("mul", Arg(0), Arg(1))),
    conv(1, 6, 4, 5, 3, 3, dtype="float64", pads=1, constant=False),
    conv(2, 16, 3, 4, 8, 1, extras=["input gate", "bias"],
         prologue=call("mul", Arg(0), Arg(1)), epilogue=call("add", Arg(0), Arg(2))),
    conv(1, 9, 6, 6, 9, 3, 1, 1, groups=9, x={"more": 3}, y={"more": 1}, dtype="float32"),
    conv(0, 8, 4, 4, 8, 3),
    conv(1, 8, 5, 4, 12, 2, 2, transposed=True, extras=["bias"], epilogue=BIAS),
    conv(1, 6, 4, 5, 5, 3, 2, 1, transposed=True, more=(1, 1), dtype="float32", y=PLAIN),
    conv(1, 8, 4, 5, 12, (3, 2), 3, (1, 0, 2, 1), 2, 2, transposed=True, x=PLAIN,
         constant=False),
]  # fmt: skip


@pytest.mark.parametrize("problem", CONVOLUTIONS, ids=range(len(CONVOLUTIONS)))
def test_direct(problem: ConvProblem) -> None:
    check(direct_cuda, problem)


@pytest.mark.parametrize("transposed", [False, True])
def test_direct_forms(transposed: bool) -> None:
    """Tiles of every form with tails, at runtime sizes."""
    problem = conv("d0", 16, "d1", "d2", 20, 3, 2, 1, groups=2, transposed=transposed,
                   extras=["bias"], epilogue=relu(BIAS), hint=(2, 5, 6))  # fmt: skip
    forms = [
        Tactic("direct", (("oc", oc), ("px", px), ("cv", cv), ("last", last)))
        for oc, px, cv, last in ((8, 2, 8, 1), (4, 4, 1, 0), (2, 1, 4, 1), (1, 4, 8, 0))
    ]
    check(direct_cuda, problem, forms, (2, 5, 6))


def depthwise(n: Size, c: int, h: Size, w: Size, kernel: Any, **changes: Any) -> ConvProblem:
    return conv(n, c, h, w, c, kernel, groups=c, **changes)


DEPTHWISE = [
    depthwise(2, 16, 9, 11, 3, pads=1, extras=["bias"], epilogue=relu(BIAS)),
    depthwise(1, 24, 12, 10, 5, stride=2, pads=2, extras=["residual"], epilogue=BIAS),
    depthwise(1, 40, 7, 7, 7, pads=3, extras=["gate"], epilogue=call("mul", Arg(0), Arg(1))),
    depthwise(1, 12, 9, 8, (3, 2), dilation=2, pads=(1, 2, 2, 0), dtype="bfloat16"),
    depthwise(1, 8, 6, 7, 3, pads=1, dtype="float32", x={"more": 4}),
    depthwise("d0", 10, "d1", "d2", 3, stride=2, pads=1, hint=(2, 6, 9), w_dtype="float32"),
    depthwise(0, 16, 6, 7, 3),
]


@pytest.mark.parametrize("problem", DEPTHWISE, ids=range(len(DEPTHWISE)))
def test_depthwise(problem: ConvProblem) -> None:
    found = depthwise_cuda.tactics(problem, TARGET)
    assert found
    check(depthwise_cuda, problem, found[::3], problem.hint)


def test_depthwise_forms() -> None:
    """Forms for large planes, on a small one; the last block of channels is not full."""
    problem = depthwise(1, 40, 13, 18, 7, pads=3, extras=["bias"], epilogue=relu(BIAS))
    forms = []
    for v, ph, pw, cv, sw, sh, shared in (
        (8, 2, 4, 4, 2, 4, 1), (4, 2, 8, 8, 2, 2, 1), (8, 1, 4, 2, 5, 4, 0), (4, 2, 4, 3, 2, 5, 1),
        (2, 1, 3, 16, 3, 1, 1),
    ):  # fmt: skip
        names = ("v", "ph", "pw", "cv", "sw", "sh", "shared")
        values = (v, ph, pw, cv, sw, sh, shared)
        forms.append(Tactic("depthwise", tuple(zip(names, values, strict=True))))
    check(depthwise_cuda, problem, forms)


BANDED = [
    depthwise(2, 16, 9, 11, 3, pads=1, extras=["bias"], epilogue=relu(BIAS)),
    depthwise(1, 40, 7, 7, 7, pads=3, extras=["gate"], epilogue=call("mul", Arg(0), Arg(1))),
    depthwise(3, 8, 7, 7, 5, pads=2, extras=["residual"], epilogue=BIAS),
    depthwise(1, 24, 12, 37, (4, 6), pads=(1, 2, 2, 3), dtype="bfloat16"),
    depthwise(1, 32, 20, 70, 7, pads=3, x={"more": 8}),
    depthwise("d0", 16, "d1", "d2", 3, pads=1, hint=(2, 6, 9)),
    depthwise(0, 16, 6, 7, 3),
    depthwise(2, 16, 5, 6, 9, pads=4, y={"more": 8, "dtype": "float32"}),
    depthwise(1, 16, 9, 9, (1, 2)),
    depthwise(2, 24, 13, 18, 3, stride=2, pads=(1, 1, 0, 0), extras=["bias"], epilogue=relu(BIAS)),
    depthwise(1, 16, 22, 45, 5, stride=2, pads=2, extras=["residual"], epilogue=BIAS),
    depthwise("d0", 16, "d1", "d2", (4, 3), stride=2, pads=1, hint=(3, 14, 14)),
    depthwise(1, 8, 9, 9, 1, stride=2, dtype="bfloat16"),
]


@pytest.mark.parametrize("problem", BANDED, ids=range(len(BANDED)))
def test_banded(problem: ConvProblem) -> None:
    found = banded_cuda.tactics(problem, TARGET)
    assert found
    check(banded_cuda, problem, found[::3], problem.hint)


@pytest.mark.parametrize("across", [1, 2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_banded_forms(across: int, stride: int) -> None:
    """Tiles of every form, not all of them full; several images in a block."""
    problem = depthwise(3, 40, 13 * stride, 21 * stride, 5, stride=stride, pads=2, extras=["bias"],
                        epilogue=relu(BIAS))  # fmt: skip
    names = ("rows", "across", "wide", "high", "images", "vectors", "warps")
    forms = [
        Tactic("banded", tuple(zip(names, (rows, across, wide, high, images, v, 4), strict=True)))
        for rows, wide, high, images, v in ((2, 1, 3, 1, 4), (4, 3, 4, 2, 2), (8, 2, 1, 1, 1))
    ]
    check(banded_cuda, problem, forms)


GATHERED = [
    conv(2, 48, 6, 7, 48, 3, 1, 1, groups=6, extras=["bias"], epilogue=relu(BIAS)),
    conv(1, 32, 9, 8, 32, 3, 2, 1, groups=8, extras=["residual"], epilogue=BIAS),
    conv(1, 48, 5, 6, 48, 3, 1, (1, 0, 2, 1), 2, groups=2, dtype="bfloat16", y=PLAIN),
    conv(1, 64, 5, 6, 128, (1, 3), 1, groups=2, x={"more": 8}),
    conv("d0", 16, "d1", "d2", 16, 3, 1, 1, groups=2, hint=(2, 5, 7)),
    conv(0, 16, 5, 7, 16, 3, 1, 1, groups=2),
    conv(1, 24, 5, 4, 20, 2, 2, transposed=True, extras=["bias"], epilogue=relu(BIAS)),
    conv(2, 16, 5, 6, 40, 3, 2, 1, transposed=True, more=(1, 1)),
    conv(1, 16, 4, 5, 16, (3, 4), 3, (1, 0, 2, 1), groups=2, transposed=True, extras=["gate"],
         epilogue=call("mul", Arg(0), Arg(1))),
    conv(1, 16, 4, 5, 1, 2, 2, transposed=True, y=PLAIN),
]  # fmt: skip


@pytest.mark.parametrize("problem", GATHERED, ids=range(len(GATHERED)))
def test_gathered(problem: ConvProblem) -> None:
    found = gathered.tactics(problem, TARGET)
    assert found
    check(gathered, problem, found[::3], problem.hint)


@pytest.mark.parametrize(("nt", "mt"), [(8, 1), (8, 2), (4, 2), (3, 1), (2, 2)])
def test_gathered_forms(nt: int, mt: int) -> None:
    """Columns dealt out in runs of every length; many steps."""
    form = Tactic("gathered", (("mt", mt), ("nt", nt), ("down", 2), ("across", 2)))
    check(gathered, conv(1, 72, 5, 7, 8 * nt - 4, 2, 2, transposed=True), [form])
    check(gathered, conv(1, 80, 5, 7, 16 * nt, 3, 1, 1, groups=2), [form])


GROUPED = [
    *GATHERED[:2],
    conv(1, 48, 5, 6, 48, 3, 1, (1, 0, 2, 1), 2, groups=2, dtype="bfloat16", y=PLAIN),
    conv(1, 64, 5, 6, 128, (1, 3), 1, groups=4, x={"more": 8}),
    *GATHERED[4:6],
    conv(5, 104, 7, 7, 104, 3, 1, 1, groups=13, extras=["gate"],
         epilogue=call("mul", Arg(0), Arg(1))),
    conv(2, 64, 13, 12, 64, (3, 4), 3, (1, 0, 1, 2), groups=4, extras=["bias"], epilogue=BIAS),
    conv(1, 32, 11, 10, 32, 3, 2, 2, 3, groups=8),
]  # fmt: skip


@pytest.mark.parametrize("problem", GROUPED, ids=range(len(GROUPED)))
def test_grouped(problem: ConvProblem) -> None:
    assert grouped_cuda.why_not(problem, TARGET) is None
    found = grouped_cuda.tactics(problem, TARGET)
    assert found
    check(grouped_cuda, problem, found[::3], problem.hint)


@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_forms(stride: int) -> None:
    """Tiles that don't fit planes and groups; several images in a block."""
    problem = conv(3, 56, 9 * stride, 11 * stride, 56, 3, stride, 1, groups=7, extras=["bias"],
                   epilogue=relu(BIAS))  # fmt: skip
    names = ("high", "wide", "images", "groups", "warps")
    check(grouped_cuda, problem, [
        Tactic("grouped", tuple(zip(names, values, strict=True)))
        for values in ((4, 3, 1, 4, 4), (9, 11, 2, 3, 6), (5, 7, 1, 1, 3), (2, 16, 1, 2, 8))
    ])  # fmt: skip


IMAGE = {"plain": True, "dtype": "float32"}
STEMS = [
    conv(2, 3, 19, 22, 64, 7, 2, 3, x=IMAGE, extras=["bias"], epilogue=relu(BIAS)),
    conv(1, 3, 17, 16, 32, 3, 2, 1, x=IMAGE, extras=["bias"], epilogue=BIAS),
    conv(1, 3, 15, 14, 20, 3, 1, 1, x={"dtype": "float32"}, dtype="bfloat16"),
    conv(2, 3, 16, 24, 96, 4, 4, x=IMAGE, extras=["bias"], epilogue=BIAS),
    conv(1, 3, 32, 48, 136, 16, 16, x=IMAGE),
    conv(1, 1, 9, 20, 8, (3, 5), 2, (0, 1, 2, 3), 2, x={"plain": True}, extras=["residual"],
         epilogue=BIAS),
    conv(1, 4, 12, 11, 16, 3, 1, (1, 1, 0, 0), y=PLAIN),
    conv("d0", 3, "d1", "d2", 40, 3, 2, 1, x=IMAGE, hint=(2, 9, 18)),
    conv(0, 3, 16, 24, 32, 3, 2, 1, x=IMAGE),
]  # fmt: skip


@pytest.mark.parametrize("problem", STEMS, ids=range(len(STEMS)))
def test_stem(problem: ConvProblem) -> None:
    found = stem_cuda.tactics(problem, TARGET)
    assert found
    check(stem_cuda, problem, found[::4], problem.hint)


def test_stem_forms() -> None:
    """Tiles for large planes, on a small one; weights in shared memory and not."""
    for mt, nt, down, across, tw in ((4, 4, 2, 3, 14), (1, 8, 4, 1, 8), (2, 8, 1, 2, 7)):
        names = ("mt", "nt", "down", "across", "tw")
        form = Tactic("stem", tuple(zip(names, (mt, nt, down, across, tw), strict=True)))
        check(stem_cuda, conv(1, 3, 33, 35, 70, 7, 2, 3, x=IMAGE, extras=["bias"], epilogue=BIAS),
              [form])  # fmt: skip
        check(stem_cuda, conv(1, 3, 24, 40, 70, 8, 8, x=IMAGE), [form])


VECTORS = [
    conv(1, 48, 1, 1, 12, 1, extras=["bias"], epilogue=relu(BIAS)),
    conv(3, 100, 1, 1, 40, 1, extras=["input gate", "scale", "bias"],
         prologue=relu(call("add", call("mul", Arg(0), Arg(1)), Arg(2))),
         epilogue=call("add", Arg(0), Arg(3))),
    conv("d0", 24, 1, 1, 16, 1, hint=(2,), x={"more": 8}, y={"plain": True}),
]  # fmt: skip


@pytest.mark.parametrize("problem", VECTORS, ids=range(len(VECTORS)))
def test_gemv(problem: ConvProblem) -> None:
    check(gemv_cuda, problem, slots=problem.hint)


def test_why_not() -> None:
    """Reasons name what is missing."""
    assert "channels" in str(depthwise_cuda.why_not(depthwise(1, 8, 6, 6, 3, x=PLAIN), TARGET))
    for reason, problem in (
        ("eights", depthwise(1, 12, 6, 6, 3)),
        ("eights", depthwise(1, 16, 6, 6, 3, x={"more": 4})),
        ("strides", depthwise(1, 16, 6, 6, 3, stride=3)),
        ("strides", depthwise(1, 16, 16, 16, 11)),
        ("float32", depthwise(1, 16, 6, 6, 3, dtype="float32")),
    ):
        assert reason in str(banded_cuda.why_not(problem, TARGET))
    wide = conv(1, 64, 6, 6, 64, 3, 1, 1, groups=2)
    assert "32 to 32" in str(grouped_cuda.why_not(wide, TARGET))
    assert "transposed" in str(grouped_cuda.why_not(GATHERED[6], TARGET))
    blocked = replace(CONVOLUTIONS[0], operands=(
        replace(CONVOLUTIONS[0].x, block=8), *CONVOLUTIONS[0].operands[1:],
    ))  # fmt: skip
    assert "blocked" in str(direct_cuda.why_not(blocked, TARGET))


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_compiles(isa: str, tmp_path: Path) -> None:
    """NVRTC takes the text of every algorithm."""
    target, cache = Target("cuda", isa), ArtifactCache(tmp_path)
    for family, problem in (
        (direct_cuda, CONVOLUTIONS[0]), (direct_cuda, CONVOLUTIONS[-1]),
        (depthwise_cuda, DEPTHWISE[0]), (depthwise_cuda, DEPTHWISE[3]), (banded_cuda, BANDED[1]),
        (banded_cuda, BANDED[3]), (gathered, GATHERED[0]), (gathered, GATHERED[2]),
        (grouped_cuda, GROUPED[1]), (grouped_cuda, GROUPED[2]), (stem_cuda, STEMS[0]),
        (stem_cuda, STEMS[2]), (gemv_cuda, VECTORS[1]),
    ):  # fmt: skip
        for t in family.tactics(problem, target)[:1]:
            assert compile_cubin(family.emit(problem, t, target).code, target, cache)
