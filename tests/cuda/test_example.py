"""The GPU example runs, on an emulated GPU."""

from __future__ import annotations

import pytest
from tests.cuda_emulator.device import EmulatedDevice

import gpu as example
from enginesmith import builder


def test_example(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Untuned and with a small image: emulated kernels take their time."""
    small = example.NETWORK.replace("128, 128", "24, 24")
    monkeypatch.setattr(example, "NETWORK", small)
    build = builder.build
    monkeypatch.setattr(example.es, "build", lambda *a, **k: build(*a, tuning=False, **k))
    example.main()
    assert "ms on the GPU" in capsys.readouterr().out
