"""Builds and runs for a GPU without one: see tests/cuda_emulator/device.py."""

from __future__ import annotations

import pytest
from tests.cuda_emulator.device import EmulatedDevice

from enginesmith import builder
from enginesmith.planner import assemble_cuda
from enginesmith.runtime.devices import cuda
from enginesmith.tuner import cuda_device as tuning


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    """The GPU of this process is an emulated one, and NVRTC "compiles" kernels to their text."""
    device = EmulatedDevice()
    monkeypatch.setattr(cuda, "cuda_device", lambda ordinal=0: device)
    monkeypatch.setattr(builder, "cuda_device", lambda ordinal=0: device)
    monkeypatch.setattr(builder, "host_architecture", lambda: f"sm_{device.arch}")
    for module in (assemble_cuda, tuning):
        monkeypatch.setattr(module, "compile_cubin", lambda text, target, cache: text.encode())
    return device
