"""Kernels in Triton, by Triton's interpreter (and on a GPU), against float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.cuda_emulator import EmulationError
from tests.cuda_emulator import run_source as emulate
from tests.cuda_kernels import run_family
from tests.kernels.cuda import test_attention as attention_tests
from tests.kernels.cuda import test_mma as mma_tests
from tests.kernels.cuda.test_mma import (
    CONVS,
    PRODUCTS,
    RESIDUAL,
    SCALED,
    TARGET,
    F,
    array,
    check,
    conv,
    product,
)  # fmt: skip

from enginesmith.ir.expr import Arg, call, clip, relu
from enginesmith.kernels import sources, triton_tile
from enginesmith.kernels.attention import triton as attention
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import tactic
from enginesmith.kernels.conv import triton as convolution
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.matmul import triton as matmul
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.triton_tile import SHARED, TILES, Shape, shape_of
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.triton_aot import compile_triton

pytestmark = pytest.mark.skipif(
    sources.why_missing("triton") is not None, reason=f"{sources.why_missing('triton')}"
)

SHAPES = [
    Shape(32, 32, 32, 4, 3), Shape(16, 64, 64, 4, 2), Shape(64, 16, 32, 4, 2),
    Shape(64, 64, 32, 4, 4),
]  # fmt: skip
FAMILIES = {MatMulProblem: matmul, ConvProblem: convolution, AttentionProblem: attention}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products count as worth it, and float32 is as exact as TF32."""
    monkeypatch.setattr(matmul, "LEAST", 0)
    monkeypatch.setattr(convolution, "LEAST", 0)
    monkeypatch.setitem(mma_tests.TOLERANCE, "float32", 2e-3)


def allowed(problem: Any) -> Any:
    """The problem with TF32 allowed where it matters."""
    return replace(problem, tf32=problem.operands[0].dtype == "float32")


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name: str) -> None:
    check(matmul, allowed(PRODUCTS[name]), SHAPES[list(PRODUCTS).index(name) % 4])


COPIED = {
    "weights": product(array(40, 72), array(72, 48, constant=True)),
    "tails": product(array(70, 40), array(40, 50, constant=True), array(70, 50)),
    "rows of b": product(array(40, 72), array(72, 56)),
    "columns of b": product(array(40, 72), array(72, 50, turned=True)),
    "bfloat16": product(array(40, 72, dtype="bfloat16"), array(72, 40, dtype="bfloat16")),
    "float32": product(array(20, 40, **F), array(40, 24, constant=True, **F)),
    "float32, columns": product(array(20, 40, **F), array(40, 24, turned=True, **F)),
    "batch is rows": product(array(3, 10, 40), array(1, 40, 24, constant=True)),
}


@pytest.mark.parametrize("name", COPIED)
def test_copied(name: str) -> None:
    """By the copy engine."""
    problem = allowed(COPIED[name])
    assert matmul.why_not_copied(problem) is None
    shape = Shape(64, 32, 32 if problem.operands[0].dtype == "float32" else 64, 4, 3, copied=True)
    check(matmul, problem, shape)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_copied_pixels(dtype: str) -> None:
    problem = allowed(conv(2, 72, 6, 7, 24, dtype=dtype, extras=("bias", "residual"),
                           epilogue=RESIDUAL))  # fmt: skip
    assert convolution.why_not_copied(problem) is None
    assert "window" in (convolution.why_not_copied(CONVS["3x3"]) or "")
    assert "pixels" in (convolution.why_not_copied(CONVS["1x1 strided"]) or "")
    check(convolution, problem, Shape(64, 32, 32, 4, 3, copied=True))


@pytest.mark.parametrize("slots", [(3, 25), (1, 8), (0, 2)])
def test_copied_runtime_rows(slots: tuple[int, ...]) -> None:
    problem = product(array("d0", "d1", 24), array(1, 24, 40, constant=True), hint=(2, 16))
    check(matmul, problem, Shape(64, 64, 64, 4, 2, copied=True), slots)


