"""Convolution on GPUs: which algorithms serve a problem, and their CUDA C++."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from enginesmith.kernels.base import Cost, Problem, Tactic
from enginesmith.kernels.conv import (
    banded_cuda,
    cublaslt,
    cudnn,
    depthwise_cuda,
    direct_cuda,
    gathered,
    gemv_cuda,
    grouped_cuda,
    mma,
    patch,
    stem_cuda,
    triton,
    wgmma,
)
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.problem import cost as conv_cost
from enginesmith.kernels.cuda import CudaSource, LibrarySource
from enginesmith.plan.target import Target

SPECIAL: dict[str, ModuleType] = {
    "gemv": gemv_cuda,
    "depthwise": depthwise_cuda,
    "banded": banded_cuda,
    "stem": stem_cuda,
    "gathered": gathered,
    "grouped": grouped_cuda,
}
"""For forms of convolutions that tiles for tensor cores fit badly."""

ALGORITHMS: dict[str, ModuleType] = SPECIAL | {
    "wgmma": wgmma, "mma": mma, "patch": patch, "direct": direct_cuda,
}  # fmt: skip
"""By tactic name. `direct` serves everything."""

OTHERS: dict[str, ModuleType] = {
    "triton": triton, "cublaslt": cublaslt, "cudnn": cudnn,
}  # fmt: skip
"""The same, of tactics that come from other sources (kernels/sources.py)."""

LARGE = 2e9
"""Operations from which `wgmma`'s tiles fill the machine."""

SMALL = 1e8
"""Operations below which `direct` is worth a try where tensor cores serve, too."""


def why_not(problem: Problem, target: Target) -> str | None:
    """None if some algorithm serves the problem, else what hinders the most general one."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    return None if _able(problem, target) else direct_cuda.why_not(problem, target)


def _able(problem: ConvProblem, target: Target) -> list[str]:
    """The algorithms that serve the problem, the most promising first."""
    able = [name for name, a in ALGORITHMS.items() if a.why_not(problem, target) is None]
    work = problem.typical(conv_cost(problem).flops)
    if "wgmma" in able and work < LARGE:
        able.sort(key=lambda name: name not in (*SPECIAL, "mma", "patch"))
    if "patch" in able and not patch.pays(problem):
        able.remove("patch")
    if "depthwise" in able and "mma" in able:
        able.remove("mma")  # it would multiply 32 times as many numbers
    return able


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Candidates of every algorithm that serves the problem."""
    assert isinstance(problem, ConvProblem)
    able = _able(problem, target)
    if len(able) > 1 and problem.typical(conv_cost(problem).flops) > SMALL:
        able.remove("direct")
    return tuple(t for name in able for t in ALGORITHMS[name].tactics(problem, target))


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource | LibrarySource:
    """See `Family`."""
    source: CudaSource | LibrarySource = (ALGORITHMS | OTHERS)[tactic.name].emit(
        problem, tactic, target
    )
    return source


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """See `Family`."""
    algorithm = (ALGORITHMS | OTHERS)[tactic.name]
    packed: Mapping[int, np.ndarray] = algorithm.pack(problem, tactic, target, constants)
    return packed


def cost(problem: Problem) -> Cost:
    """See `Family`."""
    assert isinstance(problem, ConvProblem)
    return conv_cost(problem)
