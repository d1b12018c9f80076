"""Interleaved timing: in every round each runner gets a short slice, so all see the same machine.

A shared machine's speed drifts by tens of per cents within minutes. What survives is the ratio of
two runners within one round; its spread over the rounds says how far to trust it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
PAUSE = 0.05
"""Seconds between slices: thread pools spin on after their last task, ONNX Runtime's for 20 ms."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of one value or more."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def time_slice(run: Callable[[], object], seconds: float, clock: Clock) -> list[float]:
    """Seconds of each call within about `seconds`, after one call that isn't counted."""
    run()
    times: list[float] = []
    end = clock() + seconds
    while not times or clock() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return times


def time_rounds(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    *,
    clock: Clock = time.perf_counter,
    pause: Callable[[float], object] = time.sleep,
) -> list[dict[str, list[float]]]:
    """For each round, the seconds of every call by runner. The order rotates each round."""
    names = list(runs)
    measured = []
    for number in range(rounds):
        first = number % len(names)
        times = {}
        for name in names[first:] + names[:first]:
            pause(PAUSE)
            times[name] = time_slice(runs[name], seconds, clock)
        measured.append({name: times[name] for name in names})
    return measured


def latency(rounds: Sequence[Mapping[str, Sequence[float]]], name: str) -> Spread:
    """The spread over the rounds of a runner's median call, in seconds."""
    return spread([statistics.median(times[name]) for times in rounds])


def ratio(
    rounds: Sequence[Mapping[str, Sequence[float]]], ours: str, peers: Sequence[str]
) -> Spread:
    """How many times faster `ours` is than the fastest of `peers`, over the rounds.

    The fastest peer is the one with the lowest median over all rounds, not of each round, which
    would favour the peers by picking their lucky slices.
    """
    best = min(peers, key=lambda peer: latency(rounds, peer).median)
    return spread(
        [statistics.median(times[best]) / statistics.median(times[ours]) for times in rounds]
    )
