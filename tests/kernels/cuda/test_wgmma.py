"""Hopper's products and convolutions, emulated: every form of tile, edges, epilogues."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.cuda_kernels import run_family, run_source

from enginesmith.codegen.cuda_wgmma import wgmma_functions
from enginesmith.ir.expr import Arg, Expr, call, evaluate, relu
from enginesmith.kernels.base import Operand, Problem, Size, dense_strides, tactic, value_of
from enginesmith.kernels.conv import wgmma as conv
from enginesmith.kernels.conv.problem import ConvProblem, static
from enginesmith.kernels.cuda import CudaSource, Launch, TensorMap
from enginesmith.kernels.matmul import wgmma as matmul
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.wgmma_tile import (
    DEPTH,
    INPUT,
    NOTHING,
    WEIGHTS,
    Tile,
    forms,
    pack_weights,
    tile_of,
)
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

TARGET = Target("cuda", "sm_90")
BIASED = call("add", Arg(0), Arg(1))
RESIDUAL = relu(call("add", BIASED, Arg(2)))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems are served, by blocks that have several tiles each."""
    monkeypatch.setattr(matmul, "LEAST", 0)
    monkeypatch.setattr(conv, "LEAST", 0)
    monkeypatch.setattr("enginesmith.kernels.wgmma_tile.MULTIPROCESSORS", 2)


def tile(rows: int, columns: int, groups: int = 1, teams: int = 1, share: int = NOTHING) -> Tile:
    return Tile(rows, columns, groups, teams, 1, share)


def parts(rows: int, columns: int, split: int) -> Tile:
    """A tile whose depth is split over blocks."""
    (form,) = (t for t in forms() if (t.rows, t.columns, t.split) == (rows, columns, split))
    return form


def normal(seed: int, shape: Sequence[int], dtype: str = "float16") -> np.ndarray:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)


def check(family: Any, problem: Problem, form: Tile, inputs: list[np.ndarray], want: np.ndarray,
          slots: tuple[int, ...] = ()) -> None:  # fmt: skip
    (got,) = run_family(family, problem, form.tactic, TARGET, inputs, slots or None)
    scale = np.abs(want).max(initial=0)
    loose = 2e-2 if problem.operands[-1].dtype == "bfloat16" else 3e-3
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=loose, atol=loose * scale)


def product(
    m: Size, k: int, n: int, epilogue: Expr = BIASED, dtype: str = "float16",
    out: str = "float16", hint: tuple[int, ...] = (), gap: int = 0,
) -> MatMulProblem:  # fmt: skip
    """gap: elements between rows of a and of y."""
    wide = (n + gap, 1)
    operands = [
        Operand(dtype, (m, k), (k + gap, 1)),
        Operand(dtype, (k, n), (n, 1), constant=True),
        Operand("float32", (1, n), (0, 1), constant=True),
    ]
    if epilogue == RESIDUAL:
        operands.append(Operand(out, (m, n), wide))
    operands.append(Operand(out, (m, n), wide))
    return MatMulProblem(tuple(operands), hint, epilogue=epilogue)


def check_product(problem: MatMulProblem, form: Tile, slots: tuple[int, ...] = ()) -> None:
    inputs = []
    for i, o in enumerate(problem.operands[:-1]):
        inputs.append(normal(i, [value_of(s, slots) for s in o.shape], o.dtype))
    a, b, *extras = (x.astype(np.float64) for x in inputs)
    check(matmul, problem, form, inputs, evaluate(problem.epilogue, [a @ b, *extras]), slots)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (tile(64, 64), (150, 136, 96)),
        (tile(64, 96), (64, 64, 200)),
        (tile(128, 64), (300, 72, 64)),
        (tile(192, 96), (200, 200, 100)),
        (tile(64, 128, teams=2), (330, 256, 130)),
        (tile(128, 64, teams=2), (500, 64, 64)),
        (tile(128, 256, groups=2), (130, 320, 264)),
        (tile(192, 192, groups=3), (200, 72, 200)),
        (tile(128, 64, groups=2, share=WEIGHTS), (520, 136, 64)),
        (tile(64, 96, teams=2, share=WEIGHTS), (330, 720, 130)),
        (tile(128, 64, groups=2, share=INPUT), (300, 136, 180)),
        (tile(192, 96, teams=2, share=INPUT), (400, 520, 310)),
        (parts(64, 64, 2), (150, 136, 96)),
        (parts(64, 96, 4), (70, 776, 200)),
        (parts(128, 32, 2), (300, 264, 100)),
        (parts(128, 64, 8), (130, 1096, 72)),
        (parts(64, 128, 8), (49, 520, 130)),
        (parts(128, 128, 4), (128, 328, 136)),
    ],
    ids=str,
)
def test_products(form: Tile, shape: tuple[int, int, int]) -> None:
    """Several tiles per block, edges along all axes, more steps than the ring has stages."""
    check_product(product(*shape), form)


