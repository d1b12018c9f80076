"""cuDNN as a source of tactics: tuning, plans, loading elsewhere, failures, on the emulated GPU
with a stand-in for the library; what it shares with cuBLASLt is tested in test_cublaslt.py."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from tests.cuda.test_engine import error
from tests.cuda.test_engine import expected as onnx_runtime
from tests.cuda_emulator.cudnn import FakeCudnn
from tests.cuda_emulator.device import EmulatedDevice
from tests.threads import side_by_side

import enginesmith as es
from enginesmith.cli.inspect import inspect
from enginesmith.errors import BuildError, DeviceError, PlanError
from enginesmith.kernels import sources
from enginesmith.plan import file
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cudnn

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
block (float[n, 16, h, w] x) => (float[n, 16, h, w] y) {
  p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
  a = Conv <pads = [1, 1, 1, 1]> (p, first, shift)
  r = Relu (a)
  m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)
  b = Conv <pads = [1, 1, 1, 1]> (m, second)
  s = Add (b, p)
  t = Relu (s)
  y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t)
}
"""


def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in {"first": (24, 16, 3, 3), "shift": (24,), "second": (16, 24, 3, 3)}.items():
        data = rng.standard_normal(shape, np.float32) / 6
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return proto


def build(**options: Any) -> es.Engine:
    shapes = {"x": es.Profile(min=(0, 16, 3, 3), opt=(2, 16, 6, 5), max=(4, 16, 9, 9))}
    defaults = {"target": "cuda", "shapes": shapes, "tactic_sources": ("cudnn",)}
    return es.build(model(), **(defaults | options))


def check(engine: es.Engine, size: tuple[int, int, int] = (2, 6, 5), bound: float = 1e-6) -> None:
    n, h, w = size
    x = np.random.default_rng(n * h).standard_normal((n, 16, h, w), np.float32)
    got = engine(x)["y"]
    assert got.shape == x.shape
    if n:
        assert error(got, onnx_runtime(model(), {"x": x})[0]) < bound


