"""Runs kernels for tests, on the emulator or on this machine's GPU.

`run_source` and `run_family` are what tests of kernels call. Every such test exists twice: as it is
on the emulator (tests/cuda_emulator), and marked `cuda`, on the GPU (tests/cuda_kernels/gpu.py).
tests/conftest.py makes the second one of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
from tests import cuda_emulator

from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.plan.target import Target

__all__ = ["MACHINES", "run_family", "run_source", "runs_kernels", "use"]

MACHINES = ("emulator", "gpu")
_state = {"machine": "emulator"}


def use(machine: str) -> None:
    """Which of MACHINES kernels run on from now on."""
    assert machine in MACHINES
    _state["machine"] = machine


def run_source(
    source: CudaSource, problem: Problem, arrays: Sequence[np.ndarray],
    hint_values: Sequence[int] | None = None, *, order: str = "both",
    packed: Mapping[int, np.ndarray] | None = None, arch: int = 90,
) -> list[np.ndarray]:  # fmt: skip
    """The outputs of a kernel; see `tests.cuda_emulator.machine.run_source`."""
    if _state["machine"] == "emulator":
        return cuda_emulator.run_source(
            source, problem, arrays, hint_values, order=order, packed=packed, arch=arch
        )
    from tests.cuda_kernels import gpu

    return gpu.run_source(source, problem, arrays, hint_values, packed=packed, arch=arch)


def run_family(
    family: Any, problem: Problem, tactic: Tactic, target: Target, inputs: Sequence[np.ndarray],
    hint_values: Sequence[int] | None = None, *, order: str = "both",
) -> list[np.ndarray]:  # fmt: skip
    """The outputs of a tactic, its constants packed first."""
    assert family.why_not(problem, target) is None
    source = family.emit(problem, tactic, target)
    assert source.code == family.emit(problem, tactic, target).code, "codegen isn't deterministic"
    constants = {
        i: np.ascontiguousarray(inputs[i], cuda_emulator.numpy_dtype(o.dtype))
        for i, o in enumerate(problem.operands[: len(problem.operands) - problem.outputs])
        if o.constant
    }
    packed = family.pack(problem, tactic, target, constants)
    return run_source(
        source, problem, inputs, hint_values, order=order, packed=packed, arch=target.arch
    )


def runs_kernels(test: Any) -> bool:
    """Whether a test calls `run_source` or `run_family`, itself or through functions that it
    mentions."""
    test = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    seen: set[Any] = set()
    left = [test]
    while left:
        function = left.pop()
        if function in (run_source, run_family):
            return True
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        if function.__module__.partition(".")[0] in ("enginesmith", "numpy"):
            continue
        codes = [function.__code__]
        for code in codes:
            codes += [c for c in code.co_consts if hasattr(c, "co_names")]
            found = (function.__globals__.get(name) for name in code.co_names)
            left += [f for f in found if isinstance(f, FunctionType)]
    return False
