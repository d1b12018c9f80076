"""cuBLASLt as a source of tactics: tuning, plans, loading elsewhere, failures, on the emulated GPU
with a stand-in for the library."""

from __future__ import annotations

import gc
import threading
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
from tests.cuda_emulator.cublas import FakeCublasLt
from tests.cuda_emulator.device import EmulatedDevice

import enginesmith as es
from enginesmith.cli.inspect import inspect
from enginesmith.errors import BuildError, DeviceError, PlanError
from enginesmith.kernels import sources
from enginesmith.plan import file
from enginesmith.plan.plan import Plan
from enginesmith.runtime.devices import cublas

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
two (float[n, 24] x) => (float[n, 16] y) {
  q = Softmax (x)
  a = Gemm (q, first, bias)
  r = Relu (a)
  s = Softmax (r)
  y = MatMul (s, second)
}
"""


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"first": (24, 32), "bias": (32,), "second": (32, 16)}
    return {name: rng.standard_normal(s, np.float32) / 5 for name, s in shapes.items()}


def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(MODEL)
    for name, data in weights().items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return proto


def expected(x: np.ndarray) -> np.ndarray:
    w = {name: data.astype(np.float64) for name, data in weights().items()}
    return softmax(np.maximum(softmax(x) @ w["first"] + w["bias"], 0)) @ w["second"]


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x)
    return powers / powers.sum(1, keepdims=True)


def feed(n: int = 8) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 24), np.float32)


def build(**options: Any) -> es.Engine:
    shapes = {"x": es.Profile(min=(0, 24), opt=(8, 24), max=(64, 24))}
    defaults = {"target": "cuda", "shapes": shapes, "tactic_sources": ("cublaslt",)}
    return es.build(model(), **(defaults | options))


def check(engine: es.Engine, n: int = 8, bound: float = 1e-6) -> None:
    x = feed(n)
    got = engine(x)["y"]
    assert got.shape == (n, 16)
    assert error(got, expected(x)) < bound


@pytest.fixture
def library(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> FakeCublasLt:
    """The emulated GPU has the library."""
    made = FakeCublasLt(gpu)
    monkeypatch.setattr(cublas, "library", lambda: made)
    return made


def missing() -> Any:
    raise DeviceError(f"cuBLASLt is not installed (no such file); {cublas.INSTALL}")


def test_without_the_library_it_offers_nothing(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cublas, "library", missing)
    assert sources.why_missing("cublaslt") is not None
    with pytest.raises(BuildError, match=r"cuBLASLt is not installed .*enginesmith\[cublaslt\]"):
        build()


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_a_plan_of_its_calls(
    library: FakeCublasLt, tmp_path: Path, precision: str, bound: float
) -> None:
    engine = build(precision=precision, tuning=False)
    plan = engine.plan
    first, second = plan.calls
    assert [step.op for step in plan.steps] == ["softmax", "matmul"] * 2
    assert (first.step, second.step) == (1, 3)
    assert (first.operation.activation, first.operation.biased) == ("relu", True)
    assert (first.library, first.reserved) == (130100, 4096)
    assert str(plan.steps[1].tactic) == "cublaslt(algo=0)"
    assert "bias" in plan.sources[plan.steps[1].kernel]
    assert len(plan.modules) == 2
    engine.save(tmp_path / "two.plan")
    loaded = es.load(tmp_path / "two.plan")
    assert loaded.plan == replace(plan, weights=loaded.plan.weights)
    for _ in range(3):
        check(loaded, bound=bound)
    assert not loaded._gpu or not loaded._gpu.notes


BLOCK = """
<ir_version: 8, opset_import: ["" : 18]>
block (float[n, 16, h, w] x) => (float[n, 16, h, w] y) {
  p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
  a = Conv (p, narrow, shift)
  r = Relu (a)
  m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)
  b = Conv (m, wide)
  s = Add (b, p)
  t = Relu (s)
  y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t)
}
"""


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("fp16", 3e-3)])
def test_convolutions_by_one_pixel(library: FakeCublasLt, precision: str, bound: float) -> None:
    proto = onnx.parser.parse_model(BLOCK)
    rng = np.random.default_rng(0)
    for name, shape in {"narrow": (8, 16, 1, 1), "shift": (8,), "wide": (16, 8, 1, 1)}.items():
        data = rng.standard_normal(shape, np.float32) / 3
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    engine = es.build(
        proto, target="cuda", precision=precision, tactic_sources=("cublaslt",), tuning=False
    )
    served = [str(s.tactic) for s in engine.plan.steps if s.op == "conv"]
    assert served == ["cublaslt(algo=0)"] * 2
    assert [call.operation.added for call in engine.plan.calls] == [False, True]
    for n, h, w in [(2, 5, 3), (1, 4, 4), (1, 4, 4), (0, 4, 4)]:
        x = rng.standard_normal((n, 16, h, w), np.float32)
        got = engine(x)["y"]
        assert got.shape == x.shape
        if n:
            assert error(got, onnx_runtime(proto, {"x": x})[0]) < bound


def test_same_bytes_again(library: FakeCublasLt, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(cache=tmp_path / "cache").save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tuning_times_its_algorithms_like_kernels(library: FakeCublasLt, tmp_path: Path) -> None:
    engine = build(tactic_sources=("cuda", "cublaslt"), cache=tmp_path)
    timed = [name for name, _ in engine.plan.steps[1].timings]
    for k in range(5):  # the library knows three
        assert (f"cublaslt(algo={k})" in timed) == (k < 3)
    assert any(not name.startswith("cublaslt") for name in timed)
    assert len(engine.plan.calls) == 2, "numpy is faster than the emulator"
    assert library.calls > 5 * 8
    engine.save(tmp_path / "plan")
    check(es.load(tmp_path / "plan"))
    done = library.calls
    build(tactic_sources=("cuda", "cublaslt"), cache=tmp_path)
    assert library.calls == done, "timings are kept"
    library.version = 130200
    library.device._cublas = None
    build(tactic_sources=("cuda", "cublaslt"), cache=tmp_path)
    assert library.calls > done, "another library is timed anew"


def test_it_is_a_source_where_the_library_is(library: FakeCublasLt) -> None:
    assert sources.why_missing("cublaslt") is None
    engine = build(tactic_sources=("cuda", "cublaslt"), tuning=False)
    assert not engine.plan.calls, "our own come first where nothing is timed"


def test_tuning_a_plan_that_was_built_untuned(library: FakeCublasLt, tmp_path: Path) -> None:
    untuned = build(tactic_sources=("cuda",), tuning=False)
    assert not untuned.plan.calls
    tuned = es.tune(untuned, tactic_sources=("cuda", "cublaslt"), cache=tmp_path)
    assert len(tuned.plan.calls) == 2
    check(tuned)


def test_inspect_shows_a_call(library: FakeCublasLt, tmp_path: Path) -> None:
    build(tuning=False).save(tmp_path / "plan")
    for arguments in ([], ["--source", "1"]):
        found = CliRunner().invoke(inspect, [str(tmp_path / "plan"), *arguments])
        assert found.exit_code == 0, found.output
        assert "cublasLtMatmul, algorithm 0" in found.output or not arguments
    assert "relu(1 * op(a) @ op(b) + bias)" in found.output


def test_graphs_and_overlap(library: FakeCublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are captured in their place; kernels next to them don't overlap with them."""
    gpu, order = library.device, list[str]()
    launch, matmul = gpu.launch, library.cublasLtMatmul

    def watch_launch(*arguments: Any) -> None:
        order.append("overlapping kernel" if arguments[-1] else "kernel")
        launch(*arguments)

    def watch_call(*arguments: Any) -> int:
        order.append("call")
        return matmul(*arguments)

    engine = build(tuning=False)
    monkeypatch.setattr(gpu, "launch", watch_launch)
    library.cublasLtMatmul = watch_call  # type: ignore[method-assign]
    for _ in range(4):
        check(engine)
    assert order == ["kernel", "call"] * 4
    assert (gpu.captures, gpu.replays, library.calls) == (1, 3, 2 * 4)


