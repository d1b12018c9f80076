"""Host steps of programs for GPUs: the runtime copies, calls and copies back."""

from __future__ import annotations

from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import HostSource
from enginesmith.kernels.host import problem as host
from enginesmith.kernels.host.problem import HostProblem
from enginesmith.kernels.nest import nothing_packed
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    return host.why_not(problem)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("onnx_reference"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> HostSource:
    """See `Family`."""
    assert isinstance(problem, HostProblem)
    return HostSource(problem.operator)


pack = nothing_packed
cost = host.cost
