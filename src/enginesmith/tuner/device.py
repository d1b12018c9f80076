"""Runs kernels on this machine's CPU for timing. The tuner sees it as an injected `Device`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from enginesmith.codegen.pool import POOL
from enginesmith.kernels.base import KernelSource, Operand, Problem, extent, value_of
from enginesmith.kernels.cuda import CudaSource, LibrarySource
from enginesmith.plan.target import Target
from enginesmith.runtime.devices.cpu import SIGNATURES, Library, ThreadPool
from enginesmith.runtime.devices.memory import Memory
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compile_object, compiler_version, link_shared

SLACK = 4096
EVICT_BYTES = 4 << 20

_EVICT = r"""
/* Take [p, p+n) out of every cache level, so that the next run reads weights from memory. */
void es_flush(char *p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64) __builtin_ia32_clflush(p + i);
  __builtin_ia32_mfence();
}
/* Walk other memory, so that the next run reads weights from the last-level cache. */
int64_t es_walk(const char *p, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = 0; i < n; i += 64) sum += p[i];
  return sum;
}
void es_walk_task(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *s) {
  for (int64_t i = begin; i < end; i++) *(volatile int64_t *)s = es_walk(p[0] + i * d[0], d[0]);
}
"""


SIGNATURES["es_flush"] = ([ctypes.c_void_p, ctypes.c_int64], None)


Source: TypeAlias = KernelSource | CudaSource | LibrarySource
Clock: TypeAlias = Callable[[], float]


class Trial(Protocol):
    """A kernel ready to run."""

    def time(self, clock: Clock) -> float:
        """Seconds of one run, with caches as they are in a network. A device that can tell better
        than the host's clock ignores `clock`."""


class Device(Protocol):
    """Where candidates are timed. disturbed: compilers at work would spoil the timing."""

    disturbed: bool

    @property
    def fingerprint(self) -> str:
        """Machine, thread count and compiler: part of the timing cache's key."""

    def compile(self, source: Source) -> bytes:
        """The machine code of a candidate; called from several threads."""

    def load(
        self,
        problem: Problem,
        sources: Sequence[Any],
        objects: Sequence[bytes],
        constants: Sequence[Mapping[int, np.ndarray]],
        cold: bool,
    ) -> list[Trial]:
        """Trials of the candidates, sharing operand memory."""


class CpuDevice:
    """This machine's CPU with `threads` threads."""

    disturbed = True

    def __init__(self, target: Target, threads: int, cache: ArtifactCache) -> None:
        self.target, self.threads, self.cache = target, threads, cache
        objects = [compile_object(text, target, cache) for text in (POOL, _EVICT)]
        self.library = Library(link_shared(objects, target, cache))
        self.pool = ThreadPool(self.library, threads)
        self._other = Memory(EVICT_BYTES * threads)
        ctypes.memset(self._other.address, 1, self._other.size)
        self._walk_p = (ctypes.c_void_p * 1)(self._other.address)
        self._walk_d = (ctypes.c_int64 * 1)(EVICT_BYTES)

    @property
    def fingerprint(self) -> str:
        return f"{cpu_model()}|{self.target}|{self.threads}|{compiler_version()}"

    def compile(self, source: Source) -> bytes:
        """See `Device`."""
        assert isinstance(source, KernelSource)
        return compile_object(source.c, self.target, self.cache)

    def close(self) -> None:
        """Stop the worker threads."""
        self.pool.close()

    def load(
        self, problem: Problem, sources: Sequence[KernelSource], objects: Sequence[bytes],
        constants: Sequence[Mapping[int, np.ndarray]], cold: bool,
    ) -> list[Trial]:  # fmt: skip
        library = Library(link_shared(list(dict.fromkeys(objects)), self.target, self.cache))
        operands = [_Array(o, problem.hint) for o in problem.operands]
        return [
            _CpuTrial(self, library, problem, source, operands, packed, cold)
            for source, packed in zip(sources, constants, strict=True)
        ]

    def evict(self) -> None:
        """Fill every thread's own caches with other memory."""
        walk = self.library.address("es_walk_task")
        self.launch(walk, self._walk_p, self._walk_d, self.threads)

    def launch(self, function: int, p: Any, d: Any, tasks: int) -> None:
        self.library.function("es_parallel")(self.pool.address, function, p, d, tasks)