@pytest.mark.parametrize("slots", [(70,), (200,), (0,)])
def test_persistent(slots: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that make several tiles in turn."""
    monkeypatch.setitem(triton_tile.MULTIPROCESSORS, 90, 3)
    shape = Shape(64, 32, 64, 4, 2, copied=True, persistent=True)
    problem = product(array("d0", 72), array(72, 96, constant=True), array("d0", 96), hint=slots)
    check(matmul, problem, shape, slots)
    pixels = conv(slots[0], 24, 3, 5, 40, extras=("bias", "residual"), epilogue=RESIDUAL)
    check(convolution, pixels, shape)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (product(array(2, 40, 72), array(2, 72, 40)), "several"),
        (product(array(40, 72, turned=True), array(72, 40)), "a's rows"),
        (product(array(40, 36), array(36, 40)), "multiples of 16"),
        (product(array(40, 40), array(40, 36)), "multiples of 16"),
        (product(array(40, 40, alignment=8), array(40, 40)), "multiples of 16"),
    ],
)
def test_not_copied(problem: MatMulProblem, reason: str) -> None:
    assert reason in (matmul.why_not_copied(problem) or "")
    assert not any(t.get("tma") for t in matmul.tactics(problem, TARGET))


@pytest.mark.parametrize("slots", [(3, 25), (1, 8), (0, 2), (40, 2)])
def test_runtime_rows(slots: tuple[int, ...]) -> None:
    """Also of the walk through many rows of tiles."""
    problem = product(array("d0", "d1", 24), array(1, 24, 40, constant=True), hint=(2, 16))
    check(matmul, problem, Shape(16, 16, 32, 4, 2), slots)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_by_half_precision_weights(dtype: str) -> None:
    """A graph's input that is multiplied as it is."""
    weights = array(40, 24, dtype=dtype, constant=True)
    check(matmul, product(array(20, 40, dtype="float32"), weights, dtype=dtype), SHAPES[0])
    problem = conv(1, 20, 7, 7, 24, 3, 1, 1)
    x = replace(problem.x, dtype="float32")
    check(convolution, replace(problem, operands=(x, *problem.operands[1:])), SHAPES[1])


UNARY = (
    "neg",
    "abs",
    "exp",
    "sqrt",
    "log",
    "erf",
    "tanh",
    "sin",
    "cos",
    "sigmoid",
    "floor",
    "ceil",
)
BINARY = ("add", "sub", "mul", "div", "max", "min")
X, E = Arg(0), Arg(1)
POSITIVE = call("add", call("abs", X), 0.5)
EPILOGUES = {
    **{op: call(op, POSITIVE if op in ("log", "sqrt") else X) for op in UNARY},
    **{op: call(op, X, call("add", call("abs", E), 0.5)) for op in BINARY},
    "gelu": call("mul", call("mul", X, 0.5), call("add", call("erf", call("mul", X, 0.7071)), 1.0)),
    "hardswish": call("mul", X, call("div", clip(call("add", X, 3.0), 0.0, 6.0), 6.0)),
    "powers": call("add", call("pow", X, 2.0), call("add", call("pow", POSITIVE, 0.5),
                                                    call("pow", call("mul", X, 0.1), 3.0))),
    "where": call("where", call("or", call("lt", X, E), call("not", call("le", X, 2.0))), X, E),
    "conditions": call("where", call("xor", call("isnan", X), call("and", call("lt", X, 1.0),
                                                                  call("eq", E, E))), E, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogue(name: str) -> None:
    b = array(16, 32, constant=True)
    problem = product(array(32, 16), b, array(32, 32), epilogue=EPILOGUES[name], dtype="float32")
    check(matmul, problem, SHAPES[0])


def test_nan_and_infinity_pass_through() -> None:
    """As in numpy: max and min keep NaN; erf of infinity is one."""
    problem = product(
        array(16, 16), array(16, 16), array(16, 16), dtype="float32",
        epilogue=call("add", call("erf", X), relu(E)),
    )  # fmt: skip
    a = np.eye(16, dtype=np.float16)
    b = np.full((16, 16), np.float16(8))
    e = np.zeros((16, 16), np.float16)
    e[0], e[1], e[2] = np.nan, np.inf, -np.inf
    (y,) = run_family(matmul, problem, SHAPES[0].tactic, TARGET, [a, b, e])
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], np.inf)
    np.testing.assert_allclose(y[2:], 1, atol=1e-6)


REFUSED = {
    "plain": "innermost", "groups": "groups", "merged groups": "groups", "depthwise": "groups",
    "mask": "bool",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CONVS if name not in REFUSED])
def test_conv(name: str) -> None:
    check(convolution, allowed(CONVS[name]), SHAPES[list(CONVS).index(name) % 4])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_convs(name: str) -> None:
    assert REFUSED[name] in (convolution.why_not(CONVS[name], TARGET) or "")


def test_refused_prologues() -> None:
    windowed = replace(CONVS["3x3"], prologue=relu(X))
    assert "single pixels" in (convolution.why_not(windowed, TARGET) or "")
    unknown = replace(CONVS["prologue"], prologue=call("round", X))
    assert "the prologue has round" in (convolution.why_not(unknown, TARGET) or "")
    assert "prologue" in (convolution.why_not_copied(CONVS["prologue"]) or "")


@pytest.mark.parametrize("slots", [(1, 5, 6), (3, 4, 4), (0, 5, 6)])
def test_runtime_pixels(slots: tuple[int, ...]) -> None:
    problem = conv("d0", 16, "d1", "d2", 24, 3, 1, 1, hint=(1, 5, 6),
                   extras=("bias", "residual"), epilogue=RESIDUAL)  # fmt: skip
    check(convolution, problem, SHAPES[0], slots)


