"""Builds and runs for a GPU without one: see tests/cuda_emulator/device.py."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cuda_emulator.device import EmulatedDevice

from enginesmith import builder
from enginesmith.kernels import sources
from enginesmith.planner import assemble_cuda
from enginesmith.runtime.devices import cuda
from enginesmith.tuner import cuda_device as tuning


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    """The GPU of this process is an emulated one, and NVRTC "compiles" kernels to their text (PTX
    is marked as such)."""
    device = EmulatedDevice()
    monkeypatch.setattr(cuda, "cuda_device", lambda ordinal=0: device)
    monkeypatch.setattr(builder, "cuda_device", lambda ordinal=0: device)
    monkeypatch.setattr(builder, "host_architecture", lambda: f"sm_{device.arch}")
    monkeypatch.setattr(sources, "installed", lambda: (sources.OWN,))  # what it can run
    for module in (assemble_cuda, tuning):
        monkeypatch.setattr(module, "compile_cubin", lambda text, target, cache: text.encode())
    monkeypatch.setattr(
        assemble_cuda, "compile_ptx", lambda text, target, cache: b"// PTX\n" + text.encode()
    )
    return device


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Any:
    """The GPU that engines run on."""
    if request.param == "emulated":
        return request.getfixturevalue("gpu")
    found = cuda.cuda_device()
    found.use()
    return found
