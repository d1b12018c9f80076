"""A kernel, or a library's call, on this machine's GPU, checked as the emulator checks kernels.

Operands lie in memory of their own: inputs end where their allocation ends, so that the memory
checker of compute-sanitizer sees every read past them; outputs and constants have GUARD bytes on
either side. All that is not an element of an output must hold afterwards what it held before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.cuda_emulator.compile import CACHE
from tests.cuda_emulator.machine import EmulationError, compare_runs
from tests.cuda_emulator.memory import READABLE, Placed, numpy_dtype

from enginesmith.errors import DeviceError
from enginesmith.kernels.base import ITEMSIZE, Problem, value_of
from enginesmith.kernels.cuda import CudaSource, LibrarySource
from enginesmith.plan.target import Target
from enginesmith.runtime.cuda_program import OVERLAPPING, pack_parameters
from enginesmith.runtime.devices import cuda
from enginesmith.runtime.devices.cuda import CudaDevice
from enginesmith.runtime.library_calls import ReadyCall, prepare
from enginesmith.toolchain import nvrtc, triton_aot
from enginesmith.toolchain.libraries import choose_algorithm, unpack_algorithm

GUARD = READABLE
HANG = 120.0
"""Seconds after which a kernel counts as hanging (sanitizers are slow)."""

POISONS = (0xFF, 0x7D)


class GpuMemory:
    """`size` bytes on the GPU, and a copy on the host that `upload` and `download` bring there and
    back. The first one's address is a multiple of `alignment` and of no more. guard: bytes on
    either side, at least; without it the allocation ends with the last byte."""

    def __init__(self, device: CudaDevice, size: int, alignment: int, guard: int) -> None:
        offset = -(-guard // (2 * alignment)) * 2 * alignment + alignment
        self._device = device
        self._memory = device.allocate(offset + size + guard)
        self.base = self._memory.address
        self.address = self.base + offset
        self.bytes = np.zeros(offset + size + guard, np.uint8)
        self.inside = self.bytes[offset : offset + size]

    def upload(self, stream: int) -> None:
        self._device.copy_in(self.base, self.bytes.ctypes.data, self.bytes.nbytes, stream)

    def download(self, stream: int) -> np.ndarray:
        """What is there now; the copy on the host stays."""
        now = np.empty_like(self.bytes)
        self._device.copy_out(now.ctypes.data, self.base, now.nbytes, stream)
        self._device.synchronize(stream)
        return now


class _Gpu:
    """The GPU with a stream, an event and the modules loaded so far."""

    def __init__(self, device: CudaDevice) -> None:
        self.device, self.target = device, Target("cuda", f"sm_{device.arch}")
        self.stream, self.event = device.stream(), device.event()
        self.modules: dict[str, int] = {}

    def function(self, source: CudaSource, name: str, shared: int) -> int:
        if source.name not in self.modules:
            if source.triton is None:
                code = nvrtc.compile_cubin(source.code, self.target, CACHE)
            else:
                code = triton_aot.compile_triton(source, self.target, CACHE).cubin
            self.modules[source.name] = self.device.module(code)
        return self.device.function(self.modules[source.name], name, shared)

    def finish(self) -> None:
        """Wait for what was launched. DeviceError if it failed or doesn't end."""
        self.device.record(self.event, self.stream)
        end = time.monotonic() + HANG
        while not self.device.done(self.event):
            if time.monotonic() > end:
                raise DeviceError(f"the kernel isn't done after {HANG:g} s", usable=False)
            time.sleep(10e-6)


@cache
def _gpu(device: CudaDevice) -> _Gpu:
    return _Gpu(device)


@cache
def why_not() -> str | None:
    """Why no kernel can be run on this machine's GPU, None if they can."""
    try:
        cuda.cuda_device()
        nvrtc.compiler_version()
    except Exception as error:  # whatever it is, it is the reason
        return str(error).splitlines()[0].partition(" (")[0]
    return None


def run_source(
    source: CudaSource | LibrarySource, problem: Problem, arrays: Sequence[np.ndarray],
    hint_values: Sequence[int] | None = None, *, packed: Mapping[int, np.ndarray] | None = None,
    arch: int = 90,
) -> list[np.ndarray]:  # fmt: skip
    """See the emulator's `run_source`. The second run is two that overlap, as runs of a plan do.
    A library's algorithm is chosen at these sizes."""
    gpu = _gpu(cuda.cuda_device())
    if arch not in (80, gpu.device.arch):
        pytest.skip(f"kernels for compute capability {arch / 10} on one of {gpu.device.arch / 10}")
    gpu.device.use()
    if isinstance(source, CudaSource):
        source = triton_aot.finished(source, gpu.target, CACHE)
    try:
        return _run(gpu, source, problem, arrays, hint_values, dict(packed or {}))
    except DeviceError as error:
        if not error.usable:  # nothing after this test can be believed
            pytest.exit(f"kernel {source.name}: {error}", 3)
        raise


