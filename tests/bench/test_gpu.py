"""The commands for GPUs, on an emulated one: their logic, never a speed."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx.parser
import pytest
from bench import gpu as compare
from bench import gpu_check, gpu_peers, gpu_trials
from click.testing import CliRunner, Result
from tests.cuda.conftest import gpu  # noqa: F401
from tests.cuda_emulator.device import EmulatedDevice

import enginesmith as es
from enginesmith.errors import DeviceError
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.base import Operand, Problem, Tactic, dense_strides
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.gather.problem import GatherProblem
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cuda
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin
from enginesmith.tuner.cuda_device import CudaTuningDevice

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
tiny (float[n, 6] x, int64[n, 2] ids) => (float[n, 2, 6] y) {
  rows = Gather (table, ids)
  axes = Constant <value_ints = [1]> ()
  one = Unsqueeze (x, axes)
  y = Add (rows, one)
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(MODEL)
    table = np.random.default_rng(0).standard_normal((1000, 6), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    path = tmp_path / "tiny.onnx"
    onnx.save(model, str(path))
    return path


def stand_in(name: str, seconds: float, wrong: str = "") -> gpu_peers.Peer:
    def start(job: gpu_peers.GpuJob) -> gpu_peers.GpuRunner:
        if wrong:
            raise RuntimeError(wrong)
        assert job.outputs == {"y": (5, 2, 6)}
        return gpu_peers.GpuRunner(name, lambda repeats, inner: [seconds] * repeats, None, 0.5)

    return gpu_peers.Peer(name, start, lambda: "")


def invoke(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.mark.usefixtures("gpu")
def test_compare_times_and_checks(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(gpu_peers.PEERS, "graph", stand_in("slow", 1000))
    monkeypatch.setitem(gpu_peers.PEERS, "compile", stand_in("broken", 1, "no compiler"))
    monkeypatch.setattr(compare, "SLICE", 1e-4)
    found = invoke(
        compare.main, "--models", str(file), "--batches", "5", "--rounds", "2", "--seconds", "1e-4",
        "--folder", str(tmp_path), "--date", "2026-01-02", "--budget", "0",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "without ONNX Runtime: this ONNX Runtime has no CUDA provider" in found.output
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert (data["machine"]["gpu"], data["machine"]["date"]) == ("emulated GPU", "2026-01-02")
    (entry,) = data["models"]
    assert entry["batch"] == 5
    assert set(entry["latency"]) == {"Enginesmith", "slow"}
    assert entry["failed"] == {"broken": "RuntimeError: no compiler"}
    assert entry["ratio"]["median"] > 1
    assert (entry["checked"], len(entry["rounds"])) == (4, 2)
    assert 0 < entry["error"]["Enginesmith"] < 1e-3  # fp16: not the reference's own
    pytest.importorskip("matplotlib")
    found = invoke(compare.main, "--chart", "gpu", "--folder", str(tmp_path))
    assert found.exit_code == 0, found.output
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [compare.main, gpu_check.main])
def test_without_a_gpu(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line, an exit code of its own, and no file."""

    def missing(ordinal: int = 0) -> EmulatedDevice:
        raise DeviceError("no NVIDIA driver is installed; install one")

    monkeypatch.setattr(cuda, "cuda_device", missing)
    found = invoke(command, "--folder", str(tmp_path))
    assert found.exit_code == 2
    assert found.output == "Error: no NVIDIA driver is installed; install one\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("gpu")
def test_compare_says_what_it_left_out(file: Path, tmp_path: Path) -> None:
    arguments = ["--models", str(file), "--peers", "", "--time-limit", "-1"]
    found = invoke(compare.main, *arguments, "--folder", str(tmp_path))
    assert found.exit_code == 1
    assert "not measured" in found.output


