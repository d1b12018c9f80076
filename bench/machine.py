"""What was measured on, and whether it was quiet."""

from __future__ import annotations

import datetime
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from enginesmith.errors import DeviceError
from enginesmith.runtime.devices import cuda

PACKAGES = ("enginesmith", "numpy", "onnx", "onnxruntime", "openvino", "ziglang")
BUSY = 0.05
"""Share of the CPUs that others may use before a measurement counts as disturbed."""


class NoGpuError(click.ClickException):
    """What a command that needs a GPU says where there is none, in one line."""

    exit_code = 2


def gpu() -> cuda.CudaDevice:
    """This machine's GPU. NoGpuError if there is none that can be used."""
    try:
        return cuda.cuda_device()
    except DeviceError as error:
        raise NoGpuError(str(error)) from error


def describe() -> dict[str, Any]:
    """Date, CPU, cores and versions, as the JSON results carry them."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
    }


def cpu_name() -> str:
    """The CPU's model as Linux names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def installed(package: str) -> str | None:
    """A package's version, None if it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def busy_share(seconds: float = 0.2) -> float:
    """The share of all CPUs in use while this process sleeps: what others take."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    idle, total = (a - b for a, b in zip(after, before, strict=True))
    return 1 - idle / total if total else 0.0


def wait_until_quiet(patience: float = 10.0) -> float:
    """Wait for others to leave the CPUs alone, at most `patience` seconds; the last busy share."""
    end = time.monotonic() + patience
    while (share := busy_share()) > BUSY and time.monotonic() < end:
        time.sleep(0.3)
    return share


def _ticks() -> tuple[int, int]:
    """Idle and all ticks of the CPUs since the system started."""
    fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)
