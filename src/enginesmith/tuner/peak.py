"""What the machine can do at this moment: fp32 multiply-adds and copies, on N threads, in 0.2 s.

Shared and thermally limited machines change from minute to minute, so a per cent of the peak only
means something against a peak measured next to it.
"""

from __future__ import annotations

import ctypes
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compile_object, link_shared

SOURCE = """\
/* 10 independent chains hide the latency (4 cycles, 2 a cycle) of a fused multiply-add. */
float es_peak_fma(int64_t rounds) {
    vf x[10], a = splat(0.999f), b = splat(0.001f);
    UNROLL for (int i = 0; i < 10; i++) x[i] = splat((float)i);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < 10; i++) x[i] = x[i] * a + b;
        __asm__ volatile("" : "+v"(x[0]), "+v"(x[1]));
    }
    vf sum = x[0];
    UNROLL for (int i = 1; i < 10; i++) sum += x[i];
    return sum[0];
}
void es_peak_copy(float *to, const float *from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += LANES) store(to + i, load(from + i));
    __asm__ volatile("" : : "r"(to) : "memory");
}
"""
CHAINS = 10
ROUNDS = 200_000
"""Rounds of one call, about 0.3 ms."""
COPY_BYTES = 64 << 20
"""Of each thread's two arrays: more than a core's share of the last cache."""


@dataclass(frozen=True, slots=True)
class Peak:
    """fp32 `gflops` (a multiply-add is 2) and `gbps`, bytes read plus bytes written by a copy, both
    in 10^9 a second and of all `threads` together."""

    threads: int
    gflops: float
    gbps: float


def measure_peak(target: Target, threads: int, cache: ArtifactCache, seconds: float = 0.2) -> Peak:
    """Measure for about `seconds`, half of it each. The target must be one this machine can run."""
    library = _library(target, cache)
    half = seconds / 2
    flops = 2 * CHAINS * target.lanes * ROUNDS
    calls = _rate([lambda: library.es_peak_fma(ROUNDS)] * threads, half)
    arrays = [ctypes.create_string_buffer(2 * COPY_BYTES) for _ in range(threads)]
    copies = _rate([_copy(library, array) for array in arrays], half)
    return Peak(threads, calls * flops / 1e9, copies * 2 * COPY_BYTES / 1e9)


def _library(target: Target, cache: ArtifactCache) -> Any:
    shared = link_shared([compile_object(SOURCE, target, cache)], target, cache)
    with tempfile.NamedTemporaryFile(prefix="enginesmith-", suffix=".so") as file:
        file.write(shared)
        file.flush()
        library = ctypes.CDLL(file.name)
    library.es_peak_fma.argtypes = [ctypes.c_int64]
    library.es_peak_fma.restype = ctypes.c_float
    library.es_peak_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.es_peak_copy.restype = None
    return library


def _copy(library: Any, array: Any) -> Callable[[], object]:
    start = ctypes.addressof(array)
    return lambda: library.es_peak_copy(start + COPY_BYTES, start, COPY_BYTES // 4)


def _rate(works: list[Callable[[], object]], seconds: float) -> float:
    """Calls a second of all threads together: each runs its own work until the time is up."""
    barrier = threading.Barrier(len(works))
    rates = [0.0] * len(works)

    def loop(index: int) -> None:
        works[index]()  # touches the memory and wakes the core
        barrier.wait()
        start = now = time.perf_counter()
        calls = 0
        while now - start < seconds:
            works[index]()
            calls += 1
            now = time.perf_counter()
        rates[index] = calls / (now - start)

    workers = [threading.Thread(target=loop, args=(i,)) for i in range(len(works))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)
