"""The command that sanitizers run: what it covers, and that it finds mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import gpu_sanitize, gpu_small
from click.testing import CliRunner
from tests.cuda.conftest import gpu  # noqa: F401
from tests.cuda_emulator.device import EmulatedDevice

from enginesmith.errors import DeviceError
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.pool import cuda as pool
from enginesmith.plan.target import Target
from enginesmith.tuner.cuda_device import PAD

ALL = {
    "argmax": {"lines"},
    "attention": {"flash_mma", "flash_short", "flash_wgmma", "simple"},
    "conv": {
        "banded",
        "depthwise",
        "direct",
        "gathered",
        "gemv",
        "grouped",
        "mma",
        "patch",
        "stem",
        "wgmma",
    },
    "cumsum": {"lines", "scan"},
    "gather": {"last", "vectors"},
    "layout": {"few", "tiles", "vectors"},
    "matmul": {"gemv", "mma", "simple", "wgmma"},
    "normalization": {"columns", "rows"},
    "pad": {"vectors"},
    "pointwise": {"vectors"},
    "pool": {"windows"},
    "range": {"count"},
    "reduce": {"columns", "rows"},
    "resize": {"taps"},
    "sizes": {"stores"},
    "softmax": {"columns", "rows"},
}


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_every_family_and_tactic_is_covered(isa: str) -> None:
    found: dict[str, set[str]] = {}
    for family, name in gpu_sanitize.counts(gpu_sanitize.picks(Target("cuda", isa))):
        found.setdefault(family, set()).add(name)
    missing = {"wgmma", "flash_wgmma"} if isa != "sm_90" else set()
    assert found == {family: names - missing for family, names in ALL.items()}
    assert set(found) == set(FAMILIES["cuda"]) - {"host"}  # which has no kernels


def test_few_kernels_show_all() -> None:
    target = Target("cuda", "sm_90")
    every = gpu_small.cases(target)
    picks = gpu_small.chosen(every, target)
    assert len(every) > 150
    assert sum(len(pick.tactics) for pick in picks) < 300
    splits = {t["split"] for pick in picks for t in pick.tactics if t.name == "mma"}
    assert splits == {1, 2, 4, 8}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(gpu_sanitize.main, arguments)


def test_right_kernels(gpu: EmulatedDevice) -> None:  # noqa: F811
    found = invoke("--only", "pool", "--only", "matmul/gemv", "--only", "range")
    assert found.exit_code == 0, found.output
    for text in ("pool", "windows", "gemv", "count", "0 kernels wrong"):
        assert text in found.output
    assert "mma" not in found.output


def test_list_needs_no_gpu() -> None:
    found = invoke("--list", "--only", "attention")
    assert found.exit_code == 0, found.output
    assert "flash_mma" in found.output


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(ordinal: int = 0) -> EmulatedDevice:
        raise DeviceError("no NVIDIA driver is installed")

    monkeypatch.setattr("enginesmith.runtime.devices.cuda.cuda_device", missing)
    found = invoke()
    assert found.exit_code == 2
    assert found.output.strip() == "Error: no NVIDIA driver is installed"


def test_wrong_kernels(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    real, asked = pool.emit, []

    def emit(problem: Any, tactic: Any, target: Any) -> Any:
        source = real(problem, tactic, target)
        asked.append(tactic)
        if len(asked) % 2 == 0:  # the candidate after its reference
            text = source.text.replace("grid_wait();", "grid_wait(); if (blockIdx.x == 0) return;")
            assert text != source.text
            return type(source)(text, source.launches, source.workspace, source.cleared)
        return source

    monkeypatch.setattr(pool, "emit", emit)
    found = invoke("--only", "pool")
    assert found.exit_code == 1
    assert "elements left out" in found.output


def test_a_lost_gpu(gpu: EmulatedDevice) -> None:  # noqa: F811
    gpu.fail_next["launch"] = DeviceError("illegal address", usable=False)
    found = invoke("--only", "range")
    assert found.exit_code == 3
    assert "can't be used after range/count" in found.output


def test_differences() -> None:
    def around(data: np.ndarray, before: int = 0xFF) -> np.ndarray:
        margin = np.full(PAD, 0xFF, np.uint8)
        return np.concatenate([np.full(PAD, before, np.uint8), data.view(np.uint8), margin])

    y = np.linspace(1, 2, 16).astype(np.float16)
    empty = np.frombuffer(b"\xff" * 2, np.float16)[0]
    some = np.where(np.arange(16) == 3, empty, y)
    inf = np.where(np.arange(16) == 3, np.float16("inf"), y)

    def told(got: np.ndarray, want: np.ndarray, dtype: str = "float16") -> str:
        return gpu_sanitize.difference(dtype, got, want, (2e-3, 1e-2))[1]

    assert told(around(y), around(y)) == ""
    assert told(around(some), around(some)) == ""
    assert told(around(y * np.float16(1.001)), around(y)) == ""
    assert told(around(y * np.float16(1.01)), around(y)) == "wrong values"
    assert told(around(some), around(y)) == "elements left out"
    assert told(around(y), around(some)) == "writes outside of the output"
    assert told(around(y, 0), around(y)) == "writes outside of the output"
    assert told(around(inf), around(y)) == "NaN or infinity"
    whole = np.arange(4, dtype=np.int64)
    assert told(around(whole), around(whole), "int64") == ""
    assert told(around(whole + 1), around(whole), "int64") == "wrong values"
