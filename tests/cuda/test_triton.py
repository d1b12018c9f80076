"""Plans with kernels in Triton: built for GPUs that aren't there, and run where there is one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from tests.cuda_emulator.device import EmulatedDevice

import enginesmith as es
from enginesmith.kernels.base import Operand, dense_strides
from enginesmith.kernels.cuda import SCRATCH
from enginesmith.kernels.matmul import triton as matmul
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.sources import why_missing
from enginesmith.plan import file
from enginesmith.plan.ptx import unpack_ptx
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.cuda_device import CudaTuningDevice

pytestmark = pytest.mark.skipif(
    why_missing("triton") is not None, reason=f"{why_missing('triton')}"
)

MODEL = """
<ir_version: 9, opset_import: ["": 18]>
chain (float[n, 32, 20, 20] x) => (float[n, 20, 20, 96] y) {
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, filters, bias)
  r = Relu (c)
  s = Conv <kernel_shape = [1, 1]> (r, narrow)
  u = Add (s, x)
  d = Conv <kernel_shape = [1, 1]> (u, filters1)
  e = Sigmoid (d)
  t = Transpose <perm = [0, 2, 3, 1]> (e)
  y = MatMul (t, classes)
}
"""
SHAPES = {
    "filters": (64, 32, 3, 3), "bias": (64,), "narrow": (32, 64, 1, 1),
    "filters1": (128, 32, 1, 1), "classes": (128, 96),
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        for name, shape in SHAPES.items()
    }


def model() -> onnx.ModelProto:
    found = parser.parse_model(MODEL)
    found.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights().items())
    return found


def reference(x: np.ndarray) -> np.ndarray:
    w = {name: array.astype(np.float64) for name, array in weights().items()}
    wide = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (2, 3))
    r = np.einsum("nchwij,ocij->nohw", windows, w["filters"]) + w["bias"][:, None, None]
    u = np.einsum("nchw,oc->nohw", np.maximum(r, 0), w["narrow"][:, :, 0, 0]) + x
    e = 1 / (1 + np.exp(-np.einsum("nchw,oc->nohw", u, w["filters1"][:, :, 0, 0])))
    return np.einsum("nchw,co->nhwo", e, w["classes"])


def build(target: str, sources: Sequence[str], cache: Path, **options: object) -> es.Engine:
    shapes = {"x": es.Profile((1, 32, 20, 20), (4, 32, 20, 20), (8, 32, 20, 20))}
    return es.build(
        model(), target=target, precision="fp16", shapes=shapes, tactic_sources=sources,
        cache=cache, **options,
    )  # fmt: skip


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_plans_hold_what_the_compiler_made(isa: str, artifact_cache: Path, tmp_path: Path) -> None:
    """Machine code, shared memory, scratch; PTX where newer GPUs can run it."""
    build(f"cuda:{isa}", ("triton",), artifact_cache).save(tmp_path / "x.plan")
    plan = file.load(tmp_path / "x.plan")
    kernels = {step.kernel for step in plan.steps if step.tactic.startswith("triton(")}
    assert len(kernels) >= 3
    for launch in plan.launches:
        if launch.kernel in kernels:
            assert launch.shared > 0
            assert launch.threads in (128, 256)
            assert launch.maps or launch.values[-SCRATCH:] == (0,) * SCRATCH
            assert "@triton.jit" in plan.sources[launch.kernel]
    assert kernels <= {module.kernel for module in plan.modules}
    if isa == "sm_80":
        assert all("target sm_80" in unpack_ptx(plan.ptx)[kernel] for kernel in kernels)
    else:
        assert not len(plan.ptx)
        assert any(f"runs on {isa} alone" in note for note in plan.notes)


def test_without_it_nothing_changes(artifact_cache: Path) -> None:
    plan = build("cuda:sm_90", ("cuda",), artifact_cache).plan
    assert not any(step.tactic.startswith("triton") for step in plan.steps)


def test_candidates_that_do_not_compile_are_left_out(
    fresh_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning; a bug of the compiler isn't the end of a build."""
    target = Target("cuda", "sm_90")
    owner = CudaTuningDevice(EmulatedDevice(), target, ArtifactCache(fresh_cache))  # type: ignore[arg-type]
    shapes = (32, 32), (32, 32), (32, 32)
    problem = MatMulProblem(tuple(Operand("float16", s, dense_strides(s)) for s in shapes))
    source = matmul.emit(problem, matmul.tactics(problem, target)[0], target)
    broken = replace(source, text=source.text.replace("tl.dot", "tl.nonsense"))
    binary = owner.compile(broken)
    assert not binary
    assert "a candidate is left out: Triton failed" in caplog.text
    (trial,) = owner.load(problem, [broken], [binary], [{}], cold=False)
    assert trial.time(time.perf_counter) == float("inf")
    owner.close()


@pytest.mark.cuda
@pytest.mark.parametrize("sources", [("triton",), ("cuda", "triton")])
def test_on_the_gpu(sources: tuple[str, ...], artifact_cache: Path) -> None:
    """Launched, then captured, then replayed, among kernels of ours that overlap with them."""
    engine = build("cuda", sources, artifact_cache)
    for run, n in enumerate((4, 4, 4, 1, 8, 4)):
        x = np.random.default_rng(run).standard_normal((n, 32, 20, 20), np.float32)
        (y,) = engine({"x": x}).values()
        expected = reference(x)
        assert np.linalg.norm(y - expected) <= 5e-3 * np.linalg.norm(expected)
