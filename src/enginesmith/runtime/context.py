"""An execution context: the memory of one inference at a time, and asynchronous execution."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from enginesmith.errors import ContextError
from enginesmith.plan.plan import Plan
from enginesmith.runtime.binding import Binder, Bound, Shape
from enginesmith.runtime.devices.cpu import Program
from enginesmith.runtime.devices.memory import Memory
from enginesmith.runtime.feeds import Array, check_outputs, gather
from enginesmith.runtime.host_calls import CpuHostCalls

if TYPE_CHECKING:
    from enginesmith.runtime.devices.cuda import CudaDevice

Outputs = dict[str, Array]
IN_USE = (
    "the execution context is in use: another thread runs it, or it has enqueued inferences; "
    "wait for them, or take a context per thread with engine.context()"
)


class Pending:
    """The result of an enqueued inference, when it comes."""

    def __init__(self, future: Future[Outputs]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> Outputs:
        """Wait for the outputs, by name; raises what the inference raised. TimeoutError after
        `timeout` seconds."""
        from concurrent.futures import TimeoutError as FutureTimeout  # another class before 3.11

        try:
            return self._future.result(timeout)
        except FutureTimeout as error:
            if self._future.done():
                raise
            raise TimeoutError(f"the inference isn't done after {timeout} s") from error

    def done(self) -> bool:
        """Whether `result` would return (or raise) at once."""
        return self._future.done()


class Stream:
    """A queue of inferences, run one after the other in the order they came: on a CPU by a thread
    of its own, on a GPU as a stream of the device."""

    def __init__(self) -> None:
        self._process = 0
        self._on_gpu: dict[int, int] = {}

    def cuda_stream(self, device: CudaDevice) -> int:
        """The stream's handle on a GPU, made when first asked for."""
        if device.ordinal not in self._on_gpu:
            handle = device.stream()
            self._on_gpu[device.ordinal] = handle
            weakref.finalize(self, device.close_stream, handle).atexit = False
        return self._on_gpu[device.ordinal]

    def _start(self) -> None:
        self._process = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(
            target=_serve, args=(self._jobs,), name="enginesmith-stream", daemon=True
        ).start()
        # The thread knows the queue alone, so an abandoned stream is collected and ends it.
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def submit(self, job: Callable[[], Outputs]) -> Pending:
        """Run `job` after all that was submitted before."""
        if self._process != os.getpid():
            self._start()  # the first job, or forked: the thread stayed in the parent
        future: Future[Outputs] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(run)
        return Pending(future)


