"""The thread pool's C text: every task runs exactly once, whatever the threads do meanwhile."""

from __future__ import annotations

import ctypes
import itertools
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import tiny

from enginesmith.runtime.devices.cpu import Library, ThreadPool

TASKS = r"""
/* Counts each task in p[0], leaves the thread's scratch mark in p[1], works d[0] ns on every d[1]th
   task, and checks that nobody else uses its scratch meanwhile. */
void task(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {
  volatile int64_t *mine = (volatile int64_t *)scratch;
  for (int64_t i = begin; i < end; i++) {
    *mine = i;
    if (d[0] && i % d[1] == 0) for (int64_t t = es_now(); es_now() - t < d[0];) ;
    __atomic_fetch_add((int32_t *)p[0] + i, *mine == i ? 1 : 1000, __ATOMIC_RELAXED);
    ((int64_t *)p[1])[i] = (int64_t)scratch;
  }
}
/* n regions of d[2] tasks, one after the other. */
void regions(void *pool, char *const *p, const int64_t *d, int64_t n) {
  for (int64_t i = 0; i < n; i++) es_parallel(pool, task, p, d, d[2]);
}
void denormal(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {
  for (int64_t i = begin; i < end; i++) {
    volatile float tiny = 1e-38f;
    ((float *)p[0])[i] = tiny * 0.5f;
    for (int64_t t = es_now(); es_now() - t < 1000000;) ; /* time for the others to take some */
  }
}
void denormals(void *pool, char *const *p, int64_t n) {
  es_begin(pool);
  es_parallel(pool, denormal, p, 0, n);
  es_end(pool);
}
void copy(char *to, const char *from, uint64_t n) { memmove(to, from, n); }
void copy_apart(char *to, const char *from, uint64_t n) { memcpy(to, from, n); }
void fill(char *to, int value, uint64_t n) { memset(to, value, n); }
int compare(const char *a, const char *b, uint64_t n) { return memcmp(a, b, n); }
"""
POINTER, INT = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS = {
    "regions": [POINTER, POINTER, POINTER, INT],
    "denormals": [POINTER, POINTER, INT],
    "copy": [POINTER, POINTER, INT],
    "copy_apart": [POINTER, POINTER, INT],
    "fill": [POINTER, ctypes.c_int, INT],
    "compare": [POINTER, POINTER, INT],
}


@pytest.fixture(scope="module")
def library() -> Library:
    library = Library(tiny.shared(TASKS))
    for name, arguments in ARGUMENTS.items():
        library.function(name).argtypes = arguments
    library.function("compare").restype = ctypes.c_int
    return library


@pytest.fixture(params=[1, 2, 3, 8, 33])
def pool(request: pytest.FixtureRequest, library: Library) -> Iterator[ThreadPool]:
    """Also more threads than CPUs."""
    pool = ThreadPool(library, request.param, 64)
    yield pool
    pool.close()


class Counts:
    """Runs regions and checks that each task ran once per region."""

    def __init__(self, library: Library, pool: ThreadPool, most: int) -> None:
        self.library, self.pool = library, pool
        self.counts = np.zeros(most, np.int32)
        self.owners = np.zeros(most, np.int64)
        self.p = (POINTER * 2)(self.counts.ctypes.data, self.owners.ctypes.data)

    def run(self, tasks: int, regions: int = 1, wait_ns: int = 0, every: int = 1) -> None:
        self.counts[:] = 0
        d = (INT * 3)(wait_ns, every, tasks)
        self.library.function("regions")(self.pool.address, self.p, d, regions)
        assert (self.counts[:tasks] == regions).all()
        assert not self.counts[tasks:].any()


def test_random_regions(library: Library, pool: ThreadPool) -> None:
    """Random task counts, uneven work, and pauses in which the workers fall asleep."""
    rng = random.Random(pool.threads)
    counts = Counts(library, pool, 3000)
    for _ in range(60):
        tasks = rng.choice([0, 1, 2, 3, pool.threads, rng.randrange(100), rng.randrange(3000)])
        counts.run(tasks, rng.choice([1, 1, 20]), rng.choice([0, 0, 2000]), rng.choice([7, 50]))
        if rng.random() < 0.3:
            time.sleep(rng.choice([0.0, 0.0002, 0.002]))


