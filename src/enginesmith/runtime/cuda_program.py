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
from enginesmith.runtime.binding import Bound, MisfitError
from enginesmith.runtime.devices.cuda import CudaDevice, DeviceMemory

LIMIT = 1 << 31
"""Kernels index with 32-bit ints."""

CLOSED = "the engine is closed; load or build it again"

OVERLAPPING = 90
"""Compute capability (times ten) from which on a kernel may be set up while others still run."""


def check_gpu(plan: Plan, arch: int, name: str) -> None:
    """PlanError unless a GPU of this architecture runs the plan."""
    built = plan.target.partition(":")[2]
    if built != f"sm_{arch}":
        raise PlanError(
            f"the plan was built for {plan.target}, and this GPU ({name}) is sm_{arch}; "
            f"build the model again with target='cuda:sm_{arch}'"
        )


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
        check_gpu(plan, device.arch, device.name)
        self.plan, self.device = plan, device
        self.closed = False
        self.lost: DeviceError | None = None
        self._lock = threading.Lock()
        self._launches: list[_Launch] | None = None
        self._modules: list[int] = []
        self._weights: DeviceMemory | None = None
        self._sizes = [compile_expression(buffer.size) for buffer in plan.buffers]

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

    def _load_kernels(self) -> list[_Launch]:
        plan, code = self.plan, memoryview(self.plan.code)
        modules: dict[str, int] = {}
        for part in plan.modules:
            binary = bytes(code[part.offset : part.offset + part.size])
            modules[part.kernel] = self.device.module(binary)
        self._modules = list(modules.values())
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
        return Run(self.device, launches, bound.symbols, base)

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
    """The launches of a plan for one set of shapes and addresses."""

    def __init__(
        self, device: CudaDevice, launches: Sequence[_Launch], values: Mapping[str, int],
        base: Sequence[int],
    ) -> None:  # fmt: skip
        self._device = device
        self._ready: list[_Ready] = []
        for item in launches:
            grid = tuple(size(values) for size in item.grid)
            if min(grid) > 0:
                self._ready.append(self._prepare(item, grid, values, base))

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
        device, overlap = self._device, self._device.arch >= OVERLAPPING and not stamps
        recorded = 0
        if stamps:
            device.record(stamps[0], stream, in_graph=True)
        for number, ready in enumerate(self._ready):
            while stamps and recorded < ready.step:
                recorded += 1
                device.record(stamps[recorded], stream, in_graph=True)
            device.launch(
                ready.function, ready.grid, ready.threads, ready.shared, ready.cluster,
                ready.parameters, stream, overlap and number > 0,
            )  # fmt: skip
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