ATTENTION = [
    # sizes, type, mask, causal, the mask's shape, queries and keys of a tile
    ((1, 2, 37, 37, 64, 64), "float16", "", False, (), (16, 16)),
    ((1, 1, 100, 150, 16, 48), "float16", "", False, (), (32, 64)),
    ((2, 2, 20, 70, 32, 32), "bfloat16", "float32", False, (2, 1, 1, 70), (16, 32)),
    ((1, 2, 70, 70, 80, 80), "float16", "bool", False, (), (64, 32)),
    ((1, 2, 50, 50, 64, 64), "float16", "", True, (), (16, 32)),
    ((1, 1, 130, 130, 32, 32), "float16", "", True, (), (64, 64)),
    ((1, 1, 40, 72, 96, 128), "float16", "float16", True, (), (32, 16)),
    ((4, 1, 18, 33, 24, 8), "float16", "bfloat16", False, (2, 1, 18, 33), (16, 16)),
    ((1, 2, 20, 64, 64, 64), "float16", "bool", False, (1, 1, 20, 64), (32, 32)),
]


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(case: Any) -> None:
    *given, (queries, keys) = case
    problem, inputs = attention_tests.problem_of(*given)
    assert attention.why_not(problem, TARGET) is None
    tile = tactic("triton", m=queries, n=keys, warps=4, stages=2)
    attention_tests.check(problem, inputs, [tile])


