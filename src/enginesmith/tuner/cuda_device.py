"""Times kernels on a GPU. The tuner sees it as an injected `Device`.

A trial is a graph of some runs of the candidate one after the other, timed with events: what counts
is how long it occupies the GPU when launches overlap as in a plan. Constants are there in several
copies that the runs take in turn, so that weights come from memory as they do in a network that is
larger than the cache; activations are shared and as warm as the candidate leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from enginesmith.errors import BuildError, DeviceError
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, extent, value_of
from enginesmith.kernels.cuda import CudaSource, LibrarySource
from enginesmith.log import logger
from enginesmith.plan.target import Target
from enginesmith.runtime.cuda_program import OVERLAPPING, pack_parameters
from enginesmith.runtime.devices.cuda import CudaDevice, DeviceMemory
from enginesmith.runtime.library_calls import ReadyCall, prepare
from enginesmith.toolchain import triton_aot
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.libraries import choose_algorithm, unpack_algorithm
from enginesmith.toolchain.nvrtc import compile_cubin, compiler_version
from enginesmith.tuner.device import Clock, Source, Trial

RUNS = 8
"""Runs in one graph."""

COLD_BYTES = 64 << 20
"""Copies of the constants together should exceed the last-level cache."""

PAD = 4096
"""Bytes around each operand."""

ALIGNMENT = 256
"""Constants begin at multiples of so many bytes."""


class CudaTuningDevice:
    """The GPU `device`."""

    disturbed = False

    def __init__(self, device: CudaDevice, target: Target, cache: ArtifactCache) -> None:
        self.device, self.target, self.cache = device, target, cache
        self.stream = device.stream()
        self.start, self.end = device.event(timing=True), device.event(timing=True)

    @property
    def fingerprint(self) -> str:
        device = self.device
        return f"{device.name}|{self.target}|{device.driver_version}|{compiler_version()}"

    def compile(self, source: Source) -> bytes:
        """See `Device`."""
        if isinstance(source, LibrarySource):
            return choose_algorithm(source, self.device)
        assert isinstance(source, CudaSource)
        if source.triton is not None:
            try:
                return triton_aot.compile_triton(source, self.target, self.cache).cubin
            except BuildError as error:  # there are others, and a compiler of others may have bugs
                logger.warning("a candidate is left out: %s", error)
                return b""
        return compile_cubin(source.code, self.target, self.cache)

    def close(self) -> None:
        """Give back streams and events."""
        self.device.close_stream(self.stream)
        self.device.close_event(self.start)
        self.device.close_event(self.end)

    def load(
        self, problem: Problem, sources: Sequence[CudaSource | LibrarySource],
        objects: Sequence[bytes], constants: Sequence[Mapping[int, np.ndarray]], cold: bool,
    ) -> list[Trial]:  # fmt: skip
        self.device.use()
        operands = [self.operand(o, problem.hint) for o in problem.operands]
        return [
            make_trial(self, problem, source, binary, operands, packed)
            for source, binary, packed in zip(sources, objects, constants, strict=True)
        ]

    def operand(self, operand: Operand, hint: tuple[int, ...]) -> tuple[DeviceMemory, int]:
        """Memory with random values for one operand, and the address of logical index 0."""
        shape = [value_of(s, hint) for s in operand.shape]
        strides = [value_of(s, hint) for s in operand.strides]
        size = extent(shape, strides) * ITEMSIZE[operand.dtype]
        memory = self.device.allocate(size + 2 * PAD)
        pattern = random_bytes(operand.dtype, min(size, 1 << 22))
        for at in range(0, memory.size, pattern.nbytes):
            count = min(pattern.nbytes, memory.size - at)
            self.device.copy_in(memory.address + at, pattern.ctypes.data, count, self.stream)
        self.device.synchronize(self.stream)
        return memory, memory.address + PAD

    def upload(self, data: np.ndarray) -> DeviceMemory:
        """A copy of a host array."""
        memory = self.device.allocate(data.nbytes)
        self.device.copy_in(memory.address, data.ctypes.data, data.nbytes, self.stream)
        self.device.synchronize(self.stream)
        return memory


def random_bytes(dtype: str, size: int) -> np.ndarray:
    """Random elements: small numbers, ones for integers (they may be indices)."""
    count = max(1, size // ITEMSIZE[dtype])
    values = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    if dtype.startswith("float"):
        return values.astype(dtype)
    return np.ones(count, dtype)


class _CudaTrial:
    def __init__(
        self, owner: CudaTuningDevice, problem: Problem, source: Any, binary: bytes,
        operands: Sequence[tuple[DeviceMemory, int]], packed: Mapping[int, np.ndarray],
    ) -> None:  # fmt: skip
        self.owner = owner
        self.keep: list[Any] = [operands]
        self.graph = 0
        self.module = 0
        self.refusal = ""
        try:
            self.build(problem, source, binary, [a for _, a in operands], packed)
        except DeviceError as error:
            if not error.usable:
                raise
            # Such as more registers than a block may use: never the fastest.
            self.graph, self.refusal = 0, str(error)

    def build(
        self, problem: Problem, source: Any, binary: bytes, addresses: Sequence[int],
        packed: Mapping[int, np.ndarray],
    ) -> None:  # fmt: skip
        if not binary:
            raise DeviceError("it could not be compiled")
        self.module = self.owner.device.module(binary)
        extra = []
        if source.workspace != 0:
            extra.append(self.workspace(value_of(source.workspace, problem.hint)))
        copies = self.copies(addresses, packed)
        self.capture([self.launches(problem, source, [*pointers, *extra]) for pointers in copies])

    def workspace(self, size: int) -> int:
        """The address of so many bytes of zeros."""
        memory = self.owner.device.allocate(size)
        self.owner.device.clear(memory.address, memory.size, self.owner.stream)
        self.keep.append(memory)
        return memory.address

    def copies(
        self, addresses: Sequence[int], packed: Mapping[int, np.ndarray]
    ) -> Iterator[list[int]]:
        """The operands' addresses, for each copy of the constants."""
        arrays = {i: np.ascontiguousarray(a) for i, a in packed.items()}
        if not arrays:
            yield list(addresses)
            return
        device, stream = self.owner.device, self.owner.stream
        ends = list(accumulate(-(-a.nbytes // ALIGNMENT) * ALIGNMENT for a in arrays.values()))
        places = dict(zip(arrays, (0, *ends), strict=False))
        size = max(1, ends[-1])
        count = max(1, min(RUNS, COLD_BYTES // size))
        memory = device.allocate(count * size)
        self.keep.append(memory)
        for i, array in arrays.items():
            device.copy_in(memory.address + places[i], array.ctypes.data, array.nbytes, stream)
        for number in range(count):
            base = memory.address + number * size
            if number:
                device.copy(base, memory.address, size, stream)
            pointers = list(addresses)
            for i, place in places.items():
                pointers[i] = base + place
            yield pointers
        device.synchronize(stream)

    def capture(self, sets: Sequence[Any]) -> None:
        """Run the first of `sets` of what `issue` takes, then make a graph of runs of all."""
        owner, device = self.owner, self.owner.device
        self.issue(sets[0], first=True)
        device.synchronize(owner.stream)
        with device.capture(owner.stream) as made:
            for run in range(RUNS):
                self.issue(sets[run % len(sets)], first=run == 0)
        self.graph = made[0]

    def launches(self, problem: Problem, source: CudaSource, pointers: Sequence[int]) -> list[Any]:
        device, hint, ready = self.owner.device, problem.hint, []
        source = triton_aot.finished(source, self.owner.target, self.owner.cache)
        for launch in source.launches:
            grid = tuple(value_of(size, hint) for size in launch.grid)
            if min(grid) == 0:
                continue
            name = source.name + launch.suffix
            function = device.function(self.module, name, launch.shared)
            values = [value_of(v, hint) for v in launch.values]
            maps = []
            for spec in launch.maps:
                width = ITEMSIZE[spec.dtype]
                maps.append(
                    device.tensor_map(
                        pointers[spec.operand], spec.dtype,
                        [value_of(s, hint) for s in spec.sizes],
                        [width * value_of(s, hint) for s in spec.strides],
                        spec.box, spec.swizzle, spec.element_strides or (1,) * len(spec.sizes),
                    )
                )  # fmt: skip
            parameters, memory = pack_parameters(pointers, values, maps)
            self.keep.append(memory)
            ready.append(
                (function, grid, launch.threads, launch.shared, launch.cluster, parameters)
            )
        return ready

    def issue(self, launches: Sequence[Any], first: bool) -> None:
        device = self.owner.device
        for number, launch in enumerate(launches):
            overlap = device.arch >= OVERLAPPING and not (first and number == 0)
            function, grid, threads, shared, cluster, parameters = launch
            device.launch(
                function, grid, threads, shared, cluster, parameters, self.owner.stream, overlap
            )

    def time(self, clock: Clock) -> float:
        """See `Trial`."""
        if not self.graph:
            return float("inf")
        owner, device = self.owner, self.owner.device
        device.record(owner.start, owner.stream)
        device.replay(self.graph, owner.stream)
        device.record(owner.end, owner.stream)
        device.wait_for(owner.end)
        return device.elapsed(owner.start, owner.end) / RUNS

    def __del__(self) -> None:
        if self.graph:
            self.owner.device.close_graph(self.graph)
        if self.module:
            self.owner.device.unload(self.module)


class _LibraryTrial(_CudaTrial):
    """Calls of a library instead of launches."""

    def build(
        self, problem: Problem, source: Any, binary: bytes, addresses: Sequence[int],
        packed: Mapping[int, np.ndarray],
    ) -> None:  # fmt: skip
        algorithm = unpack_algorithm(binary)
        workspace = self.workspace(algorithm.workspace) if algorithm.workspace else 0
        operation = source.operation.sized(lambda size: value_of(size, problem.hint))
        room = (workspace, algorithm.workspace)
        calls = []
        for pointers in self.copies(addresses, packed):
            operands = tuple(pointers[i] for i in source.operands)
            prepared = prepare(self.owner.device, operation, operands)
            calls.append([ReadyCall(0, prepared, operands, algorithm.data, room)])
        self.capture(calls)

    def issue(self, launches: Sequence[Any], first: bool) -> None:
        for call in launches:
            call.issue(self.owner.stream)


def make_trial(
    owner: CudaTuningDevice, problem: Problem, source: CudaSource | LibrarySource, binary: bytes,
    operands: Sequence[tuple[DeviceMemory, int]], packed: Mapping[int, np.ndarray],
) -> _CudaTrial:  # fmt: skip
    """A trial of a kernel or a library call over these operands (memory, address of index 0)."""
    kind = _LibraryTrial if isinstance(source, LibrarySource) else _CudaTrial
    return kind(owner, problem, source, binary, operands, packed)