def test_many_short_regions(library: Library, pool: ThreadPool) -> None:
    """Workers meet regions that open and close faster than they look."""
    counts = Counts(library, pool, 40)
    for tasks in (2, 5, 40):
        counts.run(tasks, 2000)


def test_all_threads_take_part(library: Library) -> None:
    """Long tasks are shared, by as many threads as there are; each has its own scratch."""
    pool = ThreadPool(library, 3, 100)
    counts = Counts(library, pool, 300)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            counts.run(300, wait_ns=100_000)
            owners = np.unique(counts.owners)
            if len(owners) == 3:
                break
        assert len(owners) == 3
        assert (np.diff(owners) >= 100).all()
        assert (owners % 64 == 0).all()
    finally:
        pool.close()


def test_single_tasks_run_on_the_caller(library: Library, pool: ThreadPool) -> None:
    """No thread is woken for one task."""
    counts = Counts(library, pool, 1)
    owners = set()
    for _ in range(20):
        counts.run(1, 10)
        owners.add(int(counts.owners[0]))
    assert len(owners) == 1


def test_two_pools_at_once(library: Library) -> None:
    """Pools of one library know nothing of each other."""
    errors = []

    def work() -> None:
        pool = ThreadPool(library, 3, 64)
        counts = Counts(library, pool, 500)
        try:
            for tasks in itertools.islice(itertools.cycle([500, 3, 77]), 100):
                counts.run(tasks, 3)
        except AssertionError as error:
            errors.append(error)
        finally:
            pool.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_scratch_grows_between_runs(library: Library) -> None:
    """More scratch than before, for every thread, aligned and apart."""
    pool = ThreadPool(library, 2)
    counts = Counts(library, pool, 64)
    for scratch in (8, 5000, 300_000, 64):
        pool.reserve(scratch)
        counts.run(64, wait_ns=20_000)
        owners = np.unique(counts.owners)
        assert (owners % 64 == 0).all()
        assert (np.diff(owners) >= scratch).all()
    pool.close()


def test_denormals_are_zero_in_a_run_alone(library: Library) -> None:
    """All threads flush denormals; the caller's own arithmetic is as before."""
    pool = ThreadPool(library, 3)
    results = np.full(60, np.nan, np.float32)
    p = (POINTER * 1)(results.ctypes.data)
    library.function("denormals")(pool.address, p, 60)
    assert (results == 0).all()
    assert np.float32(1e-38) * np.float32(0.5) != 0
    pool.close()


def test_stops_at_once_and_only_its_own_threads(library: Library) -> None:
    """Closing waits for the workers, asleep or not; a collected pool ends its threads too."""
    pool = ThreadPool(library, 5)
    workers = list(pool._workers)
    time.sleep(0.01)
    assert all(worker.is_alive() for worker in workers)
    pool.close()
    assert not any(worker.is_alive() for worker in workers)

    pool = ThreadPool(library, 5)
    workers = list(pool._workers)
    del pool
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("size", [0, 1, 15, 63, 64, 65, 200, 1023, 1024, 1500, 70_001])
def test_memory_functions(library: Library, size: int) -> None:
    """memcpy, memmove, memset and memcmp as libc's, overlaps in both directions included."""
    rng = np.random.default_rng(size)
    data = rng.integers(0, 255, size + 200, np.uint8)
    for to, start in ((0, 0), (3, 90), (90, 3), (64, 65), (65, 64), (1, 0)):
        got, want = data.copy(), data.copy()
        want[to : to + size] = data[start : start + size]
        library.function("copy")(got.ctypes.data + to, got.ctypes.data + start, size)
        np.testing.assert_array_equal(got, want)
    got = np.zeros_like(data)
    library.function("copy_apart")(got.ctypes.data + 5, data.ctypes.data + 9, size)
    np.testing.assert_array_equal(got[5 : 5 + size], data[9 : 9 + size])
    assert not got[:5].any()
    assert not got[5 + size :].any()
    library.function("fill")(got.ctypes.data + 7, 0xAB, size)
    assert (got[7 : 7 + size] == 0xAB).all()
    compare = library.function("compare")
    other = data.copy()
    assert compare(data.ctypes.data, other.ctypes.data, size) == 0
    if size:
        other[size - 1] = data[size - 1] ^ 0x80
        sign = compare(data.ctypes.data, other.ctypes.data, size)
        assert (sign > 0) == (data[size - 1] > other[size - 1])
