"""The command line with plans for GPUs, on the emulated one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    gpu.name = "NVIDIA H100 80GB HBM3"
    built = invoke("build", "tiny.onnx", "--target", "cuda", "--precision", "fp16", "-o", "t.plan")
    assert built.exit_code == 0, built.output
    found = invoke("bench", "t.plan", "--duration", "30ms", "--json", "out.json", "--layers")
    assert found.exit_code == 0, found.output
    for text in (
        "latency p99", "h2d, median", "compute, median", "d2h, median", "enqueue, median",
        "end to end, median", "contexts: 4", f"{gpu.name}, GFLOP/s by the datasheet",
        "989400 GFLOP/s", "GB/s", "MatMul",
    ):  # fmt: skip
        assert text in found.stdout, found.stdout
    data = json.loads(Path("out.json").read_text())
    assert (data["target"], data["machine"]) == ("cuda:sm_90", gpu.name)
    assert set(data["parts"]) == {"h2d", "compute", "d2h", "enqueue", "end to end"}
    assert set(data["contexts"]) == {"1", "2", "4"}
    assert all(0 < t < 1 for t in data["parts"].values())
    assert all(layer["seconds"] > 0 for layer in data["layers"])
    assert data["peak"]["gbps"] > 0


def test_bench_builds_a_model_first(invoke: Callable[..., Result], gpu: EmulatedDevice) -> None:
    gpu.arch = 120
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


def test_build_takes_tf32(invoke: Callable[..., Result], gpu: EmulatedDevice) -> None:
    built = invoke("build", "tiny.onnx", "--target", "cuda", "--tf32", "-o", "t.plan")
    assert built.exit_code == 0, built.output
    assert "for cuda:sm_90 tf32" in built.stdout
    assert "runs on sm_90 and" in built.stdout
    assert "cuda:sm_90 tf32" in invoke("inspect", "t.plan").stdout
    wrong = invoke("build", "tiny.onnx", "--tf32")
    assert (wrong.exit_code, "this is fp32 on cpu" in wrong.stderr) == (1, True)


def test_build_lists_what_samples_raise(invoke: Callable[..., Result]) -> None:
    np.savez("sample.npz", x=np.ones((2, 8), np.float32), w=np.full((8, 8), 0.1, np.float32))
    build = ("build", "tiny.onnx", "--target", "cuda", "-o", "t.plan", "--samples", "sample.npz")
    found = invoke(*build, "--precision", "fp16", "--tolerance", "1e-9")
    assert found.exit_code == 0, found.output
    assert "samples: " in found.stderr
    for output in (found.stdout, invoke("inspect", "t.plan").stdout):
        assert "layers raised to float32 (tolerance 1.0e-09)" in output
        assert ": float32, since alone in float16 it errs by" in output
    wrong = invoke(*build)
    assert (wrong.exit_code, "precision is 'fp32'" in wrong.stderr) == (1, True)


def test_copies_are_measured(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_peak, "COPY_BYTES", 1 << 16)
    gpu.name = "NVIDIA H100 80GB HBM3"
    handles = len(gpu._handles)
    peak = cuda_peak.cuda_peak(gpu, "fp32")
    assert 0 < peak.gbps < 1e4
    assert (peak.card, peak.gflops) == (gpu.name, pytest.approx(494.7e3 / 3))
    assert (gpu.allocated, len(gpu._handles)) == (0, handles)


@pytest.mark.parametrize(
    ("card", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "fp16", 312), ("NVIDIA A100-SXM4-80GB", "fp32", 52),
        ("NVIDIA A100 80GB PCIe", "tf32", 156), ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA L4", "fp32", 30.3), ("NVIDIA L40S", "fp16", 362),
        ("NVIDIA GeForce RTX 4090", "tf32", 82.6), ("NVIDIA B200", "fp16", 2250),
    ],
)  # fmt: skip
def test_rates_of_cards(card: str, precision: str, tera: float) -> None:
    rates = cuda_peak.rates_of(card)
    assert rates is not None
    assert rates.gflops(precision) == pytest.approx(1e3 * tera)


@pytest.mark.parametrize(
    "card",
    ["Tesla T4", "NVIDIA A10G", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L40",
     "NVIDIA A100-SXM4-40GB MIG 1g.5gb"],
)  # fmt: skip
def test_other_cards_are_not_known(card: str) -> None:
    assert cuda_peak.rates_of(card) is None


def test_tactic_sources(invoke: Callable[..., Result]) -> None:
    """They reach the build, and a wrong choice is an error that lists what there is."""
    common = ("build", "tiny.onnx", "-o", "t.plan", "--tactic-sources")
    built = invoke(*common, "cuda", "--target", "cuda")
    assert built.exit_code == 0, built.output
    wrong = invoke(*common, "cuda,cutlass", "--target", "cuda")
    assert wrong.exit_code == 1
    assert "'cutlass' is none of cuda, triton, cublaslt" in " ".join(wrong.output.split())
    cpu = invoke(*common, "cuda", "--target", "cpu")
    assert cpu.exit_code == 1
    assert "tactic_sources is a choice for GPUs" in " ".join(cpu.output.split())
