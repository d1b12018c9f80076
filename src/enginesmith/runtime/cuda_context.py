"""Execution contexts on a GPU: staging, copies that overlap compute, and graphs that are replayed.

Two inferences of a context can be in flight. Each has a slot: page-locked memory on the host and
buffers on the GPU for inputs and outputs. Copies run on streams of their own, so that while one
inference computes, the next one's inputs and the last one's outputs travel.

Launching a hundred kernels takes the host longer than the GPU. So from the second run of a set of
shapes and addresses on, its launches are captured as a graph and replayed. Graphs are remembered,
the least recently used dropped first; memory that moves makes them anew.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from enginesmith.errors import ContextError, DeviceError
from enginesmith.plan.arena import align
from enginesmith.plan.plan import Plan
from enginesmith.runtime.binding import Binder, Bound, MisfitError
from enginesmith.runtime.context import IN_USE, Outputs, Pending, Stream
from enginesmith.runtime.cuda_program import CudaProgram, Run, addresses_of
from enginesmith.runtime.device_array import DeviceArray, as_device_array, new_array, on_device
from enginesmith.runtime.devices.cuda import CudaDevice, DeviceMemory
from enginesmith.runtime.feeds import Array, StandIn, feed_error, gather, output_problems
from enginesmith.runtime.host_calls import Outcome

GRAPHS = 32
"""Graphs a context remembers."""

ALIGNED = 16
"""Bytes kernels take the addresses of inputs and outputs to be multiples of."""

SLOTS = 2
"""Inferences of a context in flight."""


class _Buffer:
    """Memory that grows: page-locked on the host, or on the GPU."""

    def __init__(self) -> None:
        self.host = np.empty(0, np.uint8)
        self.device: DeviceMemory | None = None

    def on_host(self, device: CudaDevice, size: int) -> Array:
        """At least `size` bytes of page-locked memory."""
        if self.host.size < size:
            self.host = device.pinned(size)
        return self.host[:size]

    def on_gpu(self, device: CudaDevice, size: int) -> int:
        """The address of at least `size` bytes on the GPU."""
        if self.device is None or self.device.size < size:
            self.device = None  # the old one need not exist beside the new one
            self.device = device.allocate(size)
        return self.device.address


@dataclass
class _Slot:
    """What one inference in flight needs. copied_in, computed, done: events."""

    inputs: dict[int, _Buffer] = field(default_factory=dict)
    outputs: dict[int, _Buffer] = field(default_factory=dict)
    copied_in: int = 0
    computed: int = 0
    done: int = 0
    pending: CudaPending | None = None


class CudaPending(Pending):
    """The result of an enqueued inference on a GPU, when it comes."""

    def __init__(
        self, program: CudaProgram, event: int, results: Outputs, fill: list[tuple[Array, Array]],
        keep: Any, outcome: Outcome,
    ) -> None:  # fmt: skip
        self._outcome = outcome
        self._program, self._device, self._event = program, program.device, event
        self._results, self._fill, self._keep = results, fill, keep
        self._error: BaseException | None = None
        self.collected = False
        self._lock = threading.Lock()

    def result(self, timeout: float | None = None) -> Outputs:
        """See `Pending`. (A timeout is looked at before the wait only.)"""
        if timeout is not None and not self.done():
            end = time.monotonic() + timeout
            while not self.done():
                if time.monotonic() > end:
                    raise TimeoutError(f"the inference isn't done after {timeout} s")
                time.sleep(20e-6)
        self.collect()
        if self._error is not None:
            raise self._error
        return self._results

    def done(self) -> bool:
        """See `Pending`."""
        return self.collected or self._device.done(self._event)

    def collect(self) -> None:
        """Wait, and take the results out of the slot's memory. Errors are kept for `result`."""
        with self._lock:
            if self.collected:
                return
            try:
                self._device.use()  # another thread than the one that enqueued may collect
                self._device.wait_for(self._event)
                self._error = self._outcome.error
                for target, staged in self._fill if self._error is None else ():
                    target[...] = staged
            except DeviceError as error:
                self._program.note(error)
                self._error = error
            self.collected, self._fill, self._keep = True, [], None


