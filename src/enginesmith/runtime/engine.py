"""The engine: a plan ready to run."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from enginesmith.errors import DeviceError, FeedError, PlanError
from enginesmith.plan import file
from enginesmith.plan.plan import Plan, TensorSpec
from enginesmith.runtime.binding import Binder
from enginesmith.runtime.context import ExecutionContext, Outputs
from enginesmith.runtime.devices.cpu import Program
from enginesmith.runtime.devices.memory import Memory
from enginesmith.runtime.report import report_text

if TYPE_CHECKING:
    from enginesmith.runtime.cuda_context import CudaExecutionContext
    from enginesmith.runtime.cuda_program import CudaProgram

    Context: TypeAlias = ExecutionContext | CudaExecutionContext


class Engine:
    """A model, built. Call it from any thread: `engine({"x": array})` or, with one input,
    `engine(array)`.

    threads: how many it computes with on a CPU; None for ENGINESMITH_THREADS, or all CPUs it may
    use. PlanError if this machine can't run the plan, DeviceError if it has no usable GPU for it.
    """

    def __init__(self, plan: Plan, threads: int | None = None, defer: bool = False) -> None:
        """defer: a plan for a GPU that isn't in this machine can be saved and looked at; the error
        comes when it is run."""
        self.plan = plan
        self._gpu: CudaProgram | None = None
        self._cpu: Program | None = None
        if plan.target.startswith("cuda"):
            try:
                self._gpu = _on_gpu(plan)
            except (DeviceError, PlanError):
                if not defer:
                    raise
        else:
            self._cpu = Program(plan, threads)
            self._weights, self._weights_address = _aligned(plan.weights)
        self._binder = Binder(plan)
        self._shared: Context | None = None
        self._turn = threading.Lock()
        _ENGINES.add(self)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, numpy type and shape of each input; symbolic dims are names or expressions."""
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As `inputs`."""
        return self.plan.outputs

    @property
    def threads(self) -> int:
        """Threads it computes with (1 on a GPU)."""
        return self._cpu.threads if self._cpu is not None else 1

    @property
    def report(self) -> str:
        """What was built, as text: target, fusions, every step with its tactic, what fell back."""
        return report_text(self.plan, self._gpu.notes if self._gpu is not None else ())

    def __call__(self, feeds: Any = None, /, *more: Any) -> Outputs:
        """Run one inference: outputs by name, in the graph's order, in memory of their own.

        feeds: a dict of arrays by input name; or the arrays themselves, in the inputs' order. Safe
        from any thread. Errors as ExecutionContext.execute.
        """
        named = self._named(feeds, more)
        # Runs of one engine take turns on its threads, so callers share one context: as fast as one
        # each, and cheaper in memory and cache.
        with self._turn:
            if self._shared is None:
                self._shared = self.context()
            return self._shared.execute(named)

    def _named(self, feeds: Any, more: tuple[Any, ...]) -> Mapping[str, Any]:
        if isinstance(feeds, Mapping) and not more:
            return feeds
        arrays = () if feeds is None and not more else (feeds, *more)
        if len(arrays) != len(self.inputs):
            names = [spec.name for spec in self.inputs]
            raise FeedError(
                f"{len(arrays)} arrays given, but the engine has {len(names)} inputs: {names}; "
                "pass them all in this order, or a dict of arrays by name"
            )
        return {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}

    def context(self) -> Context:
        """A new execution context: for control of memory, asynchronous runs and profiling."""
        if self._cpu is not None:
            return ExecutionContext(
                self.plan, self._binder, self._cpu, self._weights, self._weights_address
            )
        from enginesmith.runtime.cuda_context import CudaExecutionContext

        self._gpu = self._gpu or _on_gpu(self.plan)
        return CudaExecutionContext(self.plan, self._binder, self._gpu)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file; all or nothing. PlanError if it can't be written."""
        file.save(self.plan, path)

    def close(self) -> None:
        """Stop the threads and free the memory; running the engine is an error afterwards."""
        self._shared = None
        for program in (self._cpu, self._gpu):
            if program is not None:
                program.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.plan.name!r}, {self.plan.target}, {self.threads} threads)"

    def after_fork(self) -> None:
        """In a forked child: a thread that was using the shared context is gone with its turn."""
        self._turn = threading.Lock()
        self._shared = None


def _on_gpu(plan: Plan) -> CudaProgram:
    """The plan on this machine's GPU. DeviceError if there is none, PlanError if it is another."""
    from enginesmith.runtime.cuda_program import CudaProgram
    from enginesmith.runtime.devices.cuda import cuda_device

    return CudaProgram(plan, cuda_device())


def load(path: str | os.PathLike[str], threads: int | None = None) -> Engine:
    """The engine of a saved plan. PlanError if the file is damaged or made for another machine."""
    return Engine(file.load(path), threads)


def _aligned(weights: bytes | memoryview) -> tuple[Any, int]:
    """The weights at a multiple of 64 (as they are if they lie there): what holds them, address."""
    view = np.frombuffer(weights, np.uint8)
    address: int = view.__array_interface__["data"][0]
    if address % 64 == 0 and len(view):
        return view, address
    memory = Memory(len(view))
    memory.array()[:] = view
    return memory, memory.address


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in _ENGINES:
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)
