"""Runs a plan's code on the CPU: loads the shared object, keeps threads, serialises runs."""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import tempfile
import threading
import weakref
from _ctypes import dlclose
from collections.abc import Callable
from typing import Any

from enginesmith.errors import ContextError, PlanError
from enginesmith.log import logger
from enginesmith.plan.plan import Plan
from enginesmith.runtime.devices.host import available_threads, host_isas
from enginesmith.runtime.devices.memory import Memory
from enginesmith.runtime.host_calls import HostCalls

POINTER, INT = ctypes.c_void_p, ctypes.c_int64
SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "es_pool_bytes": ([INT], INT),
    "es_pool_init": ([POINTER, INT, POINTER, INT], None),
    "es_pool_scratch": ([POINTER, POINTER, INT], None),
    "es_worker": ([POINTER, INT], None),
    "es_pool_stop": ([POINTER], None),
    "es_begin": ([POINTER], None),
    "es_end": ([POINTER], None),
    "es_parallel": ([POINTER, POINTER, POINTER, POINTER, INT], None),
    "es_now": ([], INT),
    "es_run": ([POINTER, POINTER, POINTER, POINTER], INT),
}
"""What a plan's shared object exports (codegen/pool.py, codegen/program.py): arguments, result."""


def check_host(target: str) -> None:
    """PlanError unless this machine runs plans for `target`."""
    device, _, isa = target.partition(":")
    system = f"{platform.system()} {platform.machine()}"
    if device != "cpu":
        raise PlanError(f"the plan was built for {target}; this runtime serves cpu targets alone")
    if system != "Linux x86_64":
        raise PlanError(f"the plan was built for {target} on Linux x86_64; this is {system}")
    if isa not in host_isas():
        best = next(iter(host_isas()), None)
        remedy = f"target='cpu:{best}'" if best else "another machine as its target"
        raise PlanError(
            f"the plan was built for {target}: it needs the CPU instruction set {isa!r}, and this "
            f"machine has {', '.join(host_isas()) or 'none a plan can use'}; build the model again "
            f"with {remedy}"
        )


class Library:
    """A shared object, loaded from memory and unloaded when the object is collected."""

    def __init__(self, code: bytes | memoryview) -> None:
        self._functions: dict[str, Any] = {}
        self._cdll, release = _open(code)
        unload = weakref.finalize(self, _unload, self._cdll._handle, release)
        unload.atexit = False  # threads may still be inside, and the process ends anyway

    def function(self, name: str) -> Any:
        """An exported C function; those of SIGNATURES are typed. PlanError if there is none."""
        if name in self._functions:
            return self._functions[name]
        try:
            function = self._cdll[name]
        except AttributeError as error:
            raise PlanError(f"the plan's code is damaged: it has no function {name}") from error
        if name in SIGNATURES:
            function.argtypes, function.restype = SIGNATURES[name]
        self._functions[name] = function
        return function

    def address(self, name: str) -> int:
        """The address of a C function."""
        return ctypes.cast(self.function(name), POINTER).value or 0


def _open(code: bytes | memoryview) -> tuple[ctypes.CDLL, Callable[[], None]]:
    """The library, and what to call after it is unloaded. It is loaded from memory, or from a
    temporary file where a machine's policy forbids that; PlanError if neither works."""
    for as_file in (_in_memory, _in_temporary_file):
        try:
            path, release = as_file(code)
        except (OSError, AttributeError) as error:  # not allowed, or not offered by this libc
            reason = str(error)
            continue
        try:
            return ctypes.CDLL(path), release
        except OSError as error:
            reason = str(error)
            release()
    raise PlanError(f"the plan's code can't be loaded: {reason}")


def _in_memory(code: bytes | memoryview) -> tuple[str, Callable[[], None]]:
    """A path for dlopen without a file.

    The descriptor stays open as long as the library: dlopen takes a library of the same path for
    the same library, and a number that is free again would give the next plan the path of this one.
    """
    handle = os.memfd_create("enginesmith-plan")
    with os.fdopen(os.dup(handle), "wb") as file:
        file.write(code)
    return f"/proc/self/fd/{handle}", lambda: os.close(handle)


