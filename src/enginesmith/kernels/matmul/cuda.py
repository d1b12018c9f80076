"""Matrix products on GPUs: which algorithms serve a problem, and their CUDA C++."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource, LibrarySource
from enginesmith.kernels.matmul import cublaslt, gemv, mma, simple, triton, wgmma
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.matmul.problem import cost as matmul_cost
from enginesmith.plan.target import Target

ALGORITHMS: dict[str, ModuleType] = {"wgmma": wgmma, "mma": mma, "gemv": gemv, "simple": simple}
"""By tactic name. `simple` serves everything."""

OTHERS: dict[str, ModuleType] = {"triton": triton, "cublaslt": cublaslt}
"""The same, of tactics that come from other sources (kernels/sources.py)."""

LARGE = 2e9
"""Operations from which `wgmma`'s tiles fill the machine."""

SMALL = 1e8
"""Operations below which `simple` is worth a try where tensor cores serve, too."""

cost = matmul_cost


def why_not(problem: Problem, target: Target) -> str | None:
    """None if some algorithm serves the problem, else what hinders the most general one."""
    return simple.why_not(problem, target)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Candidates of every algorithm that serves the problem, the most promising first: `gemv` for
    few rows, `wgmma` for much work."""
    assert isinstance(problem, MatMulProblem)
    able = [name for name, a in ALGORITHMS.items() if a.why_not(problem, target) is None]
    work = problem.typical(matmul_cost(problem).flops)
    if "gemv" in able:
        able.sort(key=lambda name: name != "gemv")
    elif work < LARGE:
        able.sort(key=lambda name: name != "mma")
    if len(able) > 1 and work > SMALL:
        able.remove("simple")
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