class CudaExecutionContext:
    """Runs inferences of an engine on a GPU in memory of its own; code and weights are shared.

    A context serves one thread at a time and raises ContextError otherwise. Contexts run side by
    side: give each thread its own.
    """

    def __init__(self, plan: Plan, binder: Binder, program: CudaProgram) -> None:
        self._plan, self._binder, self._program = plan, binder, program
        self._device = program.device
        self._guard = threading.Lock()
        self._bound: Bound | None = None
        self._arena: DeviceMemory | None = None
        self._persistent: dict[int, DeviceMemory] = {}
        self._base: list[int] = []
        self._graphs: OrderedDict[tuple[Any, ...], tuple[Run, int]] = OrderedDict()
        self._slots = [_Slot() for _ in range(SLOTS)]
        self._streams: tuple[int, int, int] | None = None
        self._last_stream = 0

    def execute(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None,
        results: str = "host",
    ) -> Outputs:  # fmt: skip
        """Run one inference. Returns the outputs by name, in the graph's order.

        feeds: arrays by input name: numpy (or what converts to it), or arrays in this GPU's memory
        (`__cuda_array_interface__` or DLPack; C-contiguous), which are read where they are. Arrays
        on the GPU must be complete when this is called. outputs: arrays to write results into
        instead of new ones, on the host or on the GPU. results: "host" for new numpy arrays,
        "device" for new DeviceArrays.

        FeedError lists everything wrong with the arrays; ContextError if the context is in use;
        DeviceError if the GPU fails; EnginesmithError names the node if a step on the host fails.
        """
        return self.enqueue(feeds, None, outputs, results).result()

    def enqueue(
        self, feeds: Mapping[str, Any], stream: Stream | None = None,
        outputs: Mapping[str, Any] | None = None, results: str = "host",
    ) -> CudaPending:  # fmt: skip
        """Start one inference and return at once; arguments and errors as `execute`.

        Host arrays may be changed once this returns; arrays on the GPU when the result is there.
        stream: inferences on a stream run one after the other; the context's own by default. If two
        inferences are in flight already, it waits for the older one.
        """
        if results not in ("host", "device"):
            raise ContextError(f"results={results!r}: choose 'host' or 'device'")
        if not self._guard.acquire(blocking=False):
            raise ContextError(IN_USE)
        try:
            return self._start(feeds, stream, outputs or {}, results)
        except DeviceError as error:
            self._program.note(error)
            raise
        finally:
            self._guard.release()

    def profile(self, feeds: Mapping[str, Any]) -> list[float]:
        """Run one inference; the seconds each of the plan's steps took on the GPU, one after the
        other (in a normal run consecutive steps overlap a little)."""
        self.execute(feeds, results="device")
        with self._guard, self._program.watched():
            run, compute = self._last_run()
            stamps = [self._device.event(timing=True) for _ in range(len(self._plan.steps) + 1)]
            with self._device.capture(compute) as made:
                run.issue(compute, stamps)
            try:
                best = [float("inf")] * len(self._plan.steps)
                for _ in range(5):
                    self._device.replay(made[0], compute)
                    self._device.synchronize(compute)
                    times = [self._device.elapsed(a, b) for a, b in pairwise(stamps)]
                    best = [min(a, b) for a, b in zip(best, times, strict=True)]
            finally:
                self._device.close_graph(made[0])
                for stamp in stamps:
                    self._device.close_event(stamp)
        return best

    def gpu_times(
        self, feeds: Mapping[str, Any], repeats: int, inner: int = 1,
        outputs: Mapping[str, Any] | None = None,
    ) -> list[float]:  # fmt: skip
        """Seconds of the GPU's own work per inference (no copies), measured `repeats` times with
        events around `inner` replays of the graph, one right after the other."""
        for _ in range(3):
            self.execute(feeds, outputs, results="device")
        with self._guard, self._program.watched():
            graph, compute = next(reversed(self._graphs.values()))[1], self._last_stream
            return self._timed(lambda: self._device.replay(graph, compute), compute, repeats, inner)

    def measure(self, feeds: Mapping[str, Any], repeats: int) -> dict[str, list[float]]:
        """Seconds of each of `repeats` inferences one after the other, by part.

        "enqueue": of the host's, until `enqueue` returns; "end to end": until the results are there
        as numpy arrays. "h2d", "compute", "d2h": the GPU's, each timed alone: copies of the feeds
        (if on the host) and of the outputs, and the kernels.
        """
        clock = time.perf_counter
        times: dict[str, list[float]] = {"enqueue": [], "end to end": []}
        compute = self.gpu_times(feeds, repeats)
        made = self.execute(feeds)
        for _ in range(repeats):
            start = clock()
            pending = self.enqueue(feeds)
            enqueued = clock()
            pending.result()
            end = clock()
            times["enqueue"].append(enqueued - start)
            times["end to end"].append(end - start)
        with self._guard, self._program.watched():
            host = [feeds[s.name] for s in self._plan.inputs if not on_device(feeds[s.name])]
            h2d = self._copy_times([np.asarray(a).nbytes for a in host], True, repeats)
            d2h = self._copy_times([a.nbytes for a in made.values()], False, repeats)
        return {"h2d": h2d, "compute": compute, "d2h": d2h, **times}

    def _copy_times(self, sizes: Sequence[int], inwards: bool, repeats: int) -> list[float]:
        """Seconds of copying arrays of these sizes from page-locked memory to the GPU, or back."""
        device, stream = self._device, self._open_streams()[0]
        pairs = [(size, device.pinned(size), device.allocate(size)) for size in sizes]

        def job() -> None:
            for size, host, memory in pairs:
                if inwards:
                    device.copy_in(memory.address, host.ctypes.data, size, stream)
                else:
                    device.copy_out(host.ctypes.data, memory.address, size, stream)

        return self._timed(job, stream, repeats)

    def _timed(
        self, job: Callable[[], None], stream: int, repeats: int, inner: int = 1
    ) -> list[float]:
        """Seconds of what `job` puts on the stream, timed `repeats` times with events around
        `inner` of them."""
        device = self._device
        start, end = (device.event(timing=True) for _ in range(2))
        times = []
        try:
            for _ in range(repeats):
                device.record(start, stream)
                for _ in range(inner):
                    job()
                device.record(end, stream)
                device.wait_for(end)
                times.append(device.elapsed(start, end) / inner)
        finally:
            device.close_event(start)
            device.close_event(end)
        return times

    def _last_run(self) -> tuple[Run, int]:
        return next(reversed(self._graphs.values()))[0], self._last_stream

    # -- one inference ----------------------------------------------------------------------------

    def _start(
        self, feeds: Mapping[str, Any], stream: Stream | None, given: Mapping[str, Any],
        results: str,
    ) -> CudaPending:  # fmt: skip
        self._program.check_usable()
        device = self._device
        device.use()
        feeds_in, bound = self._gather(feeds)
        if bound is not self._bound:  # else these shapes have run before
            self._check_sizes(bound)
        host_given = self._check_given(bound, given, feeds_in)
        copy_in, own, copy_out = self._open_streams()
        compute = own if stream is None else stream.cuda_stream(device)
        if self._last_stream not in (0, compute):
            self._drain()  # the arena is one: another stream must not overtake
        self._last_stream = compute
        self._place(bound)
        slot = self._next_slot()
        base = list(self._base)
        staged = self._stage(slot, feeds_in, base, copy_in)
        if staged:
            device.record(slot.copied_in, copy_in)
            device.wait(compute, slot.copied_in)
        made, fill, copies, moves = self._targets(slot, bound, host_given, given, results, base)
        outcome = self._run(bound, base, compute)
        for to, source, size in moves:
            device.copy(to, source, size, compute)
        last = compute
        if copies:
            device.record(slot.computed, compute)
            device.wait(copy_out, slot.computed)
            for staging, source in copies:
                device.copy_out(staging.ctypes.data, source, staging.nbytes, copy_out)
            last = copy_out
        device.record(slot.done, last)
        keep = (feeds_in, given, stream)
        slot.pending = CudaPending(self._program, slot.done, made, fill, keep, outcome)
        return slot.pending

    def _gather(self, feeds: Mapping[str, Any]) -> tuple[list[Array | DeviceArray], Bound]:
        """The inputs in order, and what their shapes bind to. FeedError lists every misfit."""
        if not any(map(on_device, feeds.values())):
            arrays, bound = gather(self._plan.inputs, feeds, self._binder)
            return list(arrays), bound
        stand_ins: dict[str, Any] = {}
        found: dict[str, DeviceArray] = {}
        for name, value in feeds.items():
            if not on_device(value):
                stand_ins[name] = value
                continue
            array, problem = as_device_array(self._device, value)
            checked = None
            if array is not None:
                found[name] = array
                checked = np.broadcast_to(np.empty((), array.dtype), array.shape)
            stand_ins[name] = StandIn(checked, problem)
        arrays, bound = gather(self._plan.inputs, stand_ins, self._binder)
        named = zip(self._plan.inputs, arrays, strict=True)
        return [found.get(spec.name, array) for spec, array in named], bound

    def _check_sizes(self, bound: Bound) -> None:
        try:
            self._program.check_sizes(bound.symbols)
        except MisfitError as misfit:
            raise feed_error(misfit.problems) from None

    def _check_given(
        self, bound: Bound, given: Mapping[str, Any], feeds: Sequence[Array | DeviceArray]
    ) -> dict[str, Array]:
        """The given outputs on the host, checked; those on the GPU are checked too."""
        host = {name: array for name, array in given.items() if not on_device(array)}
        inputs = [a for a in feeds if isinstance(a, np.ndarray)]
        taken = [a for a in feeds if isinstance(a, DeviceArray)]
        problems = output_problems(self._plan.outputs, bound.outputs, host, inputs)
        shapes = zip(self._plan.outputs, bound.outputs, strict=True)
        expected = {spec.name: (spec.dtype, shape) for spec, shape in shapes}
        for name, value in given.items():
            if name in host:
                continue
            array, problem = as_device_array(self._device, value)
            if name not in expected:
                problems.append(f"there is no output {name!r}; the outputs are {list(expected)}")
                continue
            dtype, shape = expected[name]
            faults = [problem.partition(";")[0]] if problem else []
            if array is not None and (array.dtype.name, array.shape) != (dtype, shape):
                faults.append(f"is {array.dtype} of shape {array.shape}")
            if array is None or faults:
                problems.append(
                    f"the array for output {name!r} {' and '.join(faults)}; it must be a "
                    f"C-contiguous array of type {dtype} and shape {shape}"
                )
            else:
                facts = getattr(value, "__cuda_array_interface__", {"data": (0, False)})
                if facts["data"][1]:
                    problems.append(f"the array for output {name!r} is read-only")
                if any(_overlap(array, other) for other in taken):
                    problems.append(
                        f"the array for output {name!r} shares memory with another array"
                    )
                taken.append(array)
        if problems:
            raise feed_error(problems)
        return host

    def _open_streams(self) -> tuple[int, int, int]:
        if self._streams is None:
            device = self._device
            self._streams = (device.stream(), device.stream(), device.stream())
            for slot in self._slots:
                slot.copied_in, slot.computed, slot.done = (device.event() for _ in range(3))
        return self._streams

    def _next_slot(self) -> _Slot:
        """A slot whose last inference is done and collected: an idle one (the same one again for
        inferences one after the other, whose graph then serves them all), else the older."""
        for slot in self._slots:
            if slot.pending is None or slot.pending.collected:
                slot.pending = None
                break
        else:
            slot = self._slots.pop(0)
            self._slots.append(slot)
            assert slot.pending is not None
            slot.pending.collect()
        return slot

    def _drain(self) -> None:
        """Wait for everything in flight."""
        for slot in self._slots:
            if slot.pending is not None:
                slot.pending.collect()

    def _place(self, bound: Bound) -> None:
        """Point the arena's buffers to their places, in a larger arena if this one is too small."""
        if bound is self._bound:
            return
        device = self._device
        if not self._base:
            _, weights = self._program.load()
            self._base = addresses_of(self._plan, weights.address)
        grows = [
            (i, size) for i, size in bound.persistent
            if i not in self._persistent or self._persistent[i].size < size
        ]  # fmt: skip
        if grows or self._arena is None or bound.arena > self._arena.size:
            self._drain()
            self._drop_graphs()
            self._bound = None
            for i, size in grows:
                self._persistent[i] = memory = device.allocate(align(size))
                self._base[i] = memory.address
            if self._arena is None or bound.arena > self._arena.size:
                self._arena = None
                self._arena = device.allocate(bound.arena)
        # Where these sizes keep counters, others may have left sums.
        for i, size in bound.persistent:
            device.clear(self._base[i], size, self._last_stream)
        for i, offset in bound.offsets:
            self._base[i] = self._arena.address + offset
        self._bound = bound

    def _stage(
        self, slot: _Slot, arrays: Sequence[Array | DeviceArray], base: list[int], stream: int
    ) -> bool:
        """Give every input an address on the GPU; true if something is being copied there."""
        device, copied = self._device, False
        for i, buffer in enumerate(self._plan.buffers):
            if buffer.kind != "input":
                continue
            array = arrays[buffer.index]
            if isinstance(array, DeviceArray) and array.address % ALIGNED == 0:
                base[i] = array.address
                continue
            memory = slot.inputs.setdefault(buffer.index, _Buffer())
            base[i] = memory.on_gpu(device, array.nbytes)
            if isinstance(array, DeviceArray):
                device.copy(base[i], array.address, array.nbytes, stream)
            else:
                staging = memory.on_host(device, array.nbytes)
                staging.view(array.dtype).reshape(array.shape)[...] = array
                device.copy_in(base[i], staging.ctypes.data, array.nbytes, stream)
            copied = True
        return copied

    def _targets(
        self, slot: _Slot, bound: Bound, host: Mapping[str, Array], given: Mapping[str, Any],
        results: str, base: list[int],
    ) -> tuple[
        Outputs, list[tuple[Array, Array]], list[tuple[Array, int]], list[tuple[int, int, int]]
    ]:  # fmt: skip
        """Where outputs go: (results by name, (host array, its staging) to fill at the end,
        (staging, address) to copy out, (to, from, bytes) to copy on the GPU)."""
        device, made = self._device, dict[str, Any]()
        fill, copies, moves = [], [], []
        buffers = {b.index: i for i, b in enumerate(self._plan.buffers) if b.kind == "output"}
        for index, (spec, shape) in enumerate(zip(self._plan.outputs, bound.outputs, strict=True)):
            size = prod(shape) * np.dtype(spec.dtype).itemsize
            target = given.get(spec.name)
            direct = None
            if target is not None and spec.name not in host:
                direct, _ = as_device_array(device, target)
            if direct is not None and direct.address % ALIGNED == 0:
                base[buffers[index]], made[spec.name] = direct.address, target
                continue
            memory = slot.outputs.setdefault(index, _Buffer())
            address = base[buffers[index]] = memory.on_gpu(device, size)
            if direct is not None or (target is None and results == "device"):
                array = direct or new_array(device, shape, spec.dtype)
                moves.append((array.address, address, size))
                made[spec.name] = array if target is None else target
                continue
            staging = memory.on_host(device, size)
            array_out = host.get(spec.name)
            if array_out is None:
                array_out = np.empty(shape, spec.dtype)
            fill.append((array_out, staging.view(spec.dtype).reshape(shape)))
            copies.append((staging, address))
            made[spec.name] = array_out
        return made, fill, copies, moves

    def _run(self, bound: Bound, base: Sequence[int], stream: int) -> Outcome:
        """Launch the first time, capture the second, replay from then on. Returns what becomes of
        the host steps, known when the stream is done."""
        key = (tuple(bound.symbols.items()), tuple(base))
        known = self._graphs.pop(key, None)
        if known is None:
            run = self._program.run_of(bound, base)
            with _started(run) as outcome:
                run.issue(stream)
            self._graphs[key] = (run, 0)
            while len(self._graphs) > GRAPHS:
                self._drop(self._graphs.popitem(last=False)[1][1])
            return outcome
        run, graph = known
        if not graph:
            with self._device.capture(stream) as made:
                run.issue(stream)
            graph = made[0]
        self._graphs[key] = (run, graph)
        with _started(run) as outcome:
            self._device.replay(graph, stream)
        return outcome

    def _drop_graphs(self) -> None:
        for _, graph in self._graphs.values():
            self._drop(graph)
        self._graphs.clear()

    def _drop(self, graph: int) -> None:
        if graph:
            self._device.close_graph(graph)

    def __del__(self) -> None:
        with suppress(Exception):  # at exit the driver may be gone
            self._drain()
            self._drop_graphs()
            for stream in self._streams or ():
                self._device.close_stream(stream)
            for slot in self._slots:
                for event in (slot.copied_in, slot.computed, slot.done):
                    if event:
                        self._device.close_event(event)


@contextmanager
def _started(run: Run) -> Iterator[Outcome]:
    """The outcome of the inference that the block puts on the stream."""
    outcome = run.hosts.begin()
    try:
        yield outcome
    except BaseException:
        run.hosts.withdraw(outcome)
        raise


def _overlap(a: DeviceArray, b: DeviceArray) -> bool:
    """Do the arrays share memory?"""
    return a.address < b.address + b.nbytes and b.address < a.address + a.nbytes
