"""The runtime on a GPU, on the emulated one: arrays there, graphs, failures, threads, memory."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from tests.cuda_emulator.device import EmulatedDevice
from tests.threads import side_by_side

import enginesmith as es
from enginesmith import builder
from enginesmith.errors import ContextError, DeviceError, FeedError
from enginesmith.kernels import FAMILIES
from enginesmith.runtime import cuda_context
from enginesmith.runtime.cuda_context import CudaExecutionContext
from enginesmith.runtime.device_array import DeviceArray, new_array, to_device
from enginesmith.runtime.devices import cuda
from enginesmith.tuner import tune as tuning

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
tiny (float[n, 8] x, float[n, 8] shift) => (float[n, 8] y, float[n, 8] z) {
  s = Add (x, shift)
  z = Sigmoid (s)
  y = MatMul (z, w)
}
"""
W = np.random.default_rng(0).standard_normal((8, 8), np.float32)


def model(weights: np.ndarray = W, text: str = MODEL) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return proto


def build(target: str = "cuda") -> es.Engine:
    return es.build(model(), target=target, tuning=False)


def context_of(engine: es.Engine) -> CudaExecutionContext:
    context = engine.context()
    assert isinstance(context, CudaExecutionContext)
    return context


@pytest.fixture
def context(gpu: EmulatedDevice) -> CudaExecutionContext:
    return context_of(build())


def feeds_of(n: int = 3, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((n, 8), np.float32) for name in ("x", "shift")}


def check(got: dict[str, Any], feeds: dict[str, Any]) -> None:
    """The outputs are right for these feeds (host arrays)."""
    z = 1 / (1 + np.exp(-(feeds["x"] + feeds["shift"]).astype(np.float64)))
    arrays = {k: v.numpy() if isinstance(v, DeviceArray) else v for k, v in got.items()}
    assert list(arrays) == ["y", "z"]
    np.testing.assert_allclose(arrays["z"], z, rtol=1e-5)
    np.testing.assert_allclose(arrays["y"], z @ W, rtol=1e-4, atol=1e-5)


class Foreign:
    """Another library's array on the GPU. strides: in bytes; offset: of its address, in bytes."""

    def __init__(
        self, gpu: EmulatedDevice, data: np.ndarray, strides: Any = None, offset: int = 0,
        shape: Any = None, read_only: bool = False,
    ) -> None:  # fmt: skip
        self.memory = gpu.allocate(data.nbytes + offset)
        if data.size:
            gpu.copy_in(self.memory.address + offset, data.ctypes.data, data.nbytes, 0)
            gpu.synchronize(0)
        self.__cuda_array_interface__ = {
            "shape": shape or data.shape,
            "typestr": data.dtype.str,
            "data": (self.memory.address + offset, read_only),
            "version": 3,
            "strides": strides,
        }