def _in_temporary_file(code: bytes | memoryview) -> tuple[str, Callable[[], None]]:
    handle, path = tempfile.mkstemp(prefix="enginesmith-", suffix=".so")
    with os.fdopen(handle, "wb") as file:
        file.write(code)
    return path, lambda: os.unlink(path)


def _unload(handle: int, release: Callable[[], None]) -> None:
    dlclose(handle)
    release()


class ThreadPool:
    """The threads of a library's pool: the caller of `es_run` and `threads - 1` daemon threads
    parked in `es_worker`. They stop when the pool is closed or collected."""

    def __init__(self, library: Library, threads: int, scratch: int = 0) -> None:
        self.threads = threads
        self._library = library
        memory = Memory(library.function("es_pool_bytes")(threads))
        self.address = memory.address
        self._scratch, self._stride = Memory(0), 0
        library.function("es_pool_init")(self.address, threads, self._scratch.address, 0)
        self.reserve(scratch)
        self._workers = [
            threading.Thread(
                target=_work, args=(library, memory, i), name=f"enginesmith-{i}", daemon=True
            )
            for i in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()
        self._memory = memory
        weakref.finalize(self, _stop, library, memory).atexit = False  # see _at_exit
        _POOLS.add(self)

    def reserve(self, scratch: int) -> None:
        """Give each thread at least `scratch` bytes. Not during a run."""
        if scratch <= self._stride:
            return
        # Whole pages per thread, and never the same 4 KiB offset in two of them twice over.
        self._stride = -(-scratch // 4096) * 4096 + 64
        self._scratch = Memory(self._stride * self.threads + 4096)
        reserve = self._library.function("es_pool_scratch")
        reserve(self.address, self._scratch.address, self._stride)

    def close(self) -> None:
        """Stop the threads and wait for them. Not during a run."""
        _stop(self._library, self._memory)
        for worker in self._workers:
            worker.join()


def _work(library: Library, memory: Memory, index: int) -> None:
    """A worker thread. Its arguments keep code and memory alive until it has left them."""
    library.function("es_worker")(memory.address, index)


def _stop(library: Library, memory: Memory) -> None:
    library.function("es_pool_stop")(memory.address)


class Program:
    """A plan's code with its threads. One run at a time; callers of `run` wait for their turn."""

    def __init__(self, plan: Plan, threads: int | None = None) -> None:
        check_host(plan.target)
        self.threads = threads or available_threads()
        self.hosts = HostCalls(plan)
        self._library = Library(plan.code)
        self._run = self._library.function("es_run")
        self._pool: ThreadPool | None = None
        self._lock = threading.Lock()
        self.closed = False
        _PROGRAMS.add(self)
        logger.debug("plan %r: %d threads on %s", plan.name, self.threads, plan.target)

    def run(self, base: int, dims: int, scratch: int, stamps: int | None = None) -> None:
        """Run the plan once. base, dims, stamps: addresses of the arrays `es_run` takes; scratch:
        bytes each thread needs. ContextError if closed."""
        with self._lock:
            if self.closed:
                raise ContextError("the engine is closed; load or build it again")
            if self._pool is None:
                self._pool = ThreadPool(self._library, self.threads)
            self._pool.reserve(scratch)
            self._run(self._pool.address, base, dims, stamps)

    def close(self) -> None:
        """Stop the threads, after the run in progress. May be called twice."""
        with self._lock:
            self.closed = True
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    def after_fork(self) -> None:
        """In a forked child: no thread survives a fork, not even the one that held the lock."""
        self._lock = threading.Lock()
        self._pool = None


_POOLS: weakref.WeakSet[ThreadPool] = weakref.WeakSet()
_PROGRAMS: weakref.WeakSet[Program] = weakref.WeakSet()


def _at_exit() -> None:
    """Let every thread leave the plans' code: when the interpreter ends it frees what daemon
    threads hold, the memory that this code works in, too. Runs in progress are waited for; what is
    enqueued behind them fails."""
    for program in list(_PROGRAMS):
        program.close()
    for pool in list(_POOLS):
        pool.close()


def _after_fork() -> None:
    for program in _PROGRAMS:
        program.after_fork()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
