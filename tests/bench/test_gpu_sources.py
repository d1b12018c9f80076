"""Which source is fastest for which problem, from what a build timed; on an emulated GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from bench import gpu_sources
from click.testing import CliRunner
from tests.cuda import test_cudnn
from tests.cuda.conftest import gpu  # noqa: F401
from tests.cuda_emulator.cudnn import FakeCudnn
from tests.cuda_emulator.device import EmulatedDevice

from enginesmith.plan.plan import Step
from enginesmith.runtime.devices import cudnn


def step(problem: str, *timings: tuple[str, float], op: str = "conv") -> Step:
    return Step(op, problem, timings[0][0], "k", (), 0, 0, timings)


def test_the_fastest_of_each_kind() -> None:
    timed = (("mma(bm=32)", 6e-6), ("cudnn(algo=1)", 3e-6), ("mma(bm=16)", 5e-6),
             ("cudnn(algo=0)", 8e-6))  # fmt: skip
    steps = [
        step("a", *timed), step("b", ("wgmma(m=64)", 1e-6), ("triton(m=16)", 4e-6)),
        step("a", *timed), step("c", ("simple", 1e-6)), step("d", *timed, op="pointwise"),
    ]  # fmt: skip
    plan: Any = SimpleNamespace(steps=steps)
    found = gpu_sources.fastest(plan)
    assert [(e["problem"], e["count"]) for e in found] == [("a", 2), ("b", 1)]
    assert list(found[0]["microseconds"].items()) == [("cudnn", 3.0), ("mma", 5.0)]
    assert gpu_sources.compared(found, "cudnn") == [0.6]
    assert gpu_sources.compared(found, "triton") == [4.0]
    assert gpu_sources.compared(found, "cublaslt") == []
    assert gpu_sources.table(found).row_count == 2


def test_the_command(
    gpu: EmulatedDevice,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = FakeCudnn(gpu)
    monkeypatch.setattr(cudnn, "library", lambda: library)
    monkeypatch.setattr(gpu_sources.machine, "gpu", lambda: gpu)
    monkeypatch.setenv("ENGINESMITH_CACHE", str(tmp_path / "cache"))
    proto = test_cudnn.model()
    for value in (*proto.graph.input, *proto.graph.output):
        for k, size in ((2, 6), (3, 5)):
            value.type.tensor_type.shape.dim[k].dim_value = size
    onnx.save(proto, str(tmp_path / "block.onnx"))
    arguments = ["--models", f"{tmp_path / 'block.onnx'}:2", "--sources", "cuda,cudnn",
                 "--folder", str(tmp_path)]  # fmt: skip
    done = CliRunner().invoke(gpu_sources.main, arguments)
    assert done.exit_code == 0, done.output
    assert "cudnn" in done.output
    results = json.loads((tmp_path / "gpu_sources.json").read_text())
    assert results["sources"] == ["cuda", "cudnn"]
    assert [e["batch"] for e in results["problems"]] == [2, 2]
    assert all("cudnn" in e["microseconds"] for e in results["problems"])
