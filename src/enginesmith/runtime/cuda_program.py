"""A plan's launches on a GPU: code and weights loaded once, parameters made per set of shapes."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginesmith.errors import ContextError, DeviceError, PlanError
from enginesmith.log import logger
from enginesmith.plan.expression import Evaluator, compile_expression
from enginesmith.plan.plan import KernelLaunch, MapSpec, Plan
from enginesmith.plan.ptx import unpack_ptx
from enginesmith.plan.target import ARCHITECTURES, nearest_architecture
from enginesmith.runtime.binding import Bound, MisfitError
from enginesmith.runtime.devices.cuda import CudaDevice, DeviceMemory
from enginesmith.runtime.host_calls import CudaHostCalls, HostCalls, ReadyHost
from enginesmith.runtime.library_calls import LibraryCalls, ReadyCall

LIMIT = 1 << 31
"""Kernels index with 32-bit ints."""

CLOSED = "the engine is closed; load or build it again"

OVERLAPPING = 90
"""Compute capability (times ten) from which on a kernel may be set up while others still run: code
for older ones doesn't wait for its predecessors, wherever it runs."""


def architecture(plan: Plan) -> int:
    """The compute capability (times ten) that a plan was built for. PlanError if it names none."""
    text = plan.target.removeprefix("cuda:sm_")
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise PlanError(f"the plan is damaged: its target is {plan.target!r}; build it again")
    return int(text)


def check_gpu(plan: Plan, device: CudaDevice) -> None:
    """PlanError unless this GPU runs the plan: of the architecture it was built for, or a newer one
    if the plan has PTX, with as much shared memory as its kernels take."""
    built, arch = architecture(plan), device.arch
    problems = []
    if arch < built:
        problems.append("which is older")
    elif arch > built and not len(plan.ptx):
        problems.append(
            f"for which the plan has no PTX (its kernels use what sm_{built} alone has)"
        )
    if (
        shared := max((launch.shared for launch in plan.launches), default=0)
    ) > device.shared_limit:
        problems.append(
            f"where a block has {device.shared_limit >> 10} KiB of shared memory (the plan's "
            f"kernels take up to {-(-shared >> 10)})"
        )
    if problems:
        raise PlanError(
            f"the plan was built for {plan.target}, and this GPU ({device.name}) is sm_{arch}, "
            f"{' and '.join(problems)}; {rebuild(arch)}"
        )


def rebuild(arch: int) -> str:
    """What to do for a GPU of this compute capability (times ten)."""
    nearest = nearest_architecture(arch)
    if nearest is None:
        return f"GPUs older than {ARCHITECTURES[0]} are not supported: build with target='cpu'"
    return f"build the model again with target='cuda:{nearest}'"


@dataclass(frozen=True, slots=True)
class _Map:
    spec: MapSpec
    offset: Evaluator
    sizes: tuple[Evaluator, ...]
    strides: tuple[Evaluator, ...]


class _Launch:
    """A launch of the plan with its sizes ready to be evaluated."""

    def __init__(self, launch: KernelLaunch, function: int) -> None:
        self.launch, self.function = launch, function
        self.grid = [compile_expression(size) for size in launch.grid]
        self.values = [compile_expression(size) for size in launch.values]
        self.pointers = [(p.buffer, compile_expression(p.offset)) for p in launch.pointers]
        self.maps = [
            _Map(
                spec,
                compile_expression(spec.base.offset),
                tuple(map(compile_expression, spec.sizes)),
                tuple(map(compile_expression, spec.strides)),
            )
            for spec in launch.maps
        ]


