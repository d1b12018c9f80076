"""Convolution on CPUs: which algorithms serve a problem, and their C."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from enginesmith.codegen.expressions import vector_dtypes
from enginesmith.kernels.base import Cost, KernelSource, Problem, Tactic
from enginesmith.kernels.conv import depthwise, direct, few, plain, prologue, transposed, winograd
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.problem import cost as conv_cost
from enginesmith.plan.target import Target

ALGORITHMS: dict[str, ModuleType] = {
    "few": few,
    "depthwise": depthwise,
    "winograd": winograd,
    "direct": direct,
    "transposed": transposed,
}
"""By tactic name; `plain` serves what none of them does."""


HOPELESS = 1.6
"""Estimated slowdown above which only the first candidate of an algorithm is worth timing."""


def why_not(problem: Problem, target: Target) -> str | None:
    """None if some algorithm serves the problem."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if any(o.dtype != "float32" for o in problem.operands):
        return "not float32"
    if not problem.w.constant or problem.w.block:
        return "the weights are not a plain constant"
    if not problem.y.block and (reason := few.why_not(problem, target)) is not None:
        return reason
    if any(o.block not in (0, target.lanes) for o in (problem.x, problem.y)):
        return f"activations are not in blocks of {target.lanes} channels"
    if not vector_dtypes(problem.epilogue, ["float32"] * len(problem.operands)):
        return f"the epilogue is not float32: {problem.epilogue}"
    return prologue.why_not(problem)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Candidates of every algorithm that serves the problem, by its estimated time."""
    assert isinstance(problem, ConvProblem)
    if not problem.y.block:
        return few.tactics(problem, target)
    if problem.prologue is not None:
        return direct.tactics(problem, target)
    able = [a for a in ALGORITHMS.values() if a.why_not(problem, target) is None]
    costs = {a: float(a.best_cycles(problem, target)) for a in able}
    able.sort(key=costs.__getitem__)
    found: list[Tactic] = []
    for algorithm in able:
        hopeless = costs[algorithm] > HOPELESS * costs[able[0]]
        found += algorithm.tactics(problem, target)[: 1 if hopeless else None]
    return tuple(found) or plain.tactics(problem, target)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """The C of a tactic."""
    assert isinstance(problem, ConvProblem)
    source: KernelSource = _module(tactic).emit(problem, tactic, target)
    return source


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The weights in the form the tactic reads."""
    assert isinstance(problem, ConvProblem)
    packed: Mapping[int, np.ndarray] = _module(tactic).pack(problem, tactic, target, constants)
    return packed


def cost(problem: Problem) -> Cost:
    """Work and traffic of the problem."""
    assert isinstance(problem, ConvProblem)
    return conv_cost(problem)


def _module(tactic: Tactic) -> ModuleType:
    return plain if tactic.name == "plain" else ALGORITHMS[tactic.name]
