"""Host steps at run time: a plan's steps that `onnx.reference` computes (`runtime/host_node.py`).

The program calls a Python function between two of its steps: through a function pointer on a CPU,
through a node of the stream on a GPU. Nobody can catch an exception there, so it is kept, the
step's outputs become zeros (what follows may use them as indices), the run's other host steps do
nothing, and the caller gets the error with the results.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from enginesmith.errors import EnginesmithError, PlanError
from enginesmith.plan.expression import Evaluator, compile_expression
from enginesmith.plan.plan import HostCall, HostOperand, Plan
from enginesmith.runtime.host_node import HostNode, host_node

if TYPE_CHECKING:
    from enginesmith.runtime.binding import Bound
    from enginesmith.runtime.devices.cuda import CudaDevice

Array = np.ndarray[Any, Any]

CPU_FUNCTION = ctypes.CFUNCTYPE(None)
CUDA_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass(eq=False, slots=True)
class Outcome:
    """What becomes of the host steps of one inference."""

    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """An operand for one set of shapes: `offset` bytes into a buffer of the plan."""

    buffer: int
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def seen(self, memory: Any) -> Array:
        """These bytes as the operand."""
        return np.frombuffer(memory, self.dtype, prod(self.shape)).reshape(self.shape)

    def at(self, address: int) -> Array:
        """The operand's memory, from this address on."""
        if not self.size:
            return np.empty(self.shape, self.dtype)
        return self.seen((ctypes.c_uint8 * self.size).from_address(address))


@dataclass(frozen=True, slots=True)
class SizedCall:
    """A host step for one set of shapes."""

    step: int
    where: str
    node: HostNode
    inputs: tuple[Part, ...]
    outputs: tuple[Part, ...]

    @property
    def empty(self) -> bool:
        """There is nothing to compute."""
        return not any(part.size for part in self.outputs)

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array], outcome: Outcome) -> None:
        """Compute; errors go into `outcome`, and nothing runs where there is one already."""
        for array in inputs:
            array.flags.writeable = False
        if outcome.error is None:
            try:
                self.node.into(inputs, outputs)
                return
            except Exception as error:
                outcome.error = EnginesmithError(
                    f"{self.where} failed on the host: {type(error).__name__}: {error}"
                )
                outcome.error.__cause__ = error
            except BaseException as error:  # an interrupt: the caller's, once the run is over
                outcome.error = error
        for array in outputs:
            array[...] = 0


class _Operand:
    """An operand whose sizes are ready to be evaluated."""

    def __init__(self, operand: HostOperand) -> None:
        self.buffer, self.dtype = operand.place.buffer, np.dtype(operand.dtype)
        self.offset = compile_expression(operand.place.offset)
        self.shape = tuple(map(compile_expression, operand.shape))

    def part(self, values: Mapping[str, int], limits: Sequence[Evaluator]) -> Part:
        shape = tuple(dim(values) for dim in self.shape)
        part = Part(self.buffer, self.offset(values), self.dtype, shape)
        room = limits[self.buffer](values) - part.size
        if min(shape, default=0) < 0 or not 0 <= part.offset <= room:
            raise PlanError("the plan is damaged: a host step reaches outside of its memory")
        return part


class HostCalls:
    """The host steps of a plan. PlanError if one of them can't or may not run here."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._calls = [(call, self._where(call)) for call in plan.hosts]
        self._operands = [
            (tuple(map(_Operand, call.inputs)), tuple(map(_Operand, call.outputs)))
            for call in plan.hosts
        ]
        self._limits = [compile_expression(buffer.size) for buffer in plan.buffers]
        self.nodes()

    def __len__(self) -> int:
        return len(self._calls)

    def _where(self, call: HostCall) -> str:
        names = ", ".join(self.plan.steps[call.step].nodes)
        return f"node {names or f'of step {call.step}'} ({call.operator})"

    def nodes(self) -> list[HostNode]:
        """Evaluators, for one thread at a time."""
        return [
            host_node(c.operator, c.node, c.opset, [o.dtype for o in c.inputs], where)
            for c, where in self._calls
        ]

    def sized(self, nodes: Sequence[HostNode], values: Mapping[str, int]) -> list[SizedCall]:
        """The steps for these values of the symbols."""
        found = []
        for (call, where), node, (inputs, outputs) in zip(
            self._calls, nodes, self._operands, strict=True
        ):
            parts = [
                tuple(o.part(values, self._limits) for o in operands)
                for operands in (inputs, outputs)
            ]
            found.append(SizedCall(call.step, where, node, parts[0], parts[1]))
        return found


class CpuHostCalls:
    """The functions that the program of one context calls. `base`: the addresses of the plan's
    buffers, where the functions' own are put."""

    def __init__(self, calls: HostCalls, base: Any) -> None:
        self._calls, self._base = calls, base
        self._nodes = calls.nodes()
        self._bound: Bound | None = None
        self._sized: list[SizedCall] = []
        self._outcome = Outcome()
        self._functions = [CPU_FUNCTION(partial(self._call, i)) for i in range(len(calls))]
        for i, buffer in enumerate(calls.plan.buffers):
            if buffer.kind == "host":
                base[i] = ctypes.cast(self._functions[buffer.index], ctypes.c_void_p).value

    def begin(self, bound: Bound) -> None:
        """Before a run of these shapes."""
        self._outcome = Outcome()
        if bound is not self._bound:
            self._sized, self._bound = self._calls.sized(self._nodes, bound.symbols), bound

    def end(self) -> None:
        """After it: raises what a host step raised."""
        if self._outcome.error is not None:
            raise self._outcome.error

    def _call(self, index: int) -> None:
        call = self._sized[index]
        if not call.empty:
            inputs, outputs = (
                [part.at(self._base[part.buffer] + part.offset) for part in parts]
                for parts in (call.inputs, call.outputs)
            )
            call.run(inputs, outputs, self._outcome)


