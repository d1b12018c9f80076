"""Kernel tests on the emulator: every tactic against an expected result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from tests.cuda_kernels import run_source

from enginesmith.kernels.base import Operand, Problem
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

TARGET = Target("cuda", "sm_90")
TARGETS = [Target("cuda", isa) for isa in ("sm_80", "sm_90", "sm_100")]
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Case:
    """A problem, its inputs (logical arrays of any dtype; they are converted to the operands') and
    what its output is, from the converted inputs."""

    family: Any
    problem: Problem
    inputs: Sequence[np.ndarray]
    expected: Callable[..., np.ndarray]
    slots: tuple[int, ...] = ()


def numpy_dtype(operand: Operand) -> np.dtype[Any]:
    return np.dtype(bfloat16 if operand.dtype == "bfloat16" else operand.dtype)


def floats(array: np.ndarray) -> np.ndarray:
    """Stored numbers as float32, others as they are."""
    return array.astype(np.float32) if array.dtype in (np.float16, bfloat16) else array


def check(case: Case, tactics: int = 100) -> None:
    """Every tactic (or the first ones) gives the expected result: exactly for integers, else to
    the precision of the output's dtype."""
    family, problem = case.family, case.problem
    assert family.why_not(problem, TARGET) is None
    given = [
        np.asarray(x).astype(numpy_dtype(o))
        for x, o in zip(case.inputs, problem.operands, strict=False)
    ]
    output = problem.operands[-1]
    expected = case.expected(*map(floats, given))
    for tactic in family.tactics(problem, TARGET)[:tactics]:
        source = family.emit(problem, tactic, TARGET)
        assert source == family.emit(problem, tactic, TARGET), "codegen must be deterministic"
        (y,) = run_source(source, problem, given, case.slots)
        assert y.shape == expected.shape, str(tactic)
        if output.dtype in EPSILON:
            wide = y.astype(np.float64)
            assert np.array_equal(np.isnan(wide), np.isnan(expected)), str(tactic)
            scale = max(1.0, float(np.abs(expected).max(initial=0, where=np.isfinite(expected))))
            np.testing.assert_allclose(
                wide, expected.astype(np.float64), rtol=0, atol=scale * EPSILON[output.dtype],
                err_msg=str(tactic),
            )  # fmt: skip
        else:
            np.testing.assert_array_equal(y, expected.astype(y.dtype), err_msg=str(tactic))


def compile_all(cases: Sequence[Case], cache: ArtifactCache) -> None:
    """NVRTC compiles every tactic's text for each architecture."""
    for case in cases:
        for target in TARGETS:
            for tactic in case.family.tactics(case.problem, target):
                source = case.family.emit(case.problem, tactic, target)
                assert compile_cubin(source.code, target, cache)
