"""The command line with plans for GPUs, on the emulated one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from tests.cuda_emulator.device import EmulatedDevice

from enginesmith import builder
from enginesmith.cli.app import app
from enginesmith.tuner import cuda_peak

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
tiny (float[n, 8] x, float[8, 8] w) => (float[n, 8] y) {
  s = Sigmoid (x)
  y = MatMul (s, w)
}
"""


@pytest.fixture
def invoke(
    gpu: EmulatedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs a command line in a folder with `tiny.onnx`; nothing is tuned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cuda_peak, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(builder, "_tuning_device", lambda *_: None)
    onnx.save(onnx.parser.parse_model(MODEL), "tiny.onnx")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_bench_of_a_plan(invoke: Callable[..., Result], gpu: EmulatedDevice) -> None:
    built = invoke("build", "tiny.onnx", "--target", "cuda", "--precision", "fp16", "-o", "t.plan")
    assert built.exit_code == 0, built.output
    found = invoke("bench", "t.plan", "--duration", "30ms", "--json", "out.json", "--layers")
    assert found.exit_code == 0, found.output
    for text in (
        "latency p99", "h2d, median", "compute, median", "d2h, median", "enqueue, median",
        "end to end, median", "contexts: 4", "emulated GPU, GFLOP/s by the datasheet",
        "989000 GFLOP/s", "GB/s", "MatMul",
    ):  # fmt: skip
        assert text in found.stdout, found.stdout
    data = json.loads(Path("out.json").read_text())
    assert (data["target"], data["machine"]) == ("cuda:sm_90", "emulated GPU")
    assert set(data["parts"]) == {"h2d", "compute", "d2h", "enqueue", "end to end"}
    assert set(data["contexts"]) == {"1", "2", "4"}
    assert all(0 < t < 1 for t in data["parts"].values())
    assert all(layer["seconds"] > 0 for layer in data["layers"])
    assert data["peak"]["gbps"] > 0


def test_bench_builds_a_model_first(invoke: Callable[..., Result], gpu: EmulatedDevice) -> None:
    gpu.arch = 120  # of which no datasheet is known
    found = invoke(
        "bench", "tiny.onnx", "--target", "cuda", "--shape", "x=4x8", "--duration", "10ms"
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "x 4x8" in found.stdout
    assert "- of the peak" in found.stdout


def test_run_takes_target_and_precision(invoke: Callable[..., Result], gpu: EmulatedDevice) -> None:
    found = invoke("run", "tiny.onnx", "--target", "cuda", "--precision", "bf16")
    assert found.exit_code == 0, found.output
    assert gpu.launches > 0
    wrong = invoke("run", "tiny.onnx", "--precision", "fp16")
    assert (wrong.exit_code, "not available on cpu" in wrong.stderr) == (1, True)


def test_copies_are_measured(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_peak, "COPY_BYTES", 1 << 16)
    handles = len(gpu._handles)
    peak = cuda_peak.cuda_peak(gpu, "fp32")
    assert 0 < peak.gbps < 1e4
    assert (peak.card, peak.gflops) == ("emulated GPU", 66.9e3)
    assert (gpu.allocated, len(gpu._handles)) == (0, handles)
