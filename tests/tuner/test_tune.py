"""Choice by timing, with a fake device and clock."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginesmith.kernels.base import Cost, KernelSource, Operand, Phase, Problem, Tactic, tactic
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner import tune as tuning

TARGET = Target("cpu", "avx2")
PROBLEM = Problem((Operand("float32", (8,), (1,)),))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeTrial:
    def __init__(self, device: FakeDevice, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.runs = 0

    def time(self, clock: tuning.Clock) -> float:
        start = clock()
        self.runs += 1
        self.device.clock.now += self.seconds
        return clock() - start


class FakeDevice:
    fingerprint = "fake"
    disturbed = True

    def __init__(self, clock: Clock, seconds: Sequence[float]) -> None:
        self.clock, self.seconds = clock, seconds
        self.loads = 0
        self.compiled: list[str] = []
        self.before: list[int] = []  # compiled when something is loaded
        self.wait = threading.Semaphore(0)

    def compile(self, source: tuning.Source) -> bytes:
        self.compiled.append(source.name)
        self.wait.release()
        return source.name.encode()

    def load(
        self, problem: Problem, sources: Sequence[KernelSource], objects: Sequence[bytes],
        constants: Sequence[Mapping[int, np.ndarray]], cold: bool,
    ) -> list[tuning.Trial]:  # fmt: skip
        self.loads += 1
        self.before.append(len(self.compiled))
        return [FakeTrial(self, s) for s in self.seconds]


class FakeFamily:
    """Three tactics that differ in a number."""

    @staticmethod
    def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
        return tuple(tactic("try", n=n) for n in range(3))

    @staticmethod
    def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
        return KernelSource(f"int NAME(void) {{ return {tactic['n']}; }}", (Phase(1),))

    @staticmethod
    def pack(
        problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
    ) -> Mapping[int, np.ndarray]:
        return {}

    @staticmethod
    def cost(problem: Problem) -> Cost:
        return Cost(1, 1)


@pytest.fixture(autouse=True)
def _family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tuning.FAMILIES["cpu"], "fake", FakeFamily)  # type: ignore[arg-type]


def run(device: FakeDevice | None, cache: Path, **options: float) -> tuning.Choice:
    task = tuning.Task("fake", PROBLEM, {}, 1.0)
    clock = device.clock if device else Clock()
    return tuning.tune([task], TARGET, device, ArtifactCache(cache), clock=clock, **options)[0]


def test_fastest_wins_and_losers_are_remembered(tmp_path: Path) -> None:
    device = FakeDevice(Clock(), [3e-3, 1e-3, 2e-3])
    choice = run(device, tmp_path)
    assert str(choice.tactic) == "try(n=1)"
    assert [name for name, _ in choice.timings] == ["try(n=1)", "try(n=2)", "try(n=0)"]
    assert choice.timings[0][1] == pytest.approx(1e-3)


def test_second_time_reads_the_timing_cache(tmp_path: Path) -> None:
    first = run(FakeDevice(Clock(), [3e-3, 1e-3, 2e-3]), tmp_path)
    other = FakeDevice(Clock(), [1e-3, 2e-3, 3e-3])
    assert run(other, tmp_path) == first
    assert other.loads == 0


def test_another_machine_is_timed_again(tmp_path: Path) -> None:
    run(FakeDevice(Clock(), [3e-3, 1e-3, 2e-3]), tmp_path)
    other = FakeDevice(Clock(), [1e-3, 2e-3, 3e-3])
    other.fingerprint = "another"
    assert str(run(other, tmp_path).tactic) == "try(n=0)"


def test_damaged_timing_is_made_again(tmp_path: Path) -> None:
    run(FakeDevice(Clock(), [3e-3, 1e-3, 2e-3]), tmp_path)
    for file in (tmp_path / "artifacts").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1] + b"x")
    device = FakeDevice(Clock(), [3e-3, 2e-3, 1e-3])
    assert str(run(device, tmp_path).tactic) == "try(n=2)"
    assert device.loads == 1


def test_without_a_device_the_heuristic_decides(tmp_path: Path) -> None:
    assert run(None, tmp_path) == tuning.Choice(tactic("try", n=0), ())


def test_deadline_leaves_the_heuristic(tmp_path: Path) -> None:
    device = FakeDevice(Clock(), [3e-3, 1e-3, 2e-3])
    device.clock.now = 10.0
    choice = run(device, tmp_path, deadline=5.0)
    assert choice == tuning.Choice(tactic("try", n=0), ())
    assert device.loads == 0


class Patient(FakeDevice):
    """Loads nothing before all of 30 candidates are compiled."""

    disturbed = False

    def load(self, *args: Any, **more: Any) -> list[tuning.Trial]:
        if not self.loads:
            for _ in range(30):
                assert self.wait.acquire(timeout=10), "compilers don't work ahead"
        return super().load(*args, **more)


@pytest.mark.parametrize("kind", [FakeDevice, Patient])
def test_compilers_work_ahead_where_they_do_not_disturb(
    kind: type[FakeDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten problems of three candidates are more than a group."""
    emit = FakeFamily.emit

    def emit_own(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
        size = problem.operands[0].shape[0]
        return KernelSource(f"{emit(problem, tactic, target).text} /* {size} */", (Phase(1),))

    monkeypatch.setattr(FakeFamily, "emit", staticmethod(emit_own))
    problems = [Problem((Operand("float32", (8 + n,), (1,)),)) for n in range(10)]
    device = kind(Clock(), [3e-3, 1e-3, 2e-3])
    chosen = tuning.tune(
        [tuning.Task("fake", p, {}, 1.0) for p in problems], TARGET, device,
        ArtifactCache(tmp_path), clock=device.clock,
    )  # fmt: skip
    assert all(str(choice.tactic) == "try(n=1)" for choice in chosen)
    assert len(device.compiled) == 30
    assert (device.before[0] < 30) == device.disturbed


def test_slow_candidates_are_dropped_early() -> None:
    clock = Clock()
    device = FakeDevice(clock, [1e-3, 5e-3])
    fast, slow = FakeTrial(device, 1e-3), FakeTrial(device, 5e-3)
    best = tuning.time_trials([fast, slow], clock)
    assert best == pytest.approx([1e-3, 5e-3])
    assert (fast.runs, slow.runs) == (1 + tuning.ROUNDS, 1 + 3)
