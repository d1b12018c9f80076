"""What the machine offers: instruction sets, CPUs, container limits, knobs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enginesmith.errors import EnginesmithError
from enginesmith.knobs import knobs
from enginesmith.plan.target import ISAS
from enginesmith.runtime.devices.host import (
    NEEDS,
    available_threads,
    cpu_quota,
    host_isas,
    isas_of,
)

V3 = "fpu sse sse2 avx avx2 fma bmi1 bmi2 f16c movbe"
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "isas"),
    [
        (V4, ("avx512", "avx2")),
        (V3, ("avx2",)),
        (V3 + " avx512f avx512cd", ("avx2",)),  # Knights Landing
        (V4.replace(" fma", ""), ()),
        ("fpu sse2", ()),
        ("", ()),
    ],
)
def test_isas_of_flags(flags: str, isas: tuple[str, ...]) -> None:
    """All flags of a level are needed."""
    text = f"processor\t: 0\nvendor_id\t: X\nflags\t\t: {flags}\nbugs\t\t: avx2\n\n"
    assert isas_of(text) == isas


def test_isas() -> None:
    """They are the ones targets can name; other machines' files give none."""
    assert set(NEEDS) == set(ISAS)
    assert set(host_isas()) <= set(ISAS)
    assert isas_of("processor\t: 0\nBogoMIPS\t: 48\nFeatures\t: fp asimd\n") == ()
    assert isas_of("") == ()


def write(root: Path, files: dict[str, str]) -> None:
    """Files of a made-up root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 2.0),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n0::/\n",
          "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/g\n",
          "sys/fs/cgroup/cpu/g/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/g/cpu.cfs_period_us": "100000"}, None),
        ({"proc/self/cgroup": "0::/../../up\n", "sys/fs/cgroup/cpu.max": "garbage\n"}, None),
        ({"proc/self/cgroup": "3:memory:/\n", "sys/fs/cgroup/cpu.max": "1 1\n"}, None),
    ],
)  # fmt: skip
def test_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    """cgroup v2 and v1, nested groups, none."""
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == quota


def test_available_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The knob, else affinity cut to the quota rounded up, never less than one."""
    monkeypatch.delenv("ENGINESMITH_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for quota, threads in ((None, 12), (3.5, 4), (4.0, 4), (0.2, 1), (64.0, 12)):
        monkeypatch.setattr(
            "enginesmith.runtime.devices.host.cpu_quota", lambda _, quota=quota: quota
        )
        assert available_threads() == threads
    monkeypatch.setenv("ENGINESMITH_THREADS", "7")
    assert available_threads() == 7


def test_knobs() -> None:
    """Defaults, values, and errors that name the variable."""
    default = knobs({"HOME": "/home/me"})
    assert default.threads is None
    assert default.log == "warning"
    assert default.cache.parts[-2:] == (".cache", "enginesmith")
    assert knobs({"XDG_CACHE_HOME": "/x"}).cache == Path("/x/enginesmith")
    assert knobs({"ENGINESMITH_CACHE": "/c", "XDG_CACHE_HOME": "/x"}).cache == Path("/c")
    assert knobs({"ENGINESMITH_THREADS": "3", "ENGINESMITH_LOG": "DEBUG"}).threads == 3
    for name, value in (
        ("ENGINESMITH_THREADS", "0"),
        ("ENGINESMITH_THREADS", "many"),
        ("ENGINESMITH_THREADS", "-2"),
        ("ENGINESMITH_THREADS", "9" * 5000),
        ("ENGINESMITH_LOG", "loud"),
    ):
        with pytest.raises(EnginesmithError, match=f"{name}=.*set "):
            knobs({name: value})
