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
    order = sorted(range(len(tasks)), key=lambda i: -tasks[i].weight)
    pending: list[int] = []
    emitted: dict[int, list[Source]] = {}
    for i in order:
        if len(options[i]) == 1:
            continue
        family = FAMILIES[target.device][tasks[i].family]
        emitted[i] = [family.emit(tasks[i].problem, o, target) for o in options[i]]
        key = timing_key(tasks[i].family, tasks[i].problem, emitted[i], device, cold)
        known = _read(cache, key, options[i])
        if known is None:
            pending.append(i)
        else:
            chosen[i] = known
    # Groups, so that a deadline leaves the heaviest problems tuned. Where compilers would disturb
    # the timing they wait for it; else they work ahead.
    groups = _groups(pending, emitted)
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        compiled: dict[str, Future[bytes]] = {}

        def compile_groups(chosen: Sequence[Sequence[int]]) -> None:
            for source in (s for group in chosen for i in group for s in emitted[i]):
                if source.name not in compiled:
                    compiled[source.name] = pool.submit(device.compile, source)

        if not device.disturbed:
            compile_groups(groups)
        try:
            for group in groups:
                if deadline is not None and clock() > deadline:
                    break
                compile_groups([group])
                names = {s.name for i in group for s in emitted[i]}
                report(done, len(pending), f"compiling {len(names)} candidates")
                binaries = {name: compiled[name].result() for name in names}
                for i in group:
                    if deadline is not None and clock() > deadline:
                        break
                    task = tasks[i]
                    report(done, len(pending), f"timing {task.family}")
                    family = FAMILIES[target.device][task.family]
                    packed = [
                        {**task.constants, **family.pack(task.problem, o, target, task.constants)}
                        for o in options[i]
                    ]
                    objects = [binaries[s.name] for s in emitted[i]]
                    trials = device.load(task.problem, emitted[i], objects, packed, cold)
                    seconds = time_trials(trials, clock)
                    key = timing_key(task.family, task.problem, emitted[i], device, cold)
                    cache.put(key, json.dumps(seconds).encode())
                    chosen[i] = _choice(options[i], seconds)
                    done += 1
        finally:
            for job in compiled.values():
                job.cancel()
    report(len(pending), len(pending), "")
    return chosen


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


def _groups(pending: Sequence[int], emitted: Mapping[int, Sequence[Source]]) -> list[list[int]]:
    """Cut into runs of about 24 candidates."""
    groups: list[list[int]] = []
    count = 24
    for i in pending:
        if count >= 24:
            groups.append([])
            count = 0
        groups[-1].append(i)
        count += len(emitted[i])
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