def test_profiles_have_a_time_for_each_step(library: FakeCublasLt) -> None:
    context = build(tuning=False).context()
    times = context.profile({"x": feed()})
    assert len(times) == 4


def test_sizes_that_the_algorithm_does_not_serve(library: FakeCublasLt) -> None:
    engine = build(tuning=False)
    check(engine, 8)
    assert "chose other" not in engine.report
    check(engine, 5)
    check(engine, 16)
    check(engine, 0)
    assert "for sizes not tuned for, cuBLASLt chose other algorithms (steps 1, 3)" in engine.report


def test_another_version_of_the_library(
    library: FakeCublasLt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tuning=False).save(tmp_path / "plan")
    library.version = 130102
    library.device._cublas = None
    loaded = es.load(tmp_path / "plan")
    check(loaded)
    text = "timed for version 13.1.0, and this machine has 13.1.2: the library chose others"
    assert text in loaded.report
    assert text in caplog.text


def test_another_gpu(library: FakeCublasLt, tmp_path: Path) -> None:
    """Kernels run from PTX on a newer one, and the library chooses for it."""
    gpu = library.device
    gpu.arch = 80
    build(tuning=False).save(tmp_path / "plan")
    gpu.arch = 90
    loaded = es.load(tmp_path / "plan")
    check(loaded)
    assert "timed for a GPU of sm_80, and this one is sm_90: the library chose" in loaded.report