class CudaProgram:
    """Modules, kernels and weights of a plan on one GPU; shared by the contexts of an engine."""

    def __init__(self, plan: Plan, device: CudaDevice) -> None:
        check_gpu(plan, device)
        self.plan, self.device = plan, device
        self.overlaps = architecture(plan) >= OVERLAPPING
        self._calls = LibraryCalls(plan, device)
        self._hosts = HostCalls(plan)
        self.closed = False
        self.lost: DeviceError | None = None
        self._lock = threading.Lock()
        self._launches: list[_Launch] | None = None
        self._modules: list[int] = []
        self._weights: DeviceMemory | None = None
        self._sizes = [compile_expression(buffer.size) for buffer in plan.buffers]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the plan on this GPU."""
        device = self.device
        if device.arch == architecture(self.plan):
            return self._calls.notes
        return (
            f"on this GPU ({device.name}, sm_{device.arch}) the driver compiles the plan's PTX, "
            f"made and chosen for {self.plan.target}; for full speed, {rebuild(device.arch)}",
            *self._calls.notes,
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes errors of the block."""
        try:
            yield
        except DeviceError as error:
            self.note(error)
            raise

    def note(self, error: DeviceError) -> None:
        """Remembers the error if the GPU is lost by it."""
        if not error.usable:
            self.lost = error

    def check_usable(self) -> None:
        """ContextError if the engine is closed; if the GPU is lost, the error that lost it."""
        if self.closed:
            raise ContextError(CLOSED)
        if self.lost is not None:
            raise DeviceError(str(self.lost), usable=False) from self.lost

    def load(self) -> tuple[list[_Launch], DeviceMemory]:
        """The launches and the weights, on the GPU from the first call on."""
        with self._lock:
            if self.closed:
                raise ContextError(CLOSED)
            if self._launches is None:
                self._weights = self._upload()
                self._launches = self._load_kernels()
                logger.debug("plan %r: %d launches", self.plan.name, len(self._launches))
            assert self._weights is not None
            return self._launches, self._weights

    def _binaries(self) -> Iterator[tuple[str, bytes]]:
        """What each kernel is loaded from: its machine code, or PTX on newer GPUs."""
        plan, code = self.plan, memoryview(self.plan.code)
        if self.device.arch == architecture(plan):
            for part in plan.modules:
                yield part.kernel, bytes(code[part.offset : part.offset + part.size])
            return
        logger.info(self.notes[0])
        texts = unpack_ptx(plan.ptx)
        if lost := sorted({part.kernel for part in plan.modules} - texts.keys()):
            raise PlanError(f"the plan is damaged: it lacks the PTX of {lost}; build it again")
        for part in plan.modules:
            yield part.kernel, texts[part.kernel].encode() + b"\0"

    def _load_kernels(self) -> list[_Launch]:
        plan = self.plan
        modules: dict[str, int] = {}
        for kernel, binary in self._binaries():
            modules[kernel] = self.device.module(binary)
            self._modules.append(modules[kernel])
        shared: dict[str, int] = {}
        for launch in plan.launches:
            shared[launch.kernel] = max(shared.get(launch.kernel, 0), launch.shared)
        functions: dict[str, int] = {}
        for launch in plan.launches:
            if launch.kernel not in functions:
                module = modules[plan.steps[launch.step].kernel]
                functions[launch.kernel] = self.device.function(
                    module, launch.kernel, shared[launch.kernel]
                )
        return [_Launch(launch, functions[launch.kernel]) for launch in plan.launches]

    def _upload(self) -> DeviceMemory:
        data = np.frombuffer(self.plan.weights, np.uint8)
        memory = self.device.allocate(data.nbytes)
        stream = self.device.stream()
        try:
            self.device.copy_in(memory.address, data.ctypes.data, data.nbytes, stream)
            self.device.synchronize(stream)
        finally:
            self.device.close_stream(stream)
        return memory

    def check_sizes(self, values: Mapping[str, int]) -> None:
        """MisfitError if some tensor would be too large for 32-bit indices."""
        worst = max((size(values) for size in self._sizes), default=0)
        if worst >= 2 * LIMIT:
            raise MisfitError(
                [f"a tensor would have {worst} bytes, more than kernels can index; use a smaller "
                 "batch"]
            )  # fmt: skip

    def run_of(self, bound: Bound, base: Sequence[int]) -> Run:
        """Everything to launch for these shapes, with buffer i of the plan at base[i]."""
        launches, _ = self.load()
        calls = self._calls.ready(bound.symbols, base)
        hosts = CudaHostCalls(self._hosts, self.device, bound.symbols, base)
        return Run(self.device, launches, calls, hosts, bound.symbols, base, self.overlaps)

    def close(self) -> None:
        """Unload code and weights. Not during a run."""
        with self._lock:
            self.closed = True
            for module in self._modules:
                self.device.unload(module)
            self._modules, self._launches, self._weights = [], None, None

    def __del__(self) -> None:
        with suppress(Exception):  # at exit the driver may be gone
            self.close()