def _run(
    gpu: _Gpu, source: CudaSource | LibrarySource, problem: Problem, arrays: Sequence[np.ndarray],
    hint_values: Sequence[int] | None, raw: Mapping[int, np.ndarray],
) -> list[np.ndarray]:  # fmt: skip
    slots = tuple(problem.hint if hint_values is None else hint_values)
    inputs = len(problem.operands) - problem.outputs

    def place(number: int) -> Placed:
        guard = 0 if number < inputs else GUARD
        return Placed(
            problem.operands[number], slots, raw.get(number),
            lambda size, align, slack: GpuMemory(gpu.device, size, align, max(slack, guard)),
        )  # fmt: skip

    placed = [place(i) for i in range(len(problem.operands))]
    size, cleared, algorithm = 0, 0, b""
    if isinstance(source, LibrarySource):
        source = replace(source, hint=slots)
        chosen = unpack_algorithm(choose_algorithm(source, gpu.device))
        size, algorithm = chosen.workspace, chosen.data
    else:
        size, cleared = value_of(source.workspace, slots), value_of(source.cleared, slots)
    workspace = GpuMemory(gpu.device, size, 256, GUARD)
    workspace.bytes[:] = 255
    workspace.inside[:cleared] = 0
    for i, array in enumerate(arrays[:inputs]):
        if i not in raw and placed[i].view.size:
            dtype = numpy_dtype(problem.operands[i].dtype)
            placed[i].view[...] = np.asarray(array).astype(dtype)
    for memory in (*(p.memory for p in placed), workspace):
        memory.upload(gpu.stream)
    gpu.device.synchronize(gpu.stream)
    pointers = [p.memory.address for p in placed]
    if isinstance(source, LibrarySource):
        launches = [_call(gpu, source, pointers, algorithm, (workspace.address, size))]
    else:
        extra = [workspace.address] if source.workspace != 0 else []
        launches = _launches(gpu, source, [*pointers, *extra], slots)
    results = []
    for run, poison in enumerate(POISONS):
        for item in placed[inputs:]:
            item.poison(poison)
            item.memory.upload(gpu.stream)
        gpu.device.synchronize(gpu.stream)
        for number, launch in enumerate(launches * (run + 1)):
            if isinstance(launch, ReadyCall):
                launch.issue(gpu.stream)
                continue
            gpu.device.launch(
                *launch[:6], gpu.stream, gpu.device.arch >= OVERLAPPING and number > 0
            )
        gpu.finish()
        results.append([_result(p, i, poison, gpu.stream) for i, p in enumerate(placed[inputs:])])
        _check_rest(placed[:inputs], workspace, cleared, gpu.stream)
    compare_runs(*results)
    return results[0]


def _call(
    gpu: _Gpu, source: LibrarySource, pointers: Sequence[int], algorithm: bytes,
    workspace: tuple[int, int],
) -> ReadyCall:  # fmt: skip
    """The library's call at the sizes `source.hint`."""
    operation = source.operation.sized(lambda size: value_of(size, source.hint))
    operands = tuple(pointers[i] for i in source.operands)
    return ReadyCall(0, prepare(gpu.device, operation, operands), operands, algorithm, workspace)


def _launches(
    gpu: _Gpu, source: CudaSource, pointers: Sequence[int], slots: tuple[int, ...]
) -> list[Any]:
    """The arguments of the device's `launch`, and what keeps them alive."""
    ready = []
    for launch in source.launches:
        grid = tuple(value_of(size, slots) for size in launch.grid)
        if min(grid) == 0:
            continue
        maps = [
            gpu.device.tensor_map(
                pointers[m.operand], m.dtype, [value_of(s, slots) for s in m.sizes],
                [ITEMSIZE[m.dtype] * value_of(s, slots) for s in m.strides], m.box, m.swizzle,
                m.element_strides or (1,) * len(m.sizes),
            )
            for m in launch.maps
        ]  # fmt: skip
        values = [value_of(v, slots) for v in launch.values]
        parameters, memory = pack_parameters(pointers, values, maps)
        function = gpu.function(source, source.name + launch.suffix, launch.shared)
        ready.append(
            (function, grid, launch.threads, launch.shared, launch.cluster, parameters, memory)
        )
    return ready


def _result(placed: Placed, number: int, poison: int, stream: int) -> np.ndarray:
    """What the kernel wrote. EmulationError if it wrote outside of the array."""
    placed.memory.bytes[:] = placed.memory.download(stream)
    if not placed.untouched(poison):
        raise EmulationError(f"wrote outside of output {number}")
    return placed.view.copy()


def _check_rest(inputs: Sequence[Placed], workspace: GpuMemory, cleared: int, stream: int) -> None:
    """EmulationError if an input or what lies around it changed, or the workspace's ends."""
    for number, item in enumerate(inputs):
        if not np.array_equal(item.memory.download(stream), item.memory.bytes):
            raise EmulationError(f"wrote to input {number}")
    now = workspace.download(stream)
    offset = workspace.address - workspace.base
    end = offset + workspace.inside.size
    if now[offset : offset + cleared].any():
        raise EmulationError("left the workspace's cleared bytes other than zero")
    if (now[:offset] != 255).any() or (now[end:] != 255).any():
        raise EmulationError("wrote outside of the workspace")