@pytest.fixture
def copies(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the device's copies made from now on."""
    made: list[str] = []

    def watch(name: str) -> None:
        real = getattr(gpu, name)

        def record(*arguments: int) -> None:
            made.append(name)
            real(*arguments)

        monkeypatch.setattr(gpu, name, record)

    for name in ("copy_in", "copy_out", "copy"):
        watch(name)
    return made


# -- arrays on the GPU ----------------------------------------------------------------------------


def test_arrays_on_the_gpu_are_used_where_they_are(
    gpu: EmulatedDevice, context: CudaExecutionContext, copies: list[str]
) -> None:
    feeds = feeds_of()
    there = {"x": to_device(gpu, feeds["x"]), "shift": Foreign(gpu, feeds["shift"])}
    made = {name: new_array(gpu, (3, 8), "float32") for name in ("y", "z")}
    context.execute(feeds)
    copies.clear()
    got = context.execute(there, made)
    assert copies == []
    assert got["y"] is made["y"]
    check(got, feeds)


def test_misaligned_and_empty_arrays(
    gpu: EmulatedDevice, context: CudaExecutionContext, copies: list[str]
) -> None:
    feeds = feeds_of()
    there = {name: Foreign(gpu, a, offset=4) for name, a in feeds.items()}
    target = Foreign(gpu, np.zeros((3, 8), np.float32), offset=8)
    context.execute(feeds)
    copies.clear()
    got = context.execute(there, {"y": target})
    assert copies == ["copy", "copy", "copy", "copy_out"]
    y = np.empty((3, 8), np.float32)
    gpu.copy_out(y.ctypes.data, target.__cuda_array_interface__["data"][0], y.nbytes, 0)
    check({"y": y, "z": got["z"]}, feeds)
    nothing = np.empty((0, 8), np.float32)
    empty = {"x": Foreign(gpu, nothing, strides=(4, 4)), "shift": nothing}
    assert context.execute(empty)["y"].shape == (0, 8)


def test_results_on_the_device(gpu: EmulatedDevice, context: CudaExecutionContext) -> None:
    first, second = feeds_of(seed=1), feeds_of(seed=2)
    a = context.execute(first, results="device")
    b = context.execute(second, results="device")
    assert isinstance(a["y"], DeviceArray)
    assert a["y"].__cuda_array_interface__["shape"] == (3, 8)
    check(a, first)  # in memory of their own
    check(b, second)
    check(context.execute({**second, "x": to_device(gpu, first["x"])}), {**second, "x": first["x"]})
    with pytest.raises(ContextError, match="choose 'host' or 'device'"):
        context.execute(first, results="gpu")


def test_outputs_on_host_and_device(gpu: EmulatedDevice, context: CudaExecutionContext) -> None:
    feeds = feeds_of()
    outputs = {"y": np.empty((3, 8), np.float32), "z": new_array(gpu, (3, 8), "float32")}
    got = context.execute(feeds, outputs)
    assert got["y"] is outputs["y"]
    assert got["z"] is outputs["z"]
    check(got, feeds)
    strided = np.asfortranarray(feeds["x"])
    check(context.execute({**feeds, "x": strided}), feeds)


def test_every_misfit_is_listed(gpu: EmulatedDevice, context: CudaExecutionContext) -> None:
    x = np.zeros((3, 8), np.float32)
    with pytest.raises(FeedError) as found:
        context.execute({"x": Foreign(gpu, x.astype(np.float16)), "shift": x[:, :5], "more": x})
    for text in ("'x' is float16", "'shift'", "no input 'more'"):
        assert text in str(found.value)
    strange = Foreign(gpu, x)
    strange.__cuda_array_interface__["typestr"] = "bf16"
    half = Foreign(gpu, x.astype(np.float16), strides=(2, 6))
    with pytest.raises(FeedError) as found:
        context.execute({"x": strange, "shift": half, "more": x})
    lines = str(found.value).splitlines()[1:]
    for text, line in zip(
        ("no input 'more'", "'x' can't be read as an array on the GPU: TypeError",
         "'shift' is not C-contiguous; pass", "'shift' is float16, but the engine takes float32"),
        lines, strict=True,
    ):  # fmt: skip
        assert text in line
    swapped = Foreign(gpu, x.astype(">f4"))
    with pytest.raises(FeedError, match="'x' is of another byte order than this machine's; pass"):
        context.execute({"x": swapped, "shift": x})
    strided = {name: Foreign(gpu, x, strides=(4, 12)) for name in ("x", "shift")}
    with pytest.raises(FeedError) as found:
        context.execute(strided)
    for name in strided:
        assert f"input {name!r} is not C-contiguous; pass a contiguous copy" in str(found.value)


def test_every_misfit_of_given_outputs_is_listed(
    gpu: EmulatedDevice, context: CudaExecutionContext
) -> None:
    x = np.zeros((3, 8), np.float32)
    with pytest.raises(FeedError) as found:
        context.execute(
            feeds_of(),
            {"y": Foreign(gpu, x[:2]), "z": Foreign(gpu, x, (4, 12)), "q": Foreign(gpu, x)},
        )
    half = Foreign(gpu, x.astype(np.float16), (2, 6))
    with pytest.raises(FeedError) as both:
        context.execute(feeds_of(), {"y": x[:2], "z": half})
    assert "'y' must be a writable, C-contiguous numpy array" in str(both.value)
    assert "'z' is not C-contiguous and is float16 of shape (3, 8)" in str(both.value)
    for text in ("'y' is float32 of shape (2, 8)", "'z' is not C-contiguous", "no output 'q'"):
        assert text in str(found.value)
    same = Foreign(gpu, x)
    with pytest.raises(FeedError, match="'z' shares memory"):
        context.execute(feeds_of(), {"y": same, "z": same})
    with pytest.raises(FeedError, match="'y' shares memory"):
        context.execute({**feeds_of(), "x": same}, {"y": same})
    with pytest.raises(FeedError, match="read-only"):
        context.execute(feeds_of(), {"y": Foreign(gpu, x, read_only=True)})
    check(context.execute(feeds_of()), feeds_of())


# -- inferences in flight -------------------------------------------------------------------------


def test_two_are_in_flight_and_a_third_waits(context: CudaExecutionContext) -> None:
    feeds = [feeds_of(seed=i) for i in range(5)]
    pending = [context.enqueue(f) for f in feeds[:2]]
    assert [p.collected for p in pending] == [False, False]
    pending.append(context.enqueue(feeds[2]))
    assert [p.collected for p in pending] == [True, False, False]
    pending += [context.enqueue(f) for f in feeds[3:]]
    assert all(p.done() for p in pending)
    for p, f in zip(pending, feeds, strict=True):
        check(p.result(timeout=1), f)


def test_host_feeds_may_change_once_enqueued(context: CudaExecutionContext) -> None:
    feeds = feeds_of()
    changing = {name: a.copy() for name, a in feeds.items()}
    pending = context.enqueue(changing)
    for array in changing.values():
        array[...] = 9
    check(pending.result(), feeds)


def test_streams(gpu: EmulatedDevice, context: CudaExecutionContext) -> None:
    one, other = es.Stream(), es.Stream()
    feeds = [feeds_of(seed=i) for i in range(4)]
    streams = (one, one, other, None)
    pending = [context.enqueue(f, s) for f, s in zip(feeds, streams, strict=True)]
    # Another stream waits for what is in flight: the arena is one.
    assert [p.collected for p in pending] == [True, True, True, False]
    for p, f in zip(pending, feeds, strict=True):
        check(p.result(), f)
    handles = len(gpu._handles)
    del one, other, pending, streams
    gc.collect()
    assert len(gpu._handles) == handles - 2


# -- graphs ---------------------------------------------------------------------------------------


def test_graphs_are_captured_at_the_second_run(
    gpu: EmulatedDevice, context: CudaExecutionContext
) -> None:
    for run, counts in enumerate([(0, 0), (1, 1), (1, 2), (1, 3)]):
        check(context.execute(feeds_of(seed=run)), feeds_of(seed=run))
        assert (gpu.captures, gpu.replays) == counts
    context.execute(feeds_of(2))
    context.execute(feeds_of(2))
    context.execute(feeds_of())
    assert (gpu.captures, gpu.replays) == (2, 5)


def test_the_least_recently_used_graph_goes(
    gpu: EmulatedDevice, context: CudaExecutionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_context, "GRAPHS", 2)
    context.execute(feeds_of(4))  # the largest first: memory stays where it is
    sizes = (1, 1, 2, 2, 1, 3, 3)  # 3 takes the place of 2
    for n in sizes:
        check(context.execute(feeds_of(n)), feeds_of(n))
    assert gpu.captures == 3
    handles = len(gpu._handles)
    context.execute(feeds_of(1))
    assert gpu.captures == 3
    context.execute(feeds_of(2))
    context.execute(feeds_of(2))
    assert gpu.captures == 4
    assert len(gpu._handles) == handles


def test_a_growing_arena_drops_graphs(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = MODEL.replace("y = MatMul (z, w)", "m = MatMul (z, w) t = Softmax (m) y = MatMul (t, w)")
    engine = es.build(model(text=deep), target="cuda", tuning=False)
    context = context_of(engine)
    x = {n: feeds_of(n) for n in (2, 40)}
    want = {n: context.execute(x[n])["y"] for n in (2,)}
    context.execute(x[2])
    closed: list[int] = []
    monkeypatch.setattr(gpu, "close_graph", closed.append)
    before = gpu.captures
    context.execute(x[40])
    assert len(closed) == 1
    np.testing.assert_allclose(context.execute(x[2])["y"], want[2])
    assert gpu.captures == before


def test_persistent_workspaces_start_cleared(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(family: str, problem: Any, target: Any, sources: Any) -> Any:
        """Tactics whose blocks count in memory who is last, if there are some."""
        kernels = FAMILIES[target.device][family]
        options = kernels.tactics(problem, target)
        found = [o for o in options if kernels.emit(problem, o, target).cleared != 0]
        return found or options

    monkeypatch.setattr(tuning, "candidates", counting)
    gpu.arch = 80  # later ones have clusters instead
    w = np.random.default_rng(0).standard_normal((512, 8), np.float32) / 16
    text = MODEL.replace("n, 8", "n, 512").replace("[n, 512] y, float[n, 512] z", "[n, 8] y")
    engine = es.build(model(w, text), target="cuda", precision="fp16", tuning=False)
    assert any(buffer.kind == "persistent" for buffer in engine.plan.buffers)
    context = context_of(engine)
    # Where one size keeps its counters, another leaves sums.
    for run, n in enumerate((2100, 3, 3, 2100, 3)):
        x = np.random.default_rng(run).standard_normal((n, 512), np.float32)
        got = context.execute({"x": x, "shift": x})
        np.testing.assert_allclose(got["y"], 1 / (1 + np.exp(-2 * x)) @ w, atol=0.02)


# -- plans and machines ---------------------------------------------------------------------------


def test_a_saved_plan_runs(gpu: EmulatedDevice, tmp_path: Path) -> None:
    engine = build()
    engine.save(tmp_path / "tiny.plan")
    loaded = es.load(tmp_path / "tiny.plan")
    assert loaded.plan.target == "cuda:sm_90"
    check(loaded(feeds_of()), feeds_of())


def test_a_plan_without_a_gpu(
    gpu: EmulatedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(ordinal: int = 0) -> EmulatedDevice:
        raise DeviceError("no NVIDIA driver is installed")

    present = cuda.cuda_device
    for module in (cuda, builder):
        monkeypatch.setattr(module, "cuda_device", missing)
    monkeypatch.setattr(builder, "host_architecture", lambda: None)
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        build("cuda")
    engine = build("cuda:sm_90")
    assert "cuda:sm_90" in engine.report
    engine.save(tmp_path / "tiny.plan")
    for run in (lambda: engine(feeds_of()), lambda: es.load(tmp_path / "tiny.plan")):
        with pytest.raises(DeviceError, match="no NVIDIA driver"):
            run()
    monkeypatch.setattr(cuda, "cuda_device", present)
    check(es.load(tmp_path / "tiny.plan")(feeds_of()), feeds_of())


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["allocate", "copy_in", "launch", "replay", "copy_out"])
def test_after_a_usable_error_the_next_run_is_right(
    gpu: EmulatedDevice, context: CudaExecutionContext, operation: str
) -> None:
    if operation == "replay":
        context.execute(feeds_of(seed=1))
        context.execute(feeds_of(seed=2))
    gpu.fail_next[operation] = DeviceError("out of luck")
    with pytest.raises(DeviceError, match="out of luck"):
        context.execute(feeds_of())
    for seed in range(3):
        check(context.execute(feeds_of(seed=seed)), feeds_of(seed=seed))


@pytest.mark.parametrize("operation", ["launch", "wait_for"])
def test_a_lost_device_stays_lost(gpu: EmulatedDevice, operation: str) -> None:
    engine = build()
    one, other = context_of(engine), context_of(engine)
    check(other.execute(feeds_of()), feeds_of())
    gpu.fail_next[operation] = DeviceError("illegal address", usable=False)
    for context in (one, one, other):
        with pytest.raises(DeviceError, match="illegal address") as found:
            context.execute(feeds_of())
        assert not found.value.usable
    with pytest.raises(DeviceError, match="illegal address"):
        engine(feeds_of())


def test_errors_of_an_inference_in_flight_come_with_its_result(
    gpu: EmulatedDevice, context: CudaExecutionContext
) -> None:
    first = context.enqueue(feeds_of(seed=1))
    second = context.enqueue(feeds_of(seed=2))
    gpu.fail_next["wait_for"] = DeviceError("slow")
    third = context.enqueue(feeds_of(seed=3))  # waits for the first
    for _ in range(2):
        with pytest.raises(DeviceError, match="slow"):
            first.result()
    check(second.result(), feeds_of(seed=2))
    check(third.result(), feeds_of(seed=3))


def test_a_closed_engine(gpu: EmulatedDevice) -> None:
    engine = build()
    context = context_of(engine)
    for _ in range(2):
        context.execute(feeds_of())
    engine.close()
    for run in (context.execute, engine):
        with pytest.raises(ContextError, match="the engine is closed"):
            run(feeds_of())


# -- threads and memory ---------------------------------------------------------------------------


def test_two_threads_on_one_context(
    gpu: EmulatedDevice, context: CudaExecutionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go, real = threading.Event(), threading.Event(), gpu.launch
    got: list[Any] = []

    def launch(*arguments: Any) -> None:
        inside.set()
        assert go.wait(10)
        real(*arguments)

    monkeypatch.setattr(gpu, "launch", launch)
    thread = threading.Thread(target=lambda: got.append(context.execute(feeds_of())))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(ContextError, match="in use"):
        context.execute(feeds_of())
    go.set()
    thread.join()
    check(got[0], feeds_of())


def test_a_context_per_thread(gpu: EmulatedDevice) -> None:
    engine = build()

    def work(seed: int) -> None:
        context = context_of(engine)
        check(context.execute(feeds_of(seed + 1, seed)), feeds_of(seed + 1, seed))
        check(engine(feeds_of(2, seed)), feeds_of(2, seed))

    assert side_by_side(work, 4) == []


def test_memory_is_given_back(gpu: EmulatedDevice) -> None:
    engine = build()
    contexts = [context_of(engine) for _ in range(2)]
    for context in contexts:
        for n in (2, 2, 5, 5):
            context.execute(feeds_of(n))
        context.profile(feeds_of())
        context.measure(feeds_of(), 2)
        context.enqueue(feeds_of())
    assert gpu.allocated > 0
    functions = sum(isinstance(h, tuple) for h in gpu._handles.values())
    del engine, context, contexts
    gc.collect()
    assert gpu.allocated == 0
    assert len(gpu._handles) == functions  # streams, events, graphs and modules are gone


# -- timing and tuning ----------------------------------------------------------------------------


def test_times_are_sane(gpu: EmulatedDevice) -> None:
    engine = build()
    context = context_of(engine)
    steps = context.profile(feeds_of())
    assert len(steps) == len(engine.plan.steps)
    assert all(0 < t < 1 for t in steps)
    times = context.gpu_times(feeds_of(), repeats=3, inner=2)
    assert len(times) == 3
    assert all(0 < t < 1 for t in times)
    parts = context.measure(feeds_of(), 4)
    assert list(parts) == ["h2d", "compute", "d2h", "enqueue", "end to end"]
    assert all(len(p) == 4 and all(0 < t < 1 for t in p) for p in parts.values())
    there = {name: to_device(gpu, a) for name, a in feeds_of().items()}
    assert len(context.measure(there, 2)["h2d"]) == 2
    check(context.execute(feeds_of()), feeds_of())


def test_tuning_times_candidates_on_the_gpu(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def few(family: str, problem: Any, target: Any, sources: Any) -> Any:
        return FAMILIES[target.device][family].tactics(problem, target)[:2]

    monkeypatch.setattr(tuning, "candidates", few)
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    text = MODEL.replace("[n, 8]", "[2, 8]")
    engine = es.build(model(text=text), target="cuda", cache=tmp_path)
    assert any(len(step.timings) == 2 for step in engine.plan.steps)
    check(engine(feeds_of(2)), feeds_of(2))
    before = gpu.replays
    again = es.build(model(text=text), target="cuda", cache=tmp_path)
    assert gpu.replays == before  # timings are remembered
    assert [s.tactic for s in again.plan.steps] == [s.tactic for s in engine.plan.steps]
    del engine, again
    gc.collect()
    assert gpu.allocated == 0
