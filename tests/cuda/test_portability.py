"""Plans for GPUs on other GPUs than they were built for or on: PTX, tuning, and what is refused."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from tests.cuda.test_engine import error
from tests.cuda_emulator.device import EmulatedDevice

import enginesmith as es
from enginesmith import builder
from enginesmith.cli import doctor
from enginesmith.errors import BuildError, DeviceError, PlanError
from enginesmith.plan.plan import Plan
from enginesmith.plan.ptx import pack_ptx, unpack_ptx
from enginesmith.plan.target import ARCHITECTURES
from enginesmith.planner import assemble_cuda
from enginesmith.runtime.devices import cuda
from enginesmith.tuner import cuda_device as tuning_device
from enginesmith.tuner import tune as tuning

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
tiny (float[n, 32] x) => (float[n, 24] y) {
  s = Sigmoid (x)
  y = MatMul (s, w)
}
"""
W = np.random.default_rng(0).standard_normal((32, 24), np.float32) / 6
X = np.random.default_rng(1).standard_normal((5, 32), np.float32)
WANTED = 1 / (1 + np.exp(-X.astype(np.float64))) @ W


def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    return proto


def build(target: str = "cuda", **options: Any) -> es.Engine:
    return es.build(model(), target=target, **({"tuning": False} | options))