@dataclass(slots=True)
class _Ready:
    """A launch with all its parameters."""

    step: int
    function: int
    grid: tuple[int, ...]
    threads: int
    shared: int
    cluster: tuple[int, int, int]
    parameters: int
    memory: Any


class Run:
    """The launches, library calls and host steps of a plan for one set of shapes and addresses."""

    def __init__(
        self, device: CudaDevice, launches: Sequence[_Launch], calls: Sequence[ReadyCall],
        hosts: CudaHostCalls, values: Mapping[str, int], base: Sequence[int], overlaps: bool,
    ) -> None:  # fmt: skip
        """overlaps: the kernels wait for those before them themselves."""
        self._device, self._overlaps = device, overlaps
        self.hosts = hosts
        ready: list[_Ready | ReadyCall | ReadyHost] = [*calls, *hosts.ready]
        for item in launches:
            grid = tuple(size(values) for size in item.grid)
            if min(grid) > 0:
                ready.append(self._prepare(item, grid, values, base))
        # A step's calls stay before its launches.
        self._ready = sorted(ready, key=lambda item: item.step)

    def _prepare(
        self, item: _Launch, grid: tuple[int, ...], values: Mapping[str, int], base: Sequence[int]
    ) -> _Ready:
        pointers = [base[buffer] + offset(values) for buffer, offset in item.pointers]
        ints = [value(values) for value in item.values]
        maps = [self._map(m, values, base) for m in item.maps]
        parameters, memory = pack_parameters(pointers, ints, maps)
        launch = item.launch
        return _Ready(
            launch.step, item.function, grid, launch.threads, launch.shared, launch.cluster,
            parameters, memory,
        )  # fmt: skip

    def _map(self, item: _Map, values: Mapping[str, int], base: Sequence[int]) -> bytes:
        spec = item.spec
        address = base[spec.base.buffer] + item.offset(values)
        sizes = [max(1, size(values)) for size in item.sizes]
        strides = [stride(values) for stride in item.strides]
        return self._device.tensor_map(
            address, spec.dtype, sizes, strides, spec.box, spec.swizzle, spec.steps
        )

    def issue(self, stream: int, stamps: Sequence[int] = ()) -> None:
        """Launch everything on the stream. stamps: events, one more than the plan has steps, to be
        recorded before the first and after each step (then steps don't overlap)."""
        device, overlap = self._device, self._overlaps and not stamps
        recorded, after_kernel = 0, False
        if stamps:
            device.record(stamps[0], stream, in_graph=True)
        for ready in self._ready:
            while stamps and recorded < ready.step:
                recorded += 1
                device.record(stamps[recorded], stream, in_graph=True)
            if not isinstance(ready, _Ready):  # what knows nothing of our kernels
                ready.issue(stream)
                after_kernel = False
                continue
            device.launch(
                ready.function, ready.grid, ready.threads, ready.shared, ready.cluster,
                ready.parameters, stream, overlap and after_kernel,
            )  # fmt: skip
            after_kernel = True
        for stamp in stamps[recorded + 1 :]:
            device.record(stamp, stream, in_graph=True)


def pack_parameters(
    pointers: Sequence[int], values: Sequence[int], maps: Sequence[bytes]
) -> tuple[int, Any]:
    """The address of an array of a kernel's parameters' addresses, and what keeps it alive."""
    count = len(pointers) + len(values) + len(maps)
    # [maps, each 128 bytes at a multiple of 64][pointers][values][addresses]
    size = 128 * len(maps) + 8 * len(pointers) + 8 * len(values) + 8 * count
    memory = ctypes.create_string_buffer(size + 64)
    start = ctypes.addressof(memory)
    start += -start % 64
    at, places = start, []
    for spec in maps:
        ctypes.memmove(at, spec, 128)
        places.append(at)
        at += 128
    maps_at, places = places, []
    for pointer in pointers:
        ctypes.c_uint64.from_address(at).value = pointer
        places.append(at)
        at += 8
    for value in values:
        ctypes.c_int32.from_address(at).value = value
        places.append(at)
        at += 8
    for i, place in enumerate([*places, *maps_at]):
        ctypes.c_uint64.from_address(at + 8 * i).value = place
    return at, memory


def addresses_of(plan: Plan, weights: int) -> list[int]:
    """Room for the address of each buffer, with the weights' filled in."""
    return [weights if buffer.kind == "weights" else 0 for buffer in plan.buffers]