class CudaHostCalls:
    """The host steps of one `Run` on a GPU, with page-locked memory of their own."""

    def __init__(
        self, calls: HostCalls, device: CudaDevice, values: Mapping[str, int], base: Sequence[int]
    ) -> None:
        sized = [call for call in calls.sized(calls.nodes(), values) if not call.empty]
        self._started: deque[Outcome] = deque()
        """Of the inferences whose last host step hasn't run yet, in their order on the stream."""
        self.ready = [
            ReadyHost(device, call, calls.plan, base, partial(self._outcome, call is sized[-1]))
            for call in sized
        ]

    def begin(self) -> Outcome:
        """Before an inference is put on the stream: where its errors will be, once it is done."""
        outcome = Outcome()
        if self.ready:
            self._started.append(outcome)
        return outcome

    def withdraw(self, outcome: Outcome) -> None:
        """The inference could not be put on the stream."""
        if any(o is outcome for o in self._started):
            self._started.remove(outcome)

    def _outcome(self, last: bool) -> Outcome:
        """That of the inference whose host step runs now (runs that are only timed have none)."""
        if not self._started:
            return Outcome()
        return self._started.popleft() if last else self._started[0]


class ReadyHost:
    """A host step between launches: copies to page-locked memory, the function, copies back."""

    def __init__(
        self, device: CudaDevice, call: SizedCall, plan: Plan, base: Sequence[int],
        outcome: Callable[[], Outcome],
    ) -> None:  # fmt: skip
        self.step = call.step
        self._device, self._call, self._outcome = device, call, outcome
        self._inputs: list[Array] = []
        self._outputs: list[Array] = []
        self._before: list[tuple[Array, int]] = []
        self._after: list[tuple[Array, int]] = []
        for part in call.inputs:
            if plan.buffers[part.buffer].kind == "weights":  # they are on the host anyway
                self._inputs.append(part.seen(memoryview(plan.weights)[part.offset :]))
            else:
                self._inputs.append(self._staged(part, base, self._before))
        for part in call.outputs:
            self._outputs.append(self._staged(part, base, self._after))
        self._function = CUDA_FUNCTION(self._run)
        address = ctypes.cast(self._function, ctypes.c_void_p).value
        assert address is not None
        self._address = address

    def _staged(self, part: Part, base: Sequence[int], copies: list[tuple[Array, int]]) -> Array:
        memory = self._device.pinned(part.size)
        copies.append((memory, base[part.buffer] + part.offset))
        return part.seen(memory) if part.size else np.empty(part.shape, part.dtype)

    def issue(self, stream: int) -> None:
        """Put it on the stream."""
        for memory, address in self._before:
            self._device.copy_out(memory.ctypes.data, address, memory.nbytes, stream)
        self._device.call_host(self._address, stream)
        for memory, address in self._after:
            self._device.copy_in(address, memory.ctypes.data, memory.nbytes, stream)

    def _run(self, _: object) -> None:
        with _no_collection():
            self._call.run(self._inputs, self._outputs, self._outcome())


_collecting = threading.Lock()
_inside: list[bool] = []
"""For each host function that runs now: was Python's garbage collector on before the first?"""


@contextmanager
def _no_collection() -> Iterator[None]:
    """A host function must not call CUDA, and what the garbage collector finds may do so: contexts
    and memory on the GPU free themselves."""
    with _collecting:
        _inside.append(_inside[0] if _inside else gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _collecting:
            if _inside.pop() and not _inside:
                gc.enable()