@pytest.fixture
def modules(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the GPU was given to load."""
    loaded: list[bytes] = []
    load = gpu.module

    def module(code: bytes) -> int:
        loaded.append(code)
        return load(code)

    monkeypatch.setattr(gpu, "module", module)
    return loaded


# -- PTX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("built", "arch"), [(80, 86), (80, 90), (86, 87), (90, 100), (90, 121)])
def test_a_newer_gpu_runs_the_ptx(
    gpu: EmulatedDevice, modules: list[bytes], tmp_path: Path, built: int, arch: int
) -> None:
    engine = build(f"cuda:sm_{built}")
    assert f"runs on sm_{built} and, compiled anew" in "".join(engine.plan.notes)
    engine.save(tmp_path / "tiny.plan")
    gpu.arch = arch
    loaded = es.load(tmp_path / "tiny.plan")
    assert error(loaded(X)["y"], WANTED) < 2e-6
    assert len(modules) == len(loaded.plan.modules)
    assert all(code.startswith(b"// PTX\n") and code.endswith(b"\0") for code in modules)
    note = f"on this GPU (emulated GPU, sm_{arch}) the driver compiles the plan's PTX"
    assert loaded.report.count(note) == 1
    assert f"made and chosen for cuda:sm_{built}" in loaded.report


def test_its_own_gpu_runs_the_machine_code(gpu: EmulatedDevice, modules: list[bytes]) -> None:
    engine = build()
    engine(X)
    assert modules and not any(code.startswith(b"// PTX") for code in modules)
    assert "this GPU" not in engine.report


def test_older_code_never_overlaps(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """It doesn't wait for its predecessors, though the GPU would let it start early."""
    launch, overlaps = gpu.launch, []

    def spy(*arguments: Any) -> None:
        overlaps.append(arguments[-1])
        launch(*arguments)

    monkeypatch.setattr(gpu, "launch", spy)
    build("cuda:sm_80")(X)
    assert overlaps and not any(overlaps)
    overlaps.clear()
    build("cuda:sm_90")(X)
    assert any(overlaps)


def test_an_older_gpu_is_refused(gpu: EmulatedDevice, tmp_path: Path) -> None:
    engine = build("cuda:sm_100")
    engine.save(tmp_path / "tiny.plan")
    wrong = r"built for cuda:sm_100.*emulated GPU.*is sm_90, which is older.*target='cuda:sm_90'"
    for run in (lambda: engine(X), lambda: es.load(tmp_path / "tiny.plan")):
        with pytest.raises(PlanError, match=wrong):
            run()
    gpu.arch = 75
    with pytest.raises(PlanError, match=r"is sm_75.*older than sm_80.*target='cpu'"):
        engine(X)


def test_kernels_of_one_architecture_alone(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble_cuda, "runs_on_newer", lambda text, target: "sigmoid" in text)
    plan = build().plan
    assert not len(plan.ptx)
    assert any("runs on sm_90 alone: " in note for note in plan.notes)
    gpu.arch = 100
    wrong = r"is sm_100, for which the plan has no PTX.*sm_90 alone has.*target='cuda:sm_100'"
    with pytest.raises(PlanError, match=wrong):
        es.Engine(plan)


def test_shared_memory_that_a_gpu_lacks(gpu: EmulatedDevice) -> None:
    plan = build("cuda:sm_80").plan
    launches = tuple(replace(launch, shared=150 << 10) for launch in plan.launches)
    gpu.arch, gpu.shared_limit = 89, 99 << 10
    with pytest.raises(PlanError, match=r"99 KiB of shared memory.*up to 150\).*cuda:sm_89"):
        es.Engine(replace(plan, launches=launches))
    assert es.Engine(plan)(X)["y"].shape == (5, 24)


def test_ptx_that_is_damaged(gpu: EmulatedDevice) -> None:
    plan = build("cuda:sm_80").plan
    texts = unpack_ptx(plan.ptx)
    assert texts.keys() == {module.kernel for module in plan.modules}
    first, *others = texts
    cut = pack_ptx({name: texts[name] for name in others})
    numbers = zlib.compress(b'{"k":1}')
    for ptx, what in ((cut, first), (b"no", ""), (bytes(plan.ptx)[:-20], ""), (numbers, "")):
        with pytest.raises(PlanError, match=rf"damaged.*{what}.*build .* again"):
            es.Engine(replace(plan, ptx=ptx))(X)


def test_a_target_that_is_none_of_a_gpu(gpu: EmulatedDevice) -> None:
    plan = build().plan
    for target in ("cuda:sm_", "cuda:sm_9x", "cuda:avx2"):
        with pytest.raises(PlanError, match=f"damaged: its target is '{target}'"):
            es.Engine(replace(plan, target=target))


# -- building for the GPU of this machine ---------------------------------------------------------


def test_gpus_that_are_not_known_are_named(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "cuda_device", lambda ordinal=0: gpu)
    for arch, remedy in ((87, "cuda:sm_86"), (103, "cuda:sm_100"), (75, "cpu")):
        gpu.arch = arch
        with pytest.raises(BuildError, match=rf"\(emulated GPU\) is sm_{arch}.*target='{remedy}'"):
            build()
        text = " ".join(f"{found.text} {found.remedy}" for found in doctor.gpu())
        assert f"emulated GPU is sm_{arch}" in text and f"target='{remedy}'" in text
    gpu.arch = 87
    assert error(build("cuda:sm_86")(X)["y"], WANTED) < 2e-6


# -- tuning ---------------------------------------------------------------------------------------


@pytest.fixture
def two_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated kernels are slow: two candidates of each problem, run twice."""
    every = tuning.candidates
    monkeypatch.setattr(tuning, "candidates", lambda *problem: every(*problem)[:2])
    monkeypatch.setattr(tuning_device, "RUNS", 2)
    monkeypatch.setattr(tuning, "SLICE", 0.0)


def same(a: Plan, b: Plan) -> bool:
    return replace(a, weights=bytes(a.weights)) == replace(b, weights=bytes(b.weights))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_tuned_where_the_gpu_is(
    gpu: EmulatedDevice, two_candidates: None, fresh_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, precision: str,
) -> None:  # fmt: skip
    def missing(ordinal: int = 0) -> EmulatedDevice:
        raise DeviceError("no NVIDIA driver is installed")

    with monkeypatch.context() as elsewhere:
        for module in (cuda, builder):
            elsewhere.setattr(module, "cuda_device", missing)
        elsewhere.setattr(builder, "host_architecture", lambda: None)
        plain = build("cuda:sm_90", precision=precision, tuning=True)
        assert "(built without a GPU of sm_90)" in plain.report
        plain.save(tmp_path / "tiny.plan")
        with pytest.raises(DeviceError, match="no NVIDIA driver"):
            es.tune(tmp_path / "tiny.plan")
    tuned = es.tune(tmp_path / "tiny.plan")
    assert any(step.timings for step in tuned.plan.steps)
    assert same(tuned.plan, build("cuda", precision=precision, tuning=True).plan)
    assert error(tuned(X)["y"], WANTED) < {"fp32": 2e-6, "fp16": 3e-3, "bf16": 2e-2}[precision]


def test_tuning_on_another_gpu_is_refused(gpu: EmulatedDevice) -> None:
    plan = build("cuda:sm_80").plan
    wrong = (
        r"built for cuda:sm_80, and this GPU \(emulated GPU\) is sm_90; tune it where it will run, "
        r"or build the model again with target='cuda:sm_90'"
    )
    with pytest.raises(BuildError, match=wrong):
        es.tune(plan)


# -- TF32 -----------------------------------------------------------------------------------------


MANY = {"x": (64, 32)}
"""Fewer rows are multiplied by a kernel without tensor cores."""


def many_rows() -> tuple[np.ndarray, np.ndarray]:
    """An input of so many rows, and its output."""
    x = np.random.default_rng(2).standard_normal(MANY["x"], np.float32)
    return x, 1 / (1 + np.exp(-x.astype(np.float64))) @ W


def test_tf32_is_kept_when_tuning(
    gpu: EmulatedDevice, two_candidates: None, fresh_cache: Path
) -> None:
    x, wanted = many_rows()
    exact, rounded = build(shapes=MANY), build(shapes=MANY, tf32=True)
    assert (exact.plan.precision, rounded.plan.precision) == ("fp32", "tf32")
    assert "cuda:sm_90, tf32" in rounded.report
    assert error(exact(x)["y"], wanted) < 2e-6
    assert 1e-5 < error(rounded(x)["y"], wanted) < 3e-3
    tuned = es.tune(rounded)
    assert same(tuned.plan, build(shapes=MANY, tf32=True, tuning=True).plan)
    kernels = {step.kernel for step in tuned.plan.steps if step.op == "matmul"}
    assert any("round_tf32(x[now][i]);" in tuned.plan.sources[name] for name in kernels)


@pytest.mark.parametrize(("target", "precision"), [("cuda", "fp16"), ("cpu", "fp32")])
def test_tf32_is_for_fp32_on_gpus(gpu: EmulatedDevice, target: str, precision: str) -> None:
    with pytest.raises(BuildError, match=f"tf32=True.*this is {precision} on {target}"):
        build(target, precision=precision, tf32=True)


# -- on a real GPU --------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_the_driver_compiles_ptx(isa: str, precision: str) -> None:
    gpu = cuda.cuda_device()
    if int(isa.removeprefix("sm_")) >= gpu.arch:
        pytest.skip(f"this GPU is sm_{gpu.arch}")
    engine = build(f"cuda:{isa}", precision=precision)
    assert error(engine(X)["y"], WANTED) < {"fp32": 2e-6, "fp16": 3e-3}[precision]
    assert "the driver compiles the plan's PTX" in engine.report


@pytest.mark.cuda
def test_tuning_on_a_real_gpu(fresh_cache: Path) -> None:
    tuned = es.tune(build(precision="fp16"))
    assert any(len(step.timings) > 1 for step in tuned.plan.steps)
    assert same(tuned.plan, build(precision="fp16", tuning=True).plan)
    assert error(tuned(X)["y"], WANTED) < 3e-3


@pytest.mark.cuda
def test_tf32_on_a_real_gpu() -> None:
    x, wanted = many_rows()
    assert error(build(shapes=MANY)(x)["y"], wanted) < 2e-6
    assert 1e-5 < error(build(shapes=MANY, tf32=True)(x)["y"], wanted) < 3e-3
