"""Chooses a tactic for each problem by timing the candidates on the target."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from enginesmith.kernels import FAMILIES
from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.sources import OWN, candidates
from enginesmith.plan.target import Target
from enginesmith.toolchain import triton_aot
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.device import Clock, Device, Source, Trial

ROUNDS = 12
"""At most so many timed runs of each candidate."""

DROP = 1.3
"""A candidate this many times slower than the best after three rounds is timed no more."""

SLICE = 0.25
"""Seconds of timing a problem gets at most (after three rounds of everything)."""

Report = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Task:
    """A problem to tune, with the constants of one step that poses it (dense or blocked form)."""

    family: str
    problem: Problem
    constants: Mapping[int, np.ndarray]
    weight: float
    """Importance: estimated work times the number of steps that pose it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner and all timings (seconds), fastest first; no timings: untuned, the heuristic's."""

    tactic: Tactic
    timings: tuple[tuple[str, float], ...]


def timing_key(
    family: str, problem: Problem, sources: Sequence[Source], device: Device, cold: bool
) -> str:
    """Changes when the problem, any candidate's text, a compiler or the machine changes."""
    texts = [s.name for s in sources]
    if any(isinstance(s, CudaSource) and s.triton is not None for s in sources):
        texts.append(triton_aot.compiler_version())
    return ArtifactCache.key(
        "timing-2", family, repr(problem), *texts, device.fingerprint, str(cold)
    )


def tune(
    tasks: Sequence[Task], target: Target, device: Device | None, cache: ArtifactCache, *,
    sources: Sequence[str] = (OWN,), deadline: float | None = None, cold: bool = True,
    workers: int = 1,
    report: Report = lambda done, total, detail: None, clock: Clock = time.perf_counter,
) -> list[Choice]:  # fmt: skip
    """A Choice per task. device None: heuristics only. sources: of tactics, see kernels/sources.py.
    deadline: clock time after which what is left keeps its heuristic choice. Several processes may
    tune with one cache at once."""
    options = [candidates(t.family, t.problem, target, sources) for t in tasks]
    chosen = [Choice(o[0], ()) for o in options]
    if device is None:
        return chosen
    pending: list[_Job] = []
    for i in sorted(range(len(tasks)), key=lambda i: -tasks[i].weight):
        if len(options[i]) > 1:
            job = _job(i, tasks[i], options[i], target, device, cold)
            if (known := _read(cache, job.key, options[i])) is None:
                pending.append(job)
            else:
                chosen[i] = known
    done = 0
    # Groups, so that a deadline leaves the heaviest problems tuned. Where compilers would disturb
    # the timing they wait for it; else they work ahead.
    with _Compilers(device, workers) as compilers:
        if not device.disturbed:
            compilers.start(pending)
        for group in _groups(pending):
            if deadline is not None and clock() > deadline:
                break
            compilers.start(group)
            report(done, len(pending), f"compiling {sum(len(j.sources) for j in group)} candidates")
            binaries = [compilers.binaries(job) for job in group]
            for job, compiled in zip(group, binaries, strict=True):
                if deadline is not None and clock() > deadline:
                    break
                report(done, len(pending), f"timing {job.task.family}")
                seconds = _time(job, compiled, target, device, cold, clock)
                cache.put(job.key, json.dumps(seconds).encode())
                chosen[job.number] = _choice(job.options, seconds)
                done += 1
    report(len(pending), len(pending), "")
    return chosen


@dataclass(frozen=True, slots=True)
class _Job:
    """Task `number`, to be timed. sources: its candidates'; key: of their timings."""

    number: int
    task: Task
    options: Sequence[Tactic]
    sources: Sequence[Source]
    key: str


def _job(
    number: int, task: Task, options: Sequence[Tactic], target: Target, device: Device, cold: bool
) -> _Job:
    family = FAMILIES[target.device][task.family]
    sources = [family.emit(task.problem, option, target) for option in options]
    key = timing_key(task.family, task.problem, sources, device, cold)
    return _Job(number, task, options, sources, key)


class _Compilers:
    """Threads that compile candidates, each text once. What is left when they close isn't begun."""

    def __init__(self, device: Device, workers: int) -> None:
        self._device, self._pool = device, ThreadPoolExecutor(workers)
        self._compiled: dict[str, Future[bytes]] = {}

    def __enter__(self) -> _Compilers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, jobs: Sequence[_Job]) -> None:
        """Begin with what hasn't been begun yet."""
        for source in (s for job in jobs for s in job.sources):
            if source.name not in self._compiled:
                self._compiled[source.name] = self._pool.submit(self._device.compile, source)

    def binaries(self, job: _Job) -> list[bytes]:
        """A job's machine code, when it is there."""
        return [self._compiled[source.name].result() for source in job.sources]


def _time(
    job: _Job, binaries: Sequence[bytes], target: Target, device: Device, cold: bool, clock: Clock
) -> list[float]:
    """Seconds of each candidate."""
    task, family = job.task, FAMILIES[target.device][job.task.family]
    packed = [
        {**task.constants, **family.pack(task.problem, option, target, task.constants)}
        for option in job.options
    ]
    trials = device.load(task.problem, job.sources, binaries, packed, cold)
    return time_trials(trials, clock)


def time_trials(trials: Sequence[Trial], clock: Clock = time.perf_counter) -> list[float]:
    """Best time of each trial; rounds are interleaved so that a noisy moment hits all alike."""
    best = [float("inf")] * len(trials)
    start = clock()
    for trial in trials:
        trial.time(clock)
    for round_ in range(ROUNDS):
        fastest = min(best)
        for i, trial in enumerate(trials):
            if round_ >= 3 and best[i] > DROP * fastest:
                continue
            best[i] = min(best[i], trial.time(clock))
        if round_ >= 3 and clock() - start > SLICE:
            break
    return best


def _groups(pending: Sequence[_Job]) -> list[list[_Job]]:
    """Cut into runs of about 24 candidates."""
    groups: list[list[_Job]] = []
    count = 24
    for job in pending:
        if count >= 24:
            groups.append([])
            count = 0
        groups[-1].append(job)
        count += len(job.sources)
    return groups


def _read(cache: ArtifactCache, key: str, options: Sequence[Tactic]) -> Choice | None:
    data = cache.get(key)
    if data is None:
        return None
    seconds = json.loads(data)
    return _choice(options, seconds) if len(seconds) == len(options) else None


def _choice(options: Sequence[Tactic], seconds: Sequence[float]) -> Choice:
    """The fastest; what the device refused to run is left out of the timings."""
    ranked = sorted(range(len(options)), key=lambda i: (seconds[i], i))
    timed = ((str(options[i]), seconds[i]) for i in ranked if seconds[i] < float("inf"))
    return Choice(options[ranked[0]], tuple(timed))