class _Array:
    """An operand's memory, filled with random values. `address`: logical index 0."""

    def __init__(self, operand: Operand, hint: tuple[int, ...]) -> None:
        shape = [value_of(s, hint) for s in operand.shape]
        strides = [value_of(s, hint) for s in operand.strides]
        dtype = np.dtype(operand.dtype)
        before = after = 0
        if operand.block:
            shape = [shape[0], -(-shape[1] // operand.block), *shape[2:], operand.block]
            strides = [*strides, 1]
            top, left, bottom, right = operand.halo
            before = top * strides[2] + left * operand.block
            after = bottom * strides[2] + right * operand.block
        count = before + extent(shape, strides) + after
        self.memory = Memory(count * dtype.itemsize + 2 * SLACK)
        if dtype.kind == "f":
            pattern = np.random.default_rng(0).standard_normal(min(count, 65536)).astype(dtype)
        else:
            pattern = np.ones(min(count, 65536), dtype)
        start = self.memory.address + SLACK
        for done in range(0, count, pattern.size):
            size = min(pattern.size, count - done) * dtype.itemsize
            ctypes.memmove(start + done * dtype.itemsize, pattern.ctypes.data, size)
        self.address = start + before * dtype.itemsize


class _CpuTrial:
    def __init__(
        self, device: CpuDevice, library: Library, problem: Problem, source: KernelSource,
        operands: Sequence[_Array], packed: Mapping[int, np.ndarray], cold: bool,
    ) -> None:  # fmt: skip
        self.device, self.cold = device, cold
        self.scratch = value_of(source.scratch, problem.hint)
        pointers = [o.address for o in operands]
        self.weights: list[tuple[int, int]] = []
        self.keep: list[Any] = [library, operands]
        for i, array in packed.items():
            data = np.ascontiguousarray(array)
            memory = Memory(data.nbytes + SLACK)
            ctypes.memmove(memory.address, data.ctypes.data, data.nbytes)
            self.keep.append(memory)
            self.weights.append((memory.address, data.nbytes))
            pointers[i] = memory.address
        workspace = Memory(value_of(source.workspace, problem.hint) + 2 * SLACK)
        self.keep.append(workspace)
        pointers.append(workspace.address + SLACK)
        self.p = (ctypes.c_void_p * len(pointers))(*pointers)
        self.d = (ctypes.c_int64 * max(1, problem.slots))(*problem.hint)
        self.launches = [
            (library.address(source.name + phase.suffix), value_of(phase.tasks, problem.hint))
            for phase in source.phases
        ]

    def time(self, clock: Clock) -> float:
        """See `Trial`."""
        self.prepare()
        start = clock()
        self.run()
        return clock() - start

    def prepare(self) -> None:
        """Make caches cold as in a network."""
        self.device.pool.reserve(self.scratch)
        if not self.weights:
            return
        if self.cold:
            for address, size in self.weights:
                self.device.library.function("es_flush")(address, size)
        else:
            self.device.evict()

    def run(self) -> None:
        """All phases."""
        begin, end = (self.device.library.function(n) for n in ("es_begin", "es_end"))
        begin(self.device.pool.address)
        for function, tasks in self.launches:
            self.device.launch(function, self.p, self.d, tasks)
        end(self.device.pool.address)


def cpu_model() -> str:
    """The CPU's name, for the timing cache."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [
                line.partition(":")[2].strip()
                for line in file
                if line.startswith(("model name", "cpu family", "model\t", "stepping"))
            ]
        return "/".join(dict.fromkeys(lines[:4]))
    except OSError:
        return "unknown"
