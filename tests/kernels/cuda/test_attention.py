"""Attention's CUDA kernels in the emulator, against numpy in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from operands import permuted, spread
from tests.cuda_kernels import run_source

from enginesmith.kernels.attention import cuda
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import Operand, Tactic, tactic
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

H100 = Target("cuda", "sm_90")
INTERLEAVED = (0, 2, 1, 3)  # (B, S, H, D) in memory
TOLERANCES = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def numbers(seed: int, dtype: str, *shape: int) -> np.ndarray:
    """Normally distributed."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def reference(inputs, scale: float, causal: bool) -> np.ndarray:
    q, k, v, *mask = inputs
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    s = np.einsum("bhid,bhjd->bhij", q, k) * scale
    if mask:
        repeats = len(q) // max(1, len(mask[0]))
        m = np.concatenate([mask[0]] * repeats) if repeats else mask[0]
        s = np.where(m, s, -np.inf) if m.dtype == bool else s + m.astype(np.float64)
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return (e / np.where(total == 0, 1, total)) @ v


def fused(b: int, h: int, s: int, d: int, dtype: str) -> list[Operand]:
    """q, k and v as slices of one projection (B, S, 3, H, D)."""
    strides = (s * 3 * h * d, d, 3 * h * d, 1)
    return [Operand(dtype, (b, h, s, d), strides)] * 3


def problem_of(
    sizes: tuple[int, ...], dtype: str, mask: str = "", causal: bool = False,
    given: tuple[int, ...] = (),
) -> tuple[AttentionProblem, list[np.ndarray]]:  # fmt: skip
    """(B, H, Sq, Sk, D, Dv); mask: its type; given: its shape before it is broadcast."""
    b, h, queries, keys, d, dv = sizes
    shapes = [(b, h, queries, d), (b, h, keys, d), (b, h, keys, dv)]
    operands = [permuted(s, INTERLEAVED, dtype) for s in shapes]
    if queries == keys and d == dv:
        operands = fused(b, h, queries, d, dtype)
    inputs = [numbers(i, dtype, *s) for i, s in enumerate(shapes)]
    if mask:
        batches = given[0] if given and given[0] > 1 else b
        given = given or (b, 1, queries, keys)
        values = numbers(7, "float32" if mask == "bool" else mask, *given)
        if mask == "bool":
            values = (values > 0) | (np.arange(given[3]) == 0)  # every query sees a key
        whole = (batches, h, queries, keys)
        operands.append(spread(whole, given, mask))
        inputs.append(np.broadcast_to(values, whole))
    y = permuted((b, h, queries, dv), INTERLEAVED, dtype)
    return AttentionProblem((*operands, y), scale=0.3, causal=causal), inputs


def check(problem: AttentionProblem, inputs, tactics: list[Tactic] | None = None, slots=()) -> None:
    """Every tactic (or those given) computes the reference."""
    assert cuda.why_not(problem, H100) is None
    expected = reference(inputs, problem.scale, problem.causal)
    limit = TOLERANCES[problem.operands[-1].dtype]
    for chosen in tactics or cuda.tactics(problem, H100):
        source = cuda.emit(problem, chosen, H100)
        assert source.text == cuda.emit(problem, chosen, H100).text
        (y,) = run_source(source, problem, inputs, slots or None)
        assert y.shape == expected.shape
        error = np.abs(y.astype(np.float64) - expected).max(initial=0)
        assert error <= limit * max(1, np.abs(expected).max(initial=0)), (str(chosen), error)


