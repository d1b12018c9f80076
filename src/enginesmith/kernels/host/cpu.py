"""Host steps of CPU programs: one task calls the function that the runtime passes as an operand."""

from __future__ import annotations

from enginesmith.kernels.base import KernelSource, Phase, Problem, Tactic, tactic
from enginesmith.kernels.host import problem as host
from enginesmith.kernels.nest import nothing_packed, signature
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    return host.why_not(problem)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("onnx_reference"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`. After the operands comes the function's address (see runtime/host_calls.py)."""
    call = f"((void (*)(void))p[{len(problem.operands)}])();\n"
    return KernelSource(signature("NAME", problem) + call + "}\n", (Phase(1),))


pack = nothing_packed
cost = host.cost