@pytest.fixture
def library(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> FakeCudnn:
    """The emulated GPU has the library."""
    made = FakeCudnn(gpu)
    monkeypatch.setattr(cudnn, "library", lambda: made)
    return made


def missing() -> Any:
    raise DeviceError(f"cuDNN is not installed (no such file); {cudnn.INSTALL}")


def test_without_the_library_it_offers_nothing(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn, "library", missing)
    assert sources.why_missing("cudnn") is not None
    with pytest.raises(BuildError, match=r"cuDNN is not installed .*enginesmith\[cudnn\]"):
        build()


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_a_plan_of_its_calls(
    library: FakeCudnn, tmp_path: Path, precision: str, bound: float
) -> None:
    engine = build(precision=precision, tuning=False)
    plan = engine.plan
    assert [str(s.tactic) for s in plan.steps if s.op == "conv"] == ["cudnn(algo=0)"] * 2
    first, second = plan.calls
    assert [len(call.operands) for call in plan.calls] == [4, 4]
    assert (first.algorithm, first.library, first.reserved) == ("7:2=1,9=0", 91300, 4096)
    assert [len(call.operation.added) for call in (first, second)] == [1, 1]  # type: ignore[union-attr]
    engine.save(tmp_path / "plan")
    loaded = es.load(tmp_path / "plan")
    assert loaded.plan == replace(plan, weights=loaded.plan.weights)
    for size in [(2, 6, 5)] * 3 + [(1, 3, 9), (0, 3, 3), (4, 9, 9)]:
        check(loaded, size, bound)
    assert "chose other" not in loaded.report


def test_tuning_times_its_engines_like_kernels(library: FakeCudnn, tmp_path: Path) -> None:
    engine = build(tactic_sources=("cuda", "cudnn"), cache=tmp_path)
    timed = next([name for name, _ in s.timings] for s in engine.plan.steps if s.op == "conv")
    for k in range(5):  # three of the library's four are precise
        assert (f"cudnn(algo={k})" in timed) == (k < 3)
    assert any(not name.startswith("cudnn") for name in timed)
    check(engine)
    alone = build(cache=tmp_path)
    assert len(alone.plan.calls) == 2
    check(alone)


def test_it_must_be_asked_for(library: FakeCudnn) -> None:
    for isa in ("sm_80", "sm_90"):
        assert "cudnn" not in sources.chosen(None, Target("cuda", isa))


def test_another_version_of_the_library(library: FakeCudnn, tmp_path: Path) -> None:
    build(tuning=False).save(tmp_path / "plan")
    library.version = 91402
    library.device._cudnn = None
    loaded = es.load(tmp_path / "plan")
    check(loaded)
    text = "2 calls of cuDNN were timed for version 9.13.0, and this machine has 9.14.2"
    assert text in loaded.report


def test_loading_without_the_library(
    library: FakeCudnn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tuning=False).save(tmp_path / "plan")
    library.device._cudnn = None
    monkeypatch.setattr(cudnn, "library", missing)
    with pytest.raises(DeviceError, match=r"2 of the plan's \d+ steps call cuDNN: .*\[cudnn\]"):
        es.load(tmp_path / "plan")


def test_a_failing_call_is_reported(library: FakeCudnn) -> None:
    engine = build(tuning=False)
    for name in ("cudnnBackendExecute", "cudnnBackendCreateDescriptor"):
        library.fail_next[name] = 5000
        with pytest.raises(DeviceError, match=f"{name} failed"):
            engine(np.ones((1, 16, 4, 4), np.float32))
        check(engine)


def test_an_engine_that_does_not_serve_here(library: FakeCudnn, tmp_path: Path) -> None:
    """Such as one from a damaged plan: the library is asked again."""
    engine = build(tuning=False)
    call = replace(engine.plan.calls[0], algorithm="99:")
    file.save(replace(engine.plan, calls=(call, engine.plan.calls[1])), tmp_path / "plan")
    loaded = es.load(tmp_path / "plan")
    check(loaded)
    text = f"for sizes not tuned for, cuDNN chose other algorithms (steps {call.step})"
    assert text in loaded.report


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"algorithm": "7:2=1,"}, "no valid algorithm"),
        ({"algorithm": "00" * 64}, "no valid algorithm"),
        ({"operands": ()}, "lacks an operand"),
        ({"strides": (0, 1)}, "impossible pads"),
        ({"activation": "exec"}, "unknown activation"),
    ],
)
def test_damaged_calls(
    library: FakeCudnn, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    plan = build(tuning=False).plan
    call = plan.calls[0]
    if change.keys() <= {"algorithm", "operands"}:
        call = replace(call, **change)
    else:
        call = replace(call, operation=replace(call.operation, **change))
    file.save(replace(plan, calls=(call, *plan.calls[1:])), tmp_path / "plan")
    with pytest.raises(PlanError, match=reason):
        es.load(tmp_path / "plan")


def test_inspect_shows_a_call(library: FakeCudnn, tmp_path: Path) -> None:
    engine = build(tuning=False)
    engine.save(tmp_path / "plan")
    step = engine.plan.calls[0].step
    found = CliRunner().invoke(inspect, [str(tmp_path / "plan"), "--source", str(step)])
    assert found.exit_code == 0, found.output
    assert "y = relu(conv(x, w) + added[0])" in found.output


def test_descriptors_live_as_long_as_their_engine(library: FakeCudnn) -> None:
    engine = build(tuning=False)
    for size in [(1, 4, 4), (2, 6, 5), (1, 4, 4)]:
        check(engine, size)
    assert library.alive
    engine.close()
    del engine
    gc.collect()
    assert not library.alive


def test_threads_share_one_handle(library: FakeCudnn) -> None:
    """Each on a stream of its own, which is set for each call."""
    engine = build(tuning=False)

    def work(i: int) -> None:
        for _ in range(5):
            check(engine, (i + 1, 4, 5))

    assert not side_by_side(work, 4)
    assert library.handles == 1