def test_loading_without_the_library(
    library: FakeCublasLt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tuning=False).save(tmp_path / "plan")
    library.device._cublas = None
    monkeypatch.setattr(cublas, "library", missing)
    message = (
        r"2 of the plan's 4 steps call cuBLASLt: .* pip install 'enginesmith\[cublaslt\]', or "
        r"build the model again with tactic_sources=\('cuda',\)"
    )
    with pytest.raises(DeviceError, match=message):
        es.load(tmp_path / "plan")


@pytest.mark.parametrize("name", ["cublasLtMatmul", "cublasLtMatrixLayoutCreate"])
def test_a_failing_call_is_reported(library: FakeCublasLt, name: str) -> None:
    engine = build(tuning=False)
    library.fail_next[name] = 7
    with pytest.raises(DeviceError, match=f"{name} failed: CUBLAS_STATUS_INVALID_VALUE"):
        engine(feed())
    check(engine)


def test_a_failure_while_capturing(library: FakeCublasLt) -> None:
    engine = build(tuning=False)
    check(engine)
    library.fail_next["cublasLtMatmul"] = 7
    with pytest.raises(DeviceError, match="cublasLtMatmul failed"):
        engine(feed())
    check(engine)
    check(engine)


def test_no_algorithm_at_all(library: FakeCublasLt, tmp_path: Path) -> None:
    engine = build(tuning=False)
    library.version = 130102
    library.device._cublas = None
    engine.save(tmp_path / "plan")
    loaded = es.load(tmp_path / "plan")
    library.fail_next["cublasLtMatmulAlgoGetHeuristic"] = 15
    with pytest.raises(DeviceError, match=r"has no algorithm for step 1 .* 4096 bytes"):
        loaded(feed())
    library.fail_next["cublasLtMatmulAlgoGetHeuristic"] = 15
    with pytest.raises(BuildError, match=r"no algorithm for .*; add 'cuda' to tactic_sources"):
        build(tuning=False)


def test_descriptors_live_as_long_as_their_engine(library: FakeCublasLt) -> None:
    engine = build(tuning=False)
    for n in (8, 16, 24, 8):
        check(engine, n)
    assert library.alive
    engine.close()
    del engine
    gc.collect()
    assert not library.alive


def test_threads_share_one_handle(library: FakeCublasLt) -> None:
    engine = build(tuning=False)
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for _ in range(5):
                check(engine, n)
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=work, args=(n,)) for n in (3, 8, 11, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert library.handles == 1


DAMAGES = {
    "algorithm": ({"algorithm": "00"}, "no valid algorithm"),
    "letters": ({"algorithm": "xy" * 64}, "no valid algorithm"),
    "step": ({"step": 4}, "belongs to step 4"),
    "operands": ({"operands": ()}, "lacks an operand or its workspace"),
    "workspace": ({"workspace": ()}, "lacks an operand or its workspace"),
}


@pytest.mark.parametrize(("change", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_calls(
    library: FakeCublasLt, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    plan = build(tuning=False).plan
    damaged(plan, tmp_path, replace(plan.calls[0], **change), reason)


def test_damaged_products(library: FakeCublasLt, tmp_path: Path) -> None:
    plan = build(tuning=False).plan
    call = plan.calls[0]
    product = call.operation
    for changed, reason in [
        (replace(product, activation="exec"), "unknown activation 'exec'"),
        (replace(product, a=replace(product.a, dtype="int8")), "operand of 'int8'"),
        (replace(product, d=replace(product.d, rows="q")), "unknown symbols"),
        (replace(product, b=replace(product.b, alignment=0)), "aligned to 0"),
    ]:
        damaged(plan, tmp_path, replace(call, operation=changed), reason)
    places = (replace(call.operands[0], buffer=99), *call.operands[1:])
    damaged(plan, tmp_path, replace(call, operands=places), "a buffer that the plan doesn't have")


def damaged(plan: Plan, folder: Path, call: Any, reason: str) -> None:
    file.save(replace(plan, calls=(call, *plan.calls[1:])), folder / "plan")
    with pytest.raises(PlanError, match=reason):
        es.load(folder / "plan")


def test_a_foreign_algorithm_is_not_run(library: FakeCublasLt, tmp_path: Path) -> None:
    """Bytes that the library doesn't know are checked before they are used."""
    plan = build(tuning=False).plan
    calls = tuple(replace(call, algorithm="5a" * 64) for call in plan.calls)
    file.save(replace(plan, calls=calls), tmp_path / "plan")
    engine = es.load(tmp_path / "plan")
    check(engine)
    assert "cuBLASLt chose other algorithms (steps 1, 3)" in engine.report
