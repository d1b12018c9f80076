"""A GPU that isn't there: the runtime's device over the emulated machine.

It has `CudaDevice`'s methods. Memory is the host's, streams run at once, "machine code" is the
kernels' text. So whole plans are built and run without a GPU, through the very runtime that serves
real ones. `fail_next` lets an operation fail as a driver would.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.cuda_emulator.compile import kernels
from tests.cuda_emulator.machine import (
    EmulationError,
    TensorMapBytes,
    check_launch,
    fill_tensor_map,
    launch_kernel,
)

from enginesmith.errors import DeviceError
from enginesmith.kernels.cuda import Launch
from enginesmith.runtime.devices import cublas, cudnn
from enginesmith.runtime.devices.cublas import CublasLt
from enginesmith.runtime.devices.cuda import DeviceMemory
from enginesmith.runtime.devices.cudnn import Cudnn

POISON = 0xFF


@dataclass(frozen=True)
class _Code:
    """What `compile.kernels` asks of a CudaSource."""

    name: str
    code: str
    launches: tuple[Launch, ...]


@contextmanager
def _refused() -> Iterator[None]:
    """What can't be is refused by the driver before it harms."""
    try:
        yield
    except EmulationError as error:
        raise DeviceError(f"refused: {error}") from error


class EmulatedDevice:
    """One GPU. launches, replays, host_calls: how often; lost: what it fails with from now on."""

    ordinal = 0
    name = "emulated GPU"
    multiprocessors = 132
    driver_version = 13000

    shared_limit = 227 << 10

    def __init__(self, arch: int = 90) -> None:
        self.arch = arch
        self.launches = self.replays = self.captures = self.host_calls = 0
        self.allocated = 0
        self.fail_next: dict[str, DeviceError] = {}
        self._handles: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._recording = threading.local()  # captures of threads side by side don't mix
        self._times: dict[int, float] = {}
        self._cublas: CublasLt | None = None
        self._cudnn: Cudnn | None = None

    def _check(self, operation: str) -> None:
        if (error := self.fail_next.pop(operation, None)) is not None:
            raise error

    def _handle(self, thing: Any) -> int:
        number = next(self._numbers)
        self._handles[number] = thing
        return number

    def use(self) -> None:
        """As CudaDevice."""

    def allocate(self, size: int) -> DeviceMemory:
        self._check("allocate")
        memory = np.full(size + 512, POISON, np.uint8)
        address = memory.ctypes.data + -memory.ctypes.data % 256
        self.allocated += size

        def free() -> None:
            self.allocated -= size
            _ = memory

        return DeviceMemory(size, address, free)

    def pinned(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def _do(self, job: Any) -> None:
        jobs = getattr(self._recording, "jobs", None)
        if jobs is not None:
            jobs.append(job)
        else:
            job()

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        self._check("copy_in")
        self._do(lambda: ctypes.memmove(to, source, size))

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        self._check("copy_out")
        self._do(lambda: ctypes.memmove(to, source, size))

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._do(lambda: ctypes.memmove(to, source, size))

    def clear(self, address: int, size: int, stream: int) -> None:
        self._do(lambda: ctypes.memset(address, 0, size))

    def stream(self) -> int:
        return self._handle("stream")

    def close_stream(self, stream: int) -> None:
        assert self._handles.pop(stream) == "stream"

    def event(self, timing: bool = False) -> int:
        return self._handle("event")

    def close_event(self, event: int) -> None:
        assert self._handles.pop(event) == "event"

    def record(self, event: int, stream: int, in_graph: bool = False) -> None:
        assert self._handles[event] == "event"
        self._do(lambda: self._times.__setitem__(event, time.perf_counter()))

    def wait(self, stream: int, event: int) -> None:
        assert event in self._times

    def done(self, event: int) -> bool:
        return event in self._times

    def wait_for(self, event: int) -> None:
        self._check("wait_for")
        assert event in self._times

    def elapsed(self, start: int, end: int) -> float:
        return self._times[end] - self._times[start]

    def synchronize(self, stream: int) -> None:
        self._check("synchronize")

    def call_host(self, function: int, stream: int) -> None:
        self._check("call_host")
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)

        def run() -> None:
            self.host_calls += 1
            thread = threading.Thread(target=call, args=(None,))  # never the caller's
            thread.start()
            thread.join()

        self._do(run)

    def module(self, code: bytes) -> int:
        text = code.removesuffix(b"\0").decode()
        names = re.findall(r"__global__[^;{]*?\b(k_\w+)\s*\(", text)
        assert names, "a module without kernels"
        launches = tuple(Launch((1, 1, 1), 32, suffix=name) for name in dict.fromkeys(names))
        return self._handle(kernels(_Code("", text, launches), self.arch))  # type: ignore[arg-type]

    def unload(self, module: int) -> None:
        del self._handles[module]

    def function(self, module: int, name: str, shared: int) -> int:
        library = self._handles[module]
        return self._handle((library, getattr(library, f"es_call_{name}")))

    def launch(
        self, function: int, grid: Sequence[int], threads: int, shared: int,
        cluster: Sequence[int], parameters: int, stream: int, overlap: bool,
    ) -> None:  # fmt: skip
        self._check("launch")
        library, entry = self._handles[function]
        with _refused():
            check_launch(grid, threads, shared, cluster, self.arch)

        def run() -> None:
            self.launches += 1
            error = launch_kernel(library, entry, grid, threads, shared, cluster, parameters)
            if error is not None:
                raise DeviceError(f"emulated kernel: {error}", usable=False)

        self._do(run)

    def tensor_map(
        self, address: int, dtype: str, sizes: Sequence[int], strides: Sequence[int],
        box: Sequence[int], swizzle: int, steps: Sequence[int],
    ) -> bytes:  # fmt: skip
        item = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}[dtype]
        spec = TensorMapBytes()
        with _refused():
            fill_tensor_map(spec, address, item, sizes, strides, box, swizzle, steps)
        return bytes(spec)

    def cublas_lt(self) -> CublasLt:
        """As CudaDevice: with the library that `cublas.library` finds."""
        if self._cublas is None:
            self._cublas = CublasLt(cublas.library())
        return self._cublas

    def cudnn(self) -> Cudnn:
        """As CudaDevice: with the library that `cudnn.library` finds."""
        if self._cudnn is None:
            self._cudnn = Cudnn(cudnn.library(), lambda free: free())
        return self._cudnn

    @contextmanager
    def capture(self, stream: int) -> Iterator[list[int]]:
        self.captures += 1
        self._recording.jobs = jobs = list[Any]()
        made: list[int] = []
        try:
            yield made
            made.append(self._handle(jobs))
        finally:
            self._recording.jobs = None

    def replay(self, graph: int, stream: int) -> None:
        self._check("replay")
        self.replays += 1
        for job in self._handles[graph]:
            job()

    def close_graph(self, graph: int) -> None:
        del self._handles[graph]
