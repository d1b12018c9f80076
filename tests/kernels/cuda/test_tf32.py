"""float32 as one product of TF32 numbers, where a problem allows it: on the emulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.cuda_kernels import run_family
from tests.kernels.conv_cases import reference
from tests.kernels.cuda.test_mma import CONVS, PRODUCTS, SHAPES, TARGET, inputs

from enginesmith.ir.expr import evaluate
from enginesmith.kernels.base import value_of
from enginesmith.kernels.conv import mma as conv_mma
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.matmul import cuda as matmul
from enginesmith.kernels.matmul import mma as matmul_mma
from enginesmith.kernels.tile_mma import Shape
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

CASES = [
    (conv_mma, CONVS["float32"]), (conv_mma, CONVS["prologue float32"]),
    (matmul_mma, PRODUCTS["float32 weights"]), (matmul_mma, PRODUCTS["float32 turned"]),
]  # fmt: skip


def relative(family: Any, problem: Any, shape: Shape) -> float:
    """The result's norm-relative error against float64."""
    arrays = inputs(problem, ())
    (y,) = run_family(family, problem, shape.tactic, TARGET, arrays, ())
    wide = [
        np.broadcast_to(a.astype(np.float64), [value_of(n, ()) for n in o.shape])
        for a, o in zip(arrays, problem.operands, strict=False)
    ]
    if isinstance(problem, ConvProblem):
        expected = np.broadcast_to(reference(problem, wide, ()), y.shape)
    else:
        expected = evaluate(problem.epilogue, [wide[0] @ wide[1], *wide[2:]])
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=["one block", "cluster"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_errors_are_those_of_tf32_only_where_allowed(case: int, shape: Shape) -> None:
    family, problem = CASES[case]
    assert relative(family, problem, shape) < 2e-6
    assert 1e-5 < relative(family, replace(problem, tf32=True), shape) < 3e-3


def test_rounding_is_to_the_nearest() -> None:
    """Cutting bits off, as the instruction itself does, would make every product too small."""
    problem = replace(PRODUCTS["float32 weights"], tf32=True)
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(1, 2, [int(n) for n in o.shape]) for o in problem.operands[:2])
    arrays = [a.astype(np.float32), b.astype(np.float32)]
    (y,) = run_family(matmul_mma, problem, SHAPES[0].tactic, TARGET, arrays, ())
    bias = float(np.mean(y / (arrays[0].astype(np.float64) @ arrays[1]) - 1))
    assert abs(bias) < 5e-5


def test_half_precision_ignores_it() -> None:
    problem = PRODUCTS["weights"]
    tactic = SHAPES[0].tactic
    same = matmul_mma.emit(replace(problem, tf32=True), tactic, TARGET)
    assert same.code == matmul_mma.emit(problem, tactic, TARGET).code


def test_problems_kernels_and_candidates_differ() -> None:
    problem = PRODUCTS["float32 weights"]
    allowed = replace(problem, tf32=True)
    assert repr(allowed) != repr(problem)
    tactic = matmul.tactics(allowed, TARGET)[0]
    assert matmul.emit(allowed, tactic, TARGET).name != matmul.emit(problem, tactic, TARGET).name


def test_compiles(fresh_cache: Any) -> None:
    for family, problem in CASES:
        source = family.emit(replace(problem, tf32=True), SHAPES[3].tactic, TARGET)
        assert compile_cubin(source.code, TARGET, ArtifactCache(fresh_cache))
