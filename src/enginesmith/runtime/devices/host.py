"""What the machine offers this process: instruction sets and CPUs."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from enginesmith.knobs import knobs

V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})
NEEDS = {
    "avx512": V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx2": V3,
}
"""Instruction set of a target, best first -> the CPU flags it takes (x86-64-v4 and -v3)."""


@cache
def host_isas() -> tuple[str, ...]:
    """The instruction sets of `plan.target.ISAS` this machine runs, best first."""
    return isas_of(_read("/proc/cpuinfo"))


def isas_of(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets a /proc/cpuinfo text grants."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            flags = set(value.split())
            return tuple(isa for isa, needed in NEEDS.items() if needed <= flags)
    return ()


def available_threads() -> int:
    """Threads an engine should use: ENGINESMITH_THREADS, else the CPUs this process may run on, cut
    to its cgroup's CPU quota (a container's `--cpus`)."""
    wanted = knobs().threads
    if wanted is not None:
        return wanted
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota(Path("/"))
    return max(1, allowed if quota is None else min(allowed, -int(-quota // 1)))


def cpu_quota(root: Path) -> float | None:
    """The CPUs' worth of time this process's cgroup may use, None if unlimited. `root` is / except
    in tests. A quota holds for all groups below it, so every parent counts."""
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup/cpu"
        else:
            continue
        path = top / group.lstrip("/")
        quotas += [_quota(folder) for folder in (path, *path.parents) if _inside(folder, top)]
        quotas.append(_quota(top))
    return min((q for q in quotas if q is not None), default=None)


def _inside(folder: Path, top: Path) -> bool:
    return folder == top or top in folder.parents


def _quota(folder: Path) -> float | None:
    text = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us").strip(),
        _read(folder / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = int(text[0]), int(text[1])
    except (ValueError, IndexError):
        return None  # "max", or no such file
    return quota / period if quota > 0 and period > 0 else None


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
