"""Interleaving and its statistics, with a clock that only moves when told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench.rounds import latency, ratio, spread, time_rounds


class Machine:
    """A clock, and runners that take a known time on it and are noted in `log`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def runner(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += seconds

        return run


def measure(rounds: int, slice_seconds: float, **runners: float) -> tuple[Machine, list[dict]]:
    machine = Machine()
    runs = {name: machine.runner(name, seconds) for name, seconds in runners.items()}
    found = time_rounds(runs, rounds, slice_seconds, clock=machine.clock, pause=lambda _: None)
    return machine, found


def test_each_round_runs_everybody_for_a_slice_after_a_warm_up() -> None:
    machine, rounds = measure(2, 1.0, a=0.25, b=0.5)
    assert [len(r["a"]) for r in rounds] == [4, 4]
    assert [len(r["b"]) for r in rounds] == [2, 2]
    assert machine.log.count("a") == 2 * (4 + 1)


def test_the_order_rotates() -> None:
    machine, _ = measure(3, 0.1, a=1, b=1, c=1)
    assert "".join(machine.log[::2]) == "abcbcacab"


def test_a_call_longer_than_the_slice_is_made_once() -> None:
    _, rounds = measure(1, 0.1, slow=7.0)
    assert rounds == [{"slow": [7.0]}]


def test_spread_is_median_and_quartiles() -> None:
    found = spread([5, 1, 4, 2, 3])
    assert (found.low, found.median, found.high) == (2, 3, 4)
    assert spread([7.0]).low == 7


def test_ratio_is_taken_within_rounds() -> None:
    """A machine that is three times slower in one round doesn't change it."""
    rounds = [{"us": [1.0], "peer": [2.0]}, {"us": [3.0], "peer": [6.0]}]
    found = ratio(rounds, "us", ["peer"])
    assert (found.low, found.median, found.high) == (2, 2, 2)
    assert latency(rounds, "us").median == 2


def test_the_best_peer_is_the_one_of_all_rounds() -> None:
    rounds = [
        {"us": [1.0], "steady": [2.0], "lucky": [1.5]},
        {"us": [1.0], "steady": [2.0], "lucky": [9.0]},
        {"us": [1.0], "steady": [2.0], "lucky": [9.0]},
    ]
    assert ratio(rounds, "us", ["steady", "lucky"]).median == pytest.approx(2)