def mma(wm: int, mt: int, wn: int, bn: int) -> Tactic:
    return tactic("flash_mma", wm=wm, mt=mt, wn=wn, bn=bn)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["", "float32", "bool"])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 8, 8), (2, 3, 9, 50, 20, 24), (1, 2, 35, 34, 3, 131)]
)
def test_simple(causal, mask, sizes):
    check(*problem_of(sizes, "float32", mask, causal), [tactic("simple", rows=r) for r in (1, 4)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_simple_takes_any_strides_and_types(dtype):
    problem, inputs = problem_of((2, 2, 5, 37, 12, 10), dtype, "float16", given=(1, 2, 1, 37))
    q, k, v, mask, y = problem.operands
    k = replace(k, strides=(2 * 12 * 40, 12 * 40, 1, 40))
    v = replace(v, strides=(5000, 2000, 3, 120))
    y = replace(y, dtype="float32", strides=(5 * 2 * 10 * 3, 1, 60, 3))
    limit = TOLERANCES[dtype]
    expected = reference(inputs, 0.3, False)
    problem = replace(problem, operands=(q, k, v, mask, y))
    for chosen in cuda.tactics(problem, H100):
        (found,) = run_source(cuda.emit(problem, chosen, H100), problem, inputs)
        assert np.abs(found - expected).max() < limit


MMA_CASES = [
    # sizes, type, mask, causal, the mask's shape, warps
    ((1, 2, 37, 37, 64, 64), "float16", "", False, (), mma(1, 1, 4, 16)),
    ((1, 1, 100, 150, 16, 48), "float16", "", False, (), mma(2, 2, 1, 32)),
    ((2, 2, 20, 70, 32, 32), "bfloat16", "float32", False, (2, 1, 1, 70), mma(1, 1, 2, 32)),
    ((1, 2, 70, 70, 80, 80), "float16", "bool", False, (), mma(2, 1, 1, 64)),
    ((1, 2, 50, 50, 64, 64), "float16", "", True, (), mma(1, 1, 2, 16)),
    ((1, 1, 130, 130, 32, 32), "float16", "", True, (), mma(2, 2, 2, 16)),
    ((1, 1, 40, 72, 96, 128), "float16", "float16", True, (), mma(1, 1, 1, 32)),
    ((4, 1, 18, 33, 24, 8), "float16", "bfloat16", False, (2, 1, 18, 33), mma(1, 1, 2, 32)),
    ((1, 2, 33, 66, 64, 128), "bfloat16", "float16", True, (1, 2, 33, 1), mma(4, 1, 1, 64)),
    ((1, 2, 20, 64, 64, 64), "float16", "bool", False, (1, 1, 20, 64), mma(1, 1, 2, 32)),
    ((1, 1, 20, 128, 112, 112), "float16", "float16", False, (1, 1, 1, 128), mma(1, 1, 1, 128)),
]  # fmt: skip


@pytest.mark.parametrize("case", MMA_CASES, ids=str)
def test_flash_mma(case):
    sizes, dtype, mask, causal, given, chosen = case
    check(*problem_of(sizes, dtype, mask, causal, given), [chosen])


@pytest.mark.parametrize("sizes", [(1, 2, 40, 40, 64, 64), (3, 2, 49, 49, 32, 32)])
def test_all_candidates(sizes):
    check(*problem_of(sizes, "float16", "float16", False, (1, 1, *sizes[2:4])))


SHORT_CASES = [
    ((6, 2, 49, 49, 32, 32), "float16", False, (1, 2, 49, 49), 2, 4),
    ((6, 1, 20, 17, 32, 16), "float16", False, (2, 1, 20, 17), 3, 1),
    ((3, 1, 64, 64, 64, 64), "bool", True, (), 1, 4),
    ((2, 2, 7, 30, 16, 40), "", False, (), 2, 1),
]


@pytest.mark.parametrize("case", SHORT_CASES, ids=str)
def test_flash_short(case):
    sizes, mask, causal, given, repeat, warps = case
    problem, inputs = problem_of(sizes, "float16", mask, causal, given)
    check(problem, inputs, [tactic("flash_short", warps=warps, repeat=repeat)])


FLOAT_CASES = [
    ((1, 2, 37, 37, 64, 64), "", False, (), mma(1, 1, 4, 16)),
    ((2, 1, 50, 70, 24, 40), "float32", False, (2, 1, 1, 70), mma(2, 1, 2, 32)),
    ((1, 2, 70, 70, 48, 48), "bool", True, (), mma(4, 1, 1, 32)),
]


@pytest.mark.parametrize("case", FLOAT_CASES, ids=str)
def test_flash_mma_in_float32(case):
    sizes, mask, causal, given, chosen = case
    check(*problem_of(sizes, "float32", mask, causal, given), [chosen])


WGMMA_CASES = [
    ((1, 2, 70, 70, 64, 64), "float16", "", False, (), 2, 80),
    ((1, 1, 140, 90, 64, 64), "bfloat16", "float32", False, (1, 1, 1, 90), 1, 64),
    ((2, 1, 40, 150, 128, 128), "float16", "bool", False, (1, 1, 40, 150), 1, 64),
    ((1, 1, 150, 150, 64, 64), "float16", "", True, (), 2, 64),
    ((1, 1, 66, 66, 64, 128), "float16", "float16", True, (1, 1, 66, 66), 1, 128),
    ((1, 1, 130, 260, 64, 64), "float16", "", True, (), 2, 64),
    ((1, 1, 30, 260, 128, 64), "float16", "", False, (), 1, 64),
    ((1, 2, 70, 197, 64, 64), "float16", "", False, (), 2, 112),
    ((1, 1, 200, 300, 64, 64), "float16", "", False, (), 3, 112),
    ((1, 1, 260, 140, 64, 64), "float16", "", True, (), 4, 64),
    ((1, 1, 200, 330, 64, 64), "float16", "", False, (), 3, 64),
    ((1, 1, 330, 400, 64, 64), "float16", "", True, (), 4, 64),
    ((1, 2, 130, 520, 64, 64), "bfloat16", "float16", False, (1, 1, 1, 520), 3, 64),
    ((1, 1, 130, 138, 64, 64), "bfloat16", "float16", False, (1, 1, 1, 138), 1, 80),
]  # fmt: skip


@pytest.mark.parametrize("case", WGMMA_CASES, ids=str)
def test_flash_wgmma(case):
    sizes, dtype, mask, causal, given, groups, bn = case
    problem, inputs = problem_of(sizes, dtype, mask, causal, given)
    check(problem, inputs, [tactic("flash_wgmma", wg=groups, bn=bn)])


def test_sizes_at_run_time():
    shape = ("d0", 2, "d1", 32)
    strides = ("d1*64", 32, 64, 1)
    q = Operand("float16", shape, strides)
    k = Operand("float16", ("d0", 2, "d2", 32), ("d2*64", 32, 64, 1))
    problem = AttentionProblem((q, k, k, q), (1, 50, 60), scale=0.25)
    chosen = [mma(1, 1, 2, 16), tactic("simple", rows=4)]
    for n, queries, keys in ((1, 5, 7), (2, 20, 70), (0, 3, 3), (1, 3, 0)):
        shapes = [(n, 2, queries, 32), (n, 2, keys, 32), (n, 2, keys, 32)]
        inputs = [numbers(i, "float16", *s) for i, s in enumerate(shapes)]
        check(problem, inputs, chosen, (n, queries, keys))


@pytest.mark.parametrize("mask", ["float32", "float16", "bool"])
@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_see_no_key_give_zeros(mask, causal):
    """Some see nothing, some nothing for the first keys (more than a block's worth), some all."""
    queries, keys = 21, 100
    seen = np.ones((1, 1, queries, keys), bool)
    seen[:, :, ::3] = False
    seen[:, :, 1::3, :80] = False
    problem, inputs = problem_of((1, 1, queries, keys, 16, 16), "float16", mask, causal)
    with np.errstate(divide="ignore"):
        inputs[3] = seen if mask == "bool" else np.log(seen).astype(mask)
    check(problem, inputs, [mma(1, 1, 1, 32), mma(1, 1, 2, 16), tactic("simple", rows=4)])


@pytest.mark.parametrize("mask", ["float32", "bfloat16", "float16"])
def test_masks_of_the_lowest_number_hide_evenly(mask):
    """Such masks hide keys; a query all of whose keys they hide gets the mean of v."""
    low = ml_dtypes.finfo(mask if mask != "bfloat16" else ml_dtypes.bfloat16).min
    problem, inputs = problem_of((1, 1, 20, 40, 16, 16), "float16", mask)
    hidden = np.random.default_rng(0).random((1, 1, 20, 40)) < 0.5
    hidden[:, :, 3] = True
    inputs[3] = np.where(hidden, low, 0).astype(inputs[3].dtype)
    expected = reference(inputs, 0.3, False)
    if mask != "float16":  # 65504 is small enough for scores to make a difference
        expected[:, :, 3] = inputs[2].astype(np.float64).mean(2)
    for chosen in (mma(1, 1, 1, 32), mma(1, 1, 2, 16), tactic("simple", rows=1)):
        (y,) = run_source(cuda.emit(problem, chosen, H100), problem, inputs)
        assert np.abs(y - expected).max() < 4e-3, str(chosen)


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_nvrtc_compiles_every_candidate(isa, tmp_path: Path):
    target, cache = Target("cuda", isa), ArtifactCache(tmp_path)
    problems = [
        problem_of((16, 8, 49, 49, 64, 64), "float16", "float16", False, (1, 8, 49, 49))[0],
        problem_of((1, 1, 40, 30, 6, 7), "float32", "bool", True)[0],
        problem_of((1, 1, 40, 30, 64, 64), "float32", "float32")[0],
    ]
    for problem in problems:
        for chosen in cuda.tactics(problem, target):
            assert compile_cubin(cuda.emit(problem, chosen, target).code, target, cache)