def test_models_with_batches_of_their_own() -> None:
    assert compare.cases_of("a,b:64,c.onnx", "1,8") == [
        ("a", 1), ("a", 8), ("b", 64), ("c.onnx", 1), ("c.onnx", 8),
    ]  # fmt: skip
    for wrong in ("a:x", "a:0", "a:"):
        with pytest.raises(click.UsageError, match="is no batch size"):
            compare.cases_of(wrong, "1")


def test_peers_by_name_and_group() -> None:
    names = [peer.name for peer in gpu_peers.chosen("ort,torch,graph")]
    assert names == ["ONNX Runtime", "PyTorch + CUDA graph", "torch.compile"]
    with pytest.raises(LookupError, match="compiled-graph"):
        gpu_peers.chosen("tensorrt")


def test_limited_ends_what_takes_too_long() -> None:
    with pytest.raises(TimeoutError, match="within"), gpu_peers.limited(0.01):
        time.sleep(5)
    with gpu_peers.limited(0.01):
        pass
    time.sleep(0.02)  # the alarm is off again


def test_gpu_times_of_inferences_back_to_back(file: Path, gpu: EmulatedDevice) -> None:  # noqa: F811
    engine = es.build(str(file), target="cuda", tuning=False)
    feeds = {"x": np.ones((1, 6), np.float32), "ids": np.ones((1, 2), np.int64)}
    context: Any = engine.context()
    context.execute(feeds)
    before = gpu.replays
    times = context.gpu_times(feeds, 3, inner=4)
    assert len(times) == 3
    assert gpu.replays - before >= 12


def check(file: Path, folder: Path, *more: str) -> tuple[Result, dict[str, Any]]:
    arguments = ["--models", str(file), "--batch", "3", "--folder", str(folder), *more]
    found = invoke(gpu_check.main, *arguments)
    return found, json.loads((folder / "gpu_check.json").read_text())


@pytest.mark.usefixtures("gpu")
def test_check_finds_nothing_wrong(file: Path, tmp_path: Path) -> None:
    found, data = check(file, tmp_path)
    assert found.exit_code == 0, found.output
    assert {c["family"] for c in data["cases"]} == {o["family"] for o in data["outcomes"]}
    assert all(o["seconds"] > 0 for o in data["outcomes"])
    assert "candidates" in found.output


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("if (threadIdx.x == 1) return;", "elements left out"),
        ("if (threadIdx.x == 0) ((char *)P)[-64] = 0;", "writes outside of the output"),
        ("syntax error", ""),
    ],
)
def test_check_finds_a_wrong_kernel(
    file: Path, tmp_path: Path, fault: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = FAMILIES["cuda"]["gather"]
    right = gather.emit

    def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
        source: CudaSource = right(problem, tactic, target)
        if tactic != gather.tactics(problem, target)[0]:
            return source
        wrong = fault.replace("P", f"p{len(problem.operands) - 1}")
        text = source.text.replace("grid_wait();", f"grid_wait(); {wrong}")
        assert text != source.text
        return dataclasses.replace(source, text=text)

    monkeypatch.setattr(gather, "emit", emit)
    found, data = check(file, tmp_path, "--only", "gather")
    assert found.exit_code == 1, found.output
    wrong = [o["problem"] for o in data["outcomes"] if o["problem"]]
    assert len(wrong) == 1
    assert verdict in wrong[0]
    assert "1 of" in found.output


def test_check_names_who_broke_the_gpu(
    file: Path, tmp_path: Path, gpu: EmulatedDevice  # noqa: F811
) -> None:  # fmt: skip
    gpu.fail_next["replay"] = DeviceError("an illegal address", usable=False)
    found, data = check(file, tmp_path)
    assert found.exit_code == gpu_check.SICK
    assert data["culprit"].startswith("gather#")
    assert "an illegal address" in data["reason"]
    assert "can't be used after gather#" in found.output.replace("\n", " ")


def test_isolated_families_go_on_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple[str, ...]]] = []

    def child(family: str, *rest: Any) -> gpu_check.Findings:
        calls.append((family, tuple(rest[3])))
        right = gpu_check.Outcome(family, 0, "fine()", 1e-6)
        if family == "conv" and not rest[3]:
            return gpu_check.Findings([right], "conv#0/bad()", "an illegal address")
        return gpu_check.Findings([right, dataclasses.replace(right, tactic="more()")])

    monkeypatch.setattr(gpu_check, "_child", child)
    problem = Problem((Operand("float32", (1,), (1,)),))
    cases = [gpu_trials.Case(family, problem, {}, 1, "") for family in ("conv", "pool")]
    limits, console = gpu_check.Limits(), gpu_check.display.console()
    found = gpu_check.run_isolated(cases, dict(enumerate(cases)), limits, console)
    assert calls == [("conv", ()), ("conv", ("conv#0/bad()",)), ("pool", ())]
    assert [(o.tactic, bool(o.problem)) for o in found.outcomes] == [
        ("fine()", False), ("more()", False), ("bad()", True), ("fine()", False), ("more()", False),
    ]  # fmt: skip