def _serve(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # hold no arrays while waiting


class ExecutionContext:
    """Runs inferences of an engine in memory of its own; the weights are the engine's.

    A context serves one thread at a time and raises ContextError otherwise. Runs of all contexts of
    an engine take turns on the engine's threads.
    """

    def __init__(
        self, plan: Plan, binder: Binder, program: Program, weights: Any, address: int
    ) -> None:
        self._plan = plan
        self._weights = weights  # keeps the memory at `address` alive
        self._binder = binder
        self._program = program
        self._guard = threading.Lock()  # of the next three; held for moments only
        self._running = False
        self._queued = 0
        self._queued_on: Stream | None = None
        self._own_stream: Stream | None = None
        self._bound: Bound | None = None
        self._arena = Memory(0)
        self._staging: dict[int, Array] = {}
        self._base = (ctypes.c_void_p * max(1, len(plan.buffers)))()
        self._inputs = [(i, b) for i, b in enumerate(plan.buffers) if b.kind == "input"]
        self._outputs = [(i, b) for i, b in enumerate(plan.buffers) if b.kind == "output"]
        self._slack = {b.index: b.slack for _, b in self._outputs}
        self._base_address = ctypes.addressof(self._base)
        for i, buffer in enumerate(plan.buffers):
            if buffer.kind == "weights":
                self._base[i] = address
        self._hosts = CpuHostCalls(program.hosts, self._base) if len(program.hosts) else None

    def execute(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Array] | None = None
    ) -> Outputs:
        """Run one inference. Returns the outputs by name, in the graph's order.

        feeds: arrays by input name: numpy, or anything with `__dlpack__` or `__array__`. Any
        strides and byte order do; C-contiguous native ones aren't copied. Types are never
        converted.
        outputs: arrays to write results into instead of new ones, for some or all outputs
        (C-contiguous, of the exact type and shape, apart from each other and from the inputs).

        FeedError lists everything wrong with the arrays; ContextError if the context is in use;
        EnginesmithError names the node if a step on the host fails.
        """
        with self._claimed():
            return self._execute(feeds, outputs or {}, None)

    def enqueue(self, feeds: Mapping[str, Any], stream: Stream | None = None) -> Pending:
        """Run one inference later, on `stream` (the context's own if None), and return at once.

        Inferences of a stream run in order. Don't change the fed arrays before the result is there.
        ContextError if the context is in use, or still has work on another stream.
        """
        with self._guard:
            if self._running:
                raise ContextError(IN_USE)
            if self._queued and stream not in {None, self._queued_on}:
                raise ContextError(
                    "the context has inferences enqueued on another stream; wait for their "
                    "results first, or take one context per stream"
                )
            if not self._queued:
                self._queued_on = stream or self._own_stream or Stream()
                if stream is None:
                    self._own_stream = self._queued_on
            self._queued += 1
            queued_on = self._queued_on
        assert queued_on is not None
        return queued_on.submit(lambda: self._dequeue(feeds))

    def profile(self, feeds: Mapping[str, Any]) -> list[float]:
        """Run one inference; the seconds each of the plan's steps took."""
        stamps = (ctypes.c_int64 * (len(self._plan.steps) + 1))()
        with self._claimed():
            self._execute(feeds, {}, ctypes.addressof(stamps))
        return [(b - a) / 1e9 for a, b in pairwise(stamps)]

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        with self._guard:
            if self._running or self._queued:
                raise ContextError(IN_USE)
            self._running = True
        try:
            yield
        finally:
            self._running = False

    def _dequeue(self, feeds: Mapping[str, Any]) -> Outputs:
        try:
            return self._execute(feeds, {}, None)
        finally:
            with self._guard:
                self._queued -= 1

    def _execute(
        self, feeds: Mapping[str, Any], given: Mapping[str, Array], stamps: int | None
    ) -> Outputs:
        arrays, bound = gather(self._plan.inputs, feeds, self._binder)
        if given:
            check_outputs(self._plan.outputs, bound.outputs, given, arrays)
        self._place(bound)
        base = self._base
        for i, buffer in self._inputs:
            base[i] = _address(self._readable(buffer.index, buffer.slack, arrays))
        results: Outputs = {}
        written = []
        for index, (spec, shape) in enumerate(zip(self._plan.outputs, bound.outputs, strict=True)):
            slack = self._slack.get(index, 0)
            target = given.get(spec.name)
            # A given array may end at the end of a page, so it can't be read past its ends.
            array = _empty(shape, spec.dtype, slack) if target is None or slack else target
            written.append(array)
            results[spec.name] = array if target is None else target
        for i, buffer in self._outputs:
            base[i] = _address(written[buffer.index])
        if self._hosts is not None:
            self._hosts.begin(bound)
        self._program.run(self._base_address, ctypes.addressof(bound.dims), bound.scratch, stamps)
        if self._hosts is not None:
            self._hosts.end()
        for array, target in zip(written, results.values(), strict=True):
            if array is not target:
                target[...] = array
        return results

    def _place(self, bound: Bound) -> None:
        """Point the arena's buffers to their places, in a larger arena if this one is too small."""
        if bound is self._bound:
            return
        if bound.arena > self._arena.size:
            self._arena = Memory(0)  # first let go of the old one: they need not exist together
            self._bound = None
            self._arena = Memory(bound.arena)
        start = self._arena.address
        for i, offset in bound.offsets:
            self._base[i] = start + offset
        self._bound = bound

    def _readable(self, index: int, slack: int, arrays: list[Array]) -> Array:
        """Input `index` as dense memory that may be read `slack` bytes past its ends."""
        array = arrays[index]
        if slack == 0:
            if not array.flags.c_contiguous:
                array = arrays[index] = np.ascontiguousarray(array)
            return array
        staging = self._staging.get(index)
        if staging is None or staging.size < array.nbytes + 2 * slack:
            self._staging[index] = staging = np.empty(array.nbytes + 2 * slack, np.uint8)
        copy: Array = staging[slack : slack + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy


def _empty(shape: Shape, dtype: str, slack: int) -> Array:
    if slack == 0:
        return np.empty(shape, dtype)
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 2 * slack, np.uint8)
    return memory[slack : slack + size].view(dtype).reshape(shape)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