def test_queries_that_see_no_key() -> None:
    """Their result is 0."""
    problem, inputs = attention_tests.problem_of((1, 1, 20, 24, 16, 16), "float16", "bool")
    inputs[3] = np.zeros_like(inputs[3])
    inputs[3][..., 1::2, :5] = True
    attention_tests.check(problem, inputs, [tactic("triton", m=16, n=16, warps=4, stages=2)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_of_the_lowest_number(dtype: str) -> None:
    """Keys that all have it weigh evenly."""
    problem, inputs = attention_tests.problem_of((1, 1, 20, 24, 16, 16), "float16", dtype)
    lowest = ml_dtypes.finfo(inputs[3].dtype).min
    inputs[3] = inputs[3].copy()
    inputs[3][..., :12, 3:] = lowest
    inputs[3][..., 5, :] = lowest
    attention_tests.check(problem, inputs, [tactic("triton", m=16, n=16, warps=4, stages=2)])


@pytest.mark.parametrize(
    ("sizes", "dtype", "reason"),
    [
        ((1, 1, 32, 32, 64, 64), "float32", "float32"),
        ((1, 1, 32, 32, 160, 160), "float16", "wider"),
        ((1, 1, 1, 32, 64, 64), "float16", "too small"),
    ],
)
def test_refused_attention(sizes: tuple[int, ...], dtype: str, reason: str) -> None:
    problem, _ = attention_tests.problem_of(sizes, dtype)
    assert reason in (attention.why_not(problem, TARGET) or "")


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_compiles(isa: str, artifact_cache: Path) -> None:
    """The first candidates of typical problems. From 9.0 on, kernels wait for those before them
    before they touch memory."""
    target = Target("cuda", isa)
    every = reduce(partial(call, "add"), EPILOGUES.values())
    problems: list[Any] = [
        product(array("d0", 197, 768), array(1, 768, 1000, constant=True), hint=(8,)),
        product(array(4, 12, 128, 64, dtype="bfloat16"),
                array(4, 12, 64, 100, turned=True, dtype="bfloat16")),
        allowed(product(array(300, 200, dtype="float32"), array(200, 300, dtype="float32"))),
        PRODUCTS["weights"],
        product(array(64, 64), array(64, 64, constant=True), array(64, 64), epilogue=every),
        conv("d0", 64, 56, 56, 64, 3, 1, 1, hint=(8,), extras=("bias", "residual"),
             epilogue=RESIDUAL),
        conv(8, 256, 14, 14, 1024),
        conv(8, 200, 14, 14, 64, extras=("bias", "scale", "shift"), prologue=SCALED),
        conv(1, 24, 14, 14, 40, 5, 2, 2, dtype="bfloat16"),
        attention_tests.problem_of((4, 8, 197, 197, 64, 64), "float16")[0],
        attention_tests.problem_of((4, 8, 128, 128, 80, 80), "bfloat16", "float32", True)[0],
    ]  # fmt: skip
    large = product(array(8192, 512), array(512, 4096, constant=True))
    for problem in (*problems, large):
        family = FAMILIES[type(problem)]
        for chosen in family.tactics(problem, target)[: 6 if problem is large else 2]:
            source = family.emit(problem, chosen, target)
            compiled = compile_triton(source, target, ArtifactCache(artifact_cache))
            assert compiled.cubin[:4] == b"\x7fELF"
            assert compiled.shared <= SHARED[target.arch] * 1024
            text = compiled.ptx.decode()
            assert ("wgmma.mma" in text) == (isa == "sm_90" and chosen["m"] >= 64)
            assert ("cp.async.bulk.tensor" in text) == (chosen.get("tma") == 1)
            accesses = [text.find(name) for name in ("ld.global", "cp.async", "st.global")]
            first = min(place for place in accesses if place >= 0)
            assert (-1 < text.find("griddepcontrol.wait") < first) == (target.arch >= 90)


def repeated(problem: MatMulProblem, slot: int, axis: int) -> MatMulProblem:
    """The product with all rows or columns of an operand at one place."""
    operands, strides = list(problem.operands), list(problem.operands[slot].strides)
    strides[axis] = 0
    operands[slot] = replace(operands[slot], strides=tuple(strides))
    return replace(problem, operands=tuple(operands))


@pytest.mark.parametrize(
    "problem",
    [
        PRODUCTS["no depth"],
        repeated(product(array(40, 72), array(72, 48)), 0, 0),
        repeated(product(array(40, 72), array(72, 48)), 1, 1),
        repeated(repeated(product(array(40, 70), array(70, 48)), 0, 0), 0, 1),
    ],
    ids=["no depth", "one row", "one column", "one element"],
)
def test_repeated_operands_compile(problem: MatMulProblem, artifact_cache: Path) -> None:
    """The interpreter multiplies blocks of any shape; the compiler wants whole ones."""
    check(matmul, problem, SHAPES[1])
    source = matmul.emit(problem, SHAPES[1].tactic, TARGET)
    assert compile_triton(source, TARGET, ArtifactCache(artifact_cache)).cubin[:4] == b"\x7fELF"


def test_candidates_make_sense() -> None:
    """Much work gets large tiles, little work small ones; all fit every GPU."""
    large = product(array(4096, 1024), array(1024, 4096, constant=True))
    small = product(array(200, 1024), array(1024, 200, constant=True))
    first = [shape_of(matmul.tactics(p, TARGET)[0]) for p in (large, small)]
    assert first[0].rows * first[0].columns >= 128 * 128
    assert first[1].rows * first[1].columns <= 64 * 64
    assert not any(t.get("persistent") for t in matmul.tactics(small, TARGET))
    for isa, kib in SHARED.items():
        found = matmul.tactics(large, Target("cuda", f"sm_{isa}"))
        assert 1 < len(found) <= 6
        assert any(t.get("persistent") for t in found) == (isa in (90, 100))
        assert all(
            s.stages * (s.rows + s.columns) * 128 <= kib * 1024 for s in map(shape_of, found)
        )


def test_one_text_for_many_sizes() -> None:
    """Layers of one form share a kernel."""
    names = {
        matmul.emit(p, SHAPES[0].tactic, TARGET).name
        for p in (product(array(m, k), array(k, n, constant=True))
                  for m, n, k in ((64, 128, 256), (512, 320, 64)))
    }  # fmt: skip
    assert len(names) == 1


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (product(array(8, 64), array(64, 64)), "too small"),
        (product(array(64, 64, dtype="float32"), array(64, 64)), "factors of float32 and float16"),
        (product(array(64, 64, dtype="float32"), array(64, 64, dtype="float32")), "TF32"),
        (product(array(64, 64), array(64, 64), array(64, 64, dtype="int32")), "int32"),
    ],
)
def test_refusals(problem: MatMulProblem, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "LEAST", 16)
    assert reason in (matmul.why_not(problem, TARGET) or "")


def test_tiles_are_distinct_and_fit_tensor_cores() -> None:
    assert len(set(TILES)) == len(TILES)
    assert all(rows % 16 == 0 and columns % 16 == 0 for rows, columns, _ in TILES)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (", mask=(rk < v2 - k)[None, :], other=0.0", "reads 2 bytes"),
        (", mask=(rm < v0)[:, None] & (rn < v1)[None, :]", "writes 2 bytes"),
    ],
)
def test_the_interpreter_finds_what_masks_prevent(mask: str, said: str) -> None:
    problem = product(array(37, 45), array(45, 41, constant=True))
    source = matmul.emit(problem, SHAPES[0].tactic, TARGET)
    assert source.text.count(mask) == 1
    arrays = [np.ones((37, 45), np.float16), np.ones((45, 41), np.float16)]
    packed = matmul.pack(problem, SHAPES[0].tactic, TARGET, {1: arrays[1]})
    with pytest.raises(EmulationError, match=said):
        emulate(replace(source, text=source.text.replace(mask, "")), problem, arrays, packed=packed)