def test_watchdog_calls_for_help() -> None:
    called: list[str] = []
    watchdog = gpu_check.Watchdog(0.05, called.append)
    watchdog.expect("quick")
    watchdog.rest()
    watchdog.expect("slow")
    for _ in range(100):
        if called:
            break
        time.sleep(0.02)
    assert called == ["slow"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_comparison_counts(dtype: str, tmp_path: Path) -> None:
    operand = Operand(dtype, (40,), dense_strides((40,)))
    owner = CudaTuningDevice(cuda.cuda_device(), Target("cuda", "sm_90"), ArtifactCache(tmp_path))
    case = gpu_trials.Case("pointwise", Problem((operand,)), {}, 1, "")
    bench = gpu_trials.Bench(owner, case)
    want = np.full((48, np.dtype(dtype).itemsize), 255, np.uint8)
    got = want.copy()
    values = (np.arange(40) % 2).astype(dtype).view(np.uint8).reshape(40, -1)
    want[:40], got[:40] = values, values
    got[4] = np.array([1], dtype).view(np.uint8)  # was 0
    got[5] = 255
    got[44] = 0
    sums = bench._sums(dtype, owner.upload(got.ravel()), owner.upload(want.ravel()))
    assert sums[:, :2].sum(0).tolist() == [1, 19]
    assert sums[:, 2:4].max(0).tolist() == [1, 1]
    assert sums[:, 4:].sum(0).tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_comparison_is_cuda(dtype: str, tmp_path: Path) -> None:
    target = Target("cuda", "sm_90")
    code = gpu_trials.comparison(dtype).code
    assert compile_cubin(code, target, ArtifactCache(tmp_path)).startswith(b"\x7fELF")


@pytest.mark.parametrize(("kind", "bound"), [("gather", 7), ("gather_nd", 5)])
def test_indices_are_within_range(kind: str, bound: int) -> None:
    shapes = ((5, 7), (4, 2), (4, 2, 2))
    kinds = ("float16", "int64", "float16")
    operands = tuple(
        Operand(d, s, dense_strides(s)) for d, s in zip(kinds, shapes, strict=True)
    )  # fmt: skip
    problem = GatherProblem(operands, kind=kind, axis=1)
    found = gpu_trials.random_elements(problem, 1)
    assert (found.min(), found.max()) == (0, bound - 1)


@pytest.mark.parametrize("name", ["unet", "dlrm"])
def test_torch_modules_are_like_the_graphs(name: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from bench import gpu_models, zoo

    model = zoo.load(name)
    feeds = zoo.feeds(name, model, 2)
    module = gpu_models.build(name, "fp32", "cpu")
    with torch.inference_mode():
        shape = tuple(module(*map(torch.from_numpy, feeds.values())).shape)
    assert [shape] == [a.shape for a in compare.reference(model, feeds).values()]