@pytest.mark.parametrize(
    "form", [tile(64, 64), tile(64, 64, teams=2, share=WEIGHTS), parts(64, 96, 2)], ids=str
)
@pytest.mark.parametrize(
    ("dtype", "out", "columns", "gap"),
    [("float16", "float16", 72, 8), ("bfloat16", "bfloat16", 64, 0), ("float16", "float32", 50, 0),
     ("bfloat16", "float16", 37, 24)],
)  # fmt: skip
def test_types_and_epilogues(form: Tile, dtype: str, out: str, columns: int, gap: int) -> None:
    check_product(product(200, 88, columns, RESIDUAL, dtype, out, gap=gap), form)


@pytest.mark.parametrize("form", [tile(64, 64, teams=2), parts(64, 64, 2)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 77, 200])
def test_symbolic_rows(rows: int, form: Tile) -> None:
    check_product(product("d0", 72, 64, RESIDUAL, hint=(256,)), form, (rows,))


def test_batches_fold_into_rows() -> None:
    operands = (
        Operand("float16", (3, 2, 20, 64), (2560, 1280, 64, 1)),
        Operand("float16", (1, 1, 64, 40), (0, 0, 40, 1), constant=True),
        Operand("float16", (3, 2, 20, 40), (1600, 40, 80, 1)),  # written transposed
    )
    problem = MatMulProblem(operands)
    a, b = normal(1, (3, 2, 20, 64)), normal(2, (1, 1, 64, 40))
    want = a.astype(np.float64) @ b.astype(np.float64)
    check(matmul, problem, tile(64, 64), [a, b], want)


# -- convolutions ----------------------------------------------------------------------------------


def last(shape: tuple[int, int, int, int], pixel: int = 0) -> tuple[int, ...]:
    """Strides with channels last, `pixel` elements from a pixel to the next."""
    _, c, h, w = shape
    p = pixel or c
    return (h * w * p, 1, w * p, p)


def convolve(x: np.ndarray, w: np.ndarray, problem: ConvProblem) -> np.ndarray:
    (sh, sw), (dh, dw), (top, left, *_) = problem.strides, problem.dilations, problem.pads
    n, _, oh, ow = (static(size) for size in problem.y.shape)
    padded = np.pad(x, ((0, 0), (0, 0), (top, 64), (left, 64)))
    y = np.zeros((n, len(w), oh, ow))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            part = padded[:, :, i * dh :, j * dw :][:, :, ::sh, ::sw][:, :, :oh, :ow]
            y += np.einsum("nchw,oc->nohw", part, w[:, :, i, j])
    return y


CONVS = [
    # n, ic, h, w, oc, kernel, strides, pads, dilations, pixel stride
    (2, 64, 9, 11, 40, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 0),
    (3, 72, 10, 7, 64, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 0),
    (1, 32, 12, 12, 70, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 64),
    (2, 136, 8, 9, 32, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 0),
    (2, 40, 9, 9, 32, (3, 2), (1, 2), (2, 1, 2, 1), (2, 1), 0),
    (9, 64, 3, 3, 48, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 0),
]


def conv_problem(case: tuple[Any, ...], dtype: str = "float16") -> ConvProblem:
    n, ic, h, w, oc, kernel, strides, pads, dilations, pixel = case
    oh, ow = (
        (size + pads[k] + pads[k + 2] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1
        for k, size in enumerate((h, w))
    )
    x, y = (n, ic, h, w), (n, oc, oh, ow)
    operands = (
        Operand(dtype, x, last(x, pixel)),
        Operand(dtype, (oc, ic, *kernel), dense_strides((oc, ic, *kernel)), constant=True),
        Operand("float16", (1, oc, 1, 1), (0, 1, 0, 0), constant=True),
        Operand(dtype, y, last(y)),
        Operand(dtype, y, last(y, oc + 8)),
    )
    return ConvProblem(operands, strides=strides, pads=pads, dilations=dilations,
                       epilogue=RESIDUAL)  # fmt: skip


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize(
    "form",
    [tile(64, 64), tile(128, 64, groups=2), tile(64, 32, teams=2, share=WEIGHTS),
     parts(64, 64, 2), parts(128, 32, 4)],
    ids=str,
)  # fmt: skip
def test_convolutions(case: tuple[Any, ...], form: Tile) -> None:
    if prod(case[5]) * -(-case[1] // DEPTH) < form.split:
        pytest.skip("a part would have no steps")
    problem = conv_problem(case, "bfloat16" if form.groups == 2 else "float16")
    inputs = [normal(i, o.shape, o.dtype) for i, o in enumerate(problem.operands[:-1])]  # type: ignore[arg-type]
    x, w, *extras = (v.astype(np.float64) for v in inputs)
    check(conv, problem, form, inputs,
          evaluate(problem.epilogue, [convolve(x, w, problem), *extras]))  # fmt: skip


def test_symbolic_batch_and_size() -> None:
    x, y = ("d0", 64, "d1", "d2"), ("d0", 48, "d1", "d2")
    operands = (
        Operand("float16", x, ("64*d1*d2", 1, "64*d2", 64)),
        Operand("float16", (48, 64, 3, 3), (576, 9, 3, 1), constant=True),
        Operand("float16", y, ("48*d1*d2", 1, "48*d2", 48)),
    )
    problem = ConvProblem(operands, (4, 8, 8), pads=(1, 1, 1, 1))
    assert conv.why_not(problem, TARGET) is None
    inputs = [normal(1, (3, 64, 7, 9)), normal(2, (48, 64, 3, 3))]
    like = conv_problem((3, 64, 7, 9, 48, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 0))
    want = convolve(inputs[0].astype(np.float64), inputs[1].astype(np.float64), like)
    for form in (tile(64, 64), parts(64, 64, 4)):
        check(conv, problem, form, inputs, want, (3, 7, 9))


@pytest.mark.parametrize("share", [NOTHING, WEIGHTS])
def test_compiles(share: int, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    linear = matmul.emit(product(400, 72, 96, RESIDUAL), tile(192, 96, 3, 1, share).tactic, TARGET)
    boxes = conv.emit(conv_problem(CONVS[1]), tile(64, 64, 1, 2, share).tactic, TARGET)
    cut = conv.emit(conv_problem(CONVS[0]), parts(128, 96, 8).tactic, TARGET)
    for source in (linear, boxes, cut):
        assert compile_cubin(source.code, TARGET, cache)


def test_every_function_compiles(tmp_path: Path) -> None:
    """A from shared memory and from registers, B along K and along N."""
    sizes = (8, 64, 256)
    calls = "".join(
        f"""{{
  float c[{n // 2}] = {{}};
  wgmma_fence();
  wgmma(c, d, d, true, Tag<{name}>()); wgmma(c, a, d, true, Tag<{name}>());
  wgmma_mn(c, d, e, true, Tag<{name}>()); wgmma_mn(c, a, e, true, Tag<{name}>());
  wgmma_commit(); wgmma_wait<0>(); wgmma_hold(c);
  for (int i = 0; i < {n // 2}; ++i) y[i] += c[i];
}}"""
        for name in ("half", "bf16")
        for n in sizes
    )
    functions = "".join(
        wgmma_functions(dtype, sizes, from_registers=registers, mn_major=mn)
        for dtype in ("float16", "bfloat16")
        for registers in (False, True)
        for mn in (False, True)
    )
    text = f"""{functions}
extern "C" __global__ void kernel(float *y) {{
  uint32_t a[4] = {{1, 2, 3, threadIdx.x}};
  const uint64_t d = wgmma_tile(shared_memory()), e = wgmma_tile_mn(shared_memory(), 8192);
  {calls}
}}
"""
    assert compile_cubin(text, TARGET, ArtifactCache(tmp_path))


def test_first_factor_in_registers_second_along_n() -> None:
    """What attention does with v: (64, 16) @ (16, 128), the second as the copy engine brings it."""
    operands = (
        Operand("float16", (64, 16), (16, 1)),
        Operand("float16", (16, 128), (128, 1)),
        Operand("float32", (64, 128), (128, 1)),
    )
    text = f"""{wgmma_functions("float16", [128], from_registers=True, mn_major=True)}
extern "C" __global__ void NAME(
    const half *p0, const half *p1, float *p2, const __grid_constant__ TensorMap m0) {{
  char *const tile = shared_memory();
  Barrier *const full = (Barrier *)(tile + 4096);
  if (threadIdx.x == 0) {{ barrier_init(full, 1); barrier_fence(); }}
  __syncthreads();
  if (threadIdx.x == 0) {{
    barrier_expect(full, 4096);
    tma_load2(tile, &m0, full, 0, 0);
    tma_load2(tile + 2048, &m0, full, 64, 0);
  }}
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, k = threadIdx.x % 4 * 2;
  uint32_t a[4];
  for (int i = 0; i < 4; ++i)
    a[i] = *(const uint32_t *)(p0 + (row + i % 2 * 8) * 16 + k + i / 2 * 8);
  barrier_wait(full, 0);
  float c[64];
  wgmma_fence();
  wgmma_mn(c, a, wgmma_tile_mn(tile, 2048), false, Tag<half>());
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(c);
  for (int i = 0; i < 64; ++i) p2[(row + i / 2 % 2 * 8) * 128 + i / 4 * 8 + k + i % 2] = c[i];
}}
"""
    tensor = TensorMap(1, "float16", (128, 16), (128,), (64, 16))
    launch = Launch((1, 1, 1), 128, shared=4096 + 8, maps=(tensor,))
    a, b = normal(1, (64, 16)), normal(2, (16, 128))
    (got,) = run_source(CudaSource(text, (launch,)), Problem(operands), [a, b])
    np.testing.assert_allclose(got, a.astype(np.float64) @ b.astype(np.float64), atol=1e-4)


# -- choice, refusals, weights ---------------------------------------------------------------------


def test_packed_columns_are_a_permutation_within_32() -> None:
    packed = pack_weights(np.arange(1, 41, dtype=np.float32).reshape(40, 1, 1))
    assert packed.shape == (64, 1, 64)
    assert sorted(packed[:32, 0, 0]) == list(range(1, 33))
    assert list(packed[:10, 0, 0]) == [1, 2, 9, 10, 17, 18, 25, 26, 3, 4]
    assert not packed[:, :, 1:].any()


def test_every_form_is_within_the_machine() -> None:
    for form in forms():
        assert form.threads <= 1024 and form.stages >= 3
        assert form.blocks * (form.shared + 1024) <= 228 * 1024
        assert form.sums < form.registers
        held = 128 * (form.consumers * form.registers + form.filler)
        assert form.blocks * held <= 65536


def test_tactics_for_the_usual_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginesmith.kernels.wgmma_tile.MULTIPROCESSORS", 132)
    for m, k, n in ((6304, 3072, 768), (4096, 768, 3072), (197, 768, 3072), (200704, 64, 256)):
        found = matmul.tactics(product(m, k, n), TARGET)
        whole = [f for f in found if f["split"] == 1]
        assert 3 <= len(whole) <= 8 and len(set(found)) == len(found)
        assert len(whole) == len(found) or m == 197
    assert matmul.tactics(product(128, 3072, 768), TARGET)[0]["split"] == 8  # 12 to 24 tiles
    found = matmul.tactics(product(6304, 3072, 768), TARGET)
    assert (found[0]["m"], found[0]["n"]) == (192, 192)  # 33 * 4 tiles: one for each multiprocessor


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strides": (1, 200)}, "contiguous"),
        ({"strides": (68, 1)}, "16 bytes"),
        ({"strides": (0, 1)}, "broadcast"),
        ({"alignment": 8}, "16 bytes"),
        ({"dtype": "float32"}, "float32"),
    ],
)
def test_refusals(change: dict[str, Any], reason: str) -> None:
    a, *rest = product(200, 64, 64).operands
    fields = {"dtype": a.dtype, "shape": a.shape, "strides": a.strides} | change
    problem = MatMulProblem((Operand(**fields), *rest), epilogue=BIASED)
    assert reason in (matmul.why_not(problem, TARGET) or "")
    assert "9.0" in (matmul.why_not(problem, Target("cuda", "sm_100")) or "")


def test_tactics_of_other_tiles_are_told_apart() -> None:
    form = tile(64, 64, teams=2, share=WEIGHTS)
    assert form.tactic == tactic("wgmma", m=64, n=64, groups=1, teams=2, blocks=1, share=1,
                                 split=1)  # fmt: skip
    assert tile_of(parts(64, 96, 4).tactic) == parts(64, 96, 4)
