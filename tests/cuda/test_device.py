"""Engines on a GPU as a program uses them: on the emulated one, and marked `cuda` on a real one.

tests/cuda/test_runtime.py has what only a device can show that fails on demand and counts its
handles.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import gpu_small
from tests.cuda.test_engine import error, expected
from tests.cuda.test_engine import model as tail
from tests.cuda.test_runtime import Foreign, build, check, context_of, feeds_of
from tests.cuda_emulator.device import EmulatedDevice
from tests.threads import side_by_side

import enginesmith as es
from enginesmith.errors import DeviceError, FeedError, PlanError
from enginesmith.runtime import cuda_context
from enginesmith.runtime.cuda_context import CudaExecutionContext
from enginesmith.runtime.device_array import DeviceArray, new_array, to_device
from enginesmith.runtime.devices import cuda

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def context(device: Any) -> CudaExecutionContext:
    return context_of(build())


@pytest.fixture
def counts(device: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often graphs were captured, replayed and closed from now on."""
    made: Counter[str] = Counter()

    def watch(name: str) -> None:
        real = getattr(device, name)

        def counted(*arguments: Any) -> AbstractContextManager[list[int]] | None:
            made[name] += 1
            return real(*arguments)  # type: ignore[no-any-return]

        monkeypatch.setattr(device, name, counted)

    for name in ("capture", "replay", "close_graph"):
        watch(name)
    return made


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_changing_shapes(device: Any, precision: str, bound: float) -> None:
    """One plan for all sizes: each is right when it comes first, again, and from a graph."""
    proto = tail()
    engine = es.build(proto, target="cuda", precision=precision, tuning=False)
    context = engine.context()
    for n, h, w in [(2, 8, 3), (1, 5, 7), (2, 8, 3), (2, 8, 3), (0, 4, 4), (5, 3, 3), (1, 5, 7)]:
        x = np.random.default_rng(n).standard_normal((n, 24, h, w), np.float32)
        got = context.execute({"x": x})["y"]
        assert got.shape == (n, 30)
        if n:
            assert error(got, expected(proto, {"x": x})[0]) < bound


SMALL = ("odd", "depthwise", "linear", "attention", "norms", "tables", "moves")


@pytest.mark.parametrize("name", SMALL)
def test_small_models(device: Any, name: str) -> None:
    """Kernels of several families after each other, overlapping, three times (the last ones as a
    graph)."""
    proto = next(m for m in gpu_small.models() if m.graph.name == name)
    engine = es.build(proto, target="cuda", precision="fp16", tuning=False)
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in engine.inputs:
        shape = tuple(map(int, spec.shape))
        whole = spec.dtype == "int64"
        feeds[spec.name] = rng.integers(0, 3, shape) if whole else rng.standard_normal(shape, "f4")
    if name == "tables":
        feeds["p"] = np.array([[0, 1], [3, 2], [5, 19]])
    want = dict(zip([o.name for o in engine.outputs], expected(proto, feeds), strict=True))
    context = engine.context()
    for _ in range(3):
        got = context.execute(feeds)
        errors = {k: error(np.asarray(got[k], np.float64), want[k]) for k in want}
        assert max(errors.values()) < 5e-3, errors


# -- arrays on the GPU ----------------------------------------------------------------------------


class Tensor(ctypes.Structure):
    """DLPack's DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


class Dlpack:
    """Another library's float32 array on the GPU, handed over by DLPack alone. strides: in
    elements; they may be absent."""

    def __init__(self, device: Any, data: np.ndarray, strides: tuple[int, ...] = ()) -> None:
        self.array = to_device(device, data)
        rank = data.ndim
        self.shape = (ctypes.c_int64 * rank)(*data.shape)
        self.strides = (ctypes.c_int64 * rank)(*strides) if strides else None
        self.tensor = Tensor(
            self.array.address, 2, 0, rank, 2, 32, 1, self.shape, self.strides, 0, None, None
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


def test_arrays_of_other_libraries(device: Any, context: CudaExecutionContext) -> None:
    feeds = feeds_of()
    makers = (to_device, Foreign, Dlpack, lambda d, a: Dlpack(d, a, (8, 1)))
    for x in makers:
        for shift in (*makers, lambda _, a: a):
            there = {"x": x(device, feeds["x"]), "shift": shift(device, feeds["shift"])}
            for _ in range(2):
                check(context.execute(there), feeds)


def test_misaligned_arrays(device: Any, context: CudaExecutionContext) -> None:
    feeds = feeds_of()
    there = {name: Foreign(device, a, offset=4) for name, a in feeds.items()}
    target = Foreign(device, np.zeros((3, 8), np.float32), offset=8)
    for _ in range(3):
        got = context.execute(there, {"y": target})
        y = np.empty((3, 8), np.float32)
        stream = device.stream()
        address = target.__cuda_array_interface__["data"][0]
        device.copy_out(y.ctypes.data, address, y.nbytes, stream)
        device.synchronize(stream)
        device.close_stream(stream)
        check({"y": y, "z": got["z"]}, feeds)


def test_results_on_the_device(device: Any, context: CudaExecutionContext) -> None:
    first, second = feeds_of(seed=1), feeds_of(seed=2)
    a = context.execute(first, results="device")
    b = context.execute(second, results="device")
    assert isinstance(a["y"], DeviceArray)
    check(a, first)  # in memory of their own
    check(b, second)
    # A result on the device is the next one's feed.
    again = {"x": a["y"], "shift": a["z"]}
    check(context.execute(again), {name: array.numpy() for name, array in again.items()})
    given = {"y": new_array(device, (3, 8), "float32"), "z": np.empty((3, 8), np.float32)}
    for feeds in (first, second, first):
        got = context.execute(feeds, given)
        assert got["y"] is given["y"] and got["z"] is given["z"]
        check(got, feeds)


# -- in flight, graphs ----------------------------------------------------------------------------


def test_two_in_flight(device: Any, context: CudaExecutionContext) -> None:
    """Feeds change as soon as they are enqueued; results come in any order."""
    feeds = [feeds_of(seed=i) for i in range(7)]
    pending = []
    for f in feeds:
        changing = {name: a.copy() for name, a in f.items()}
        pending.append(context.enqueue(changing))
        for array in changing.values():
            array[...] = np.nan
    for p, f in reversed(list(zip(pending, feeds, strict=True))):
        check(p.result(timeout=30), f)
        assert p.done()


def test_streams(device: Any, context: CudaExecutionContext) -> None:
    one, other = es.Stream(), es.Stream()
    feeds = [feeds_of(seed=i) for i in range(6)]
    streams = (one, one, other, None, other, one)
    pending = [context.enqueue(f, s) for f, s in zip(feeds, streams, strict=True)]
    for p, f in zip(pending, feeds, strict=True):
        check(p.result(), f)


def test_graphs_of_several_shapes(
    device: Any, context: CudaExecutionContext, counts: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Captured at the second run of a shape; the least recently used goes."""
    monkeypatch.setattr(cuda_context, "GRAPHS", 2)
    context.execute(feeds_of(4))  # the largest first: memory stays where it is
    for n in (1, 1, 2, 2, 1, 3, 3):  # 3 takes the place of 2
        check(context.execute(feeds_of(n)), feeds_of(n))
    assert (counts["capture"], counts["close_graph"]) == (3, 1)
    for n in (1, 2, 2):
        check(context.execute(feeds_of(n, 5)), feeds_of(n, 5))
    assert counts["capture"] == 4
    assert counts["replay"] == 6


def test_a_growing_arena(device: Any, counts: Counter[str]) -> None:
    """Graphs with the old addresses go, results stay right."""
    proto = tail()
    context = es.build(proto, target="cuda", tuning=False).context()
    for n in (1, 1, 3, 3, 1, 1, 5, 1):
        x = np.random.default_rng(n).standard_normal((n, 24, 3, 4), np.float32)
        assert error(context.execute({"x": x})["y"], expected(proto, {"x": x})[0]) < 1e-5
    assert counts["close_graph"] >= 2


# -- errors ---------------------------------------------------------------------------------------


def test_feeds_that_dont_fit(device: Any, context: CudaExecutionContext) -> None:
    x = np.zeros((3, 8), np.float32)
    with pytest.raises(FeedError) as found:
        context.execute({"x": to_device(device, x.astype(np.float16)), "more": x})
    for text in ("'x' is float16", "'shift' is missing", "no input 'more'"):
        assert text in str(found.value)
    with pytest.raises(FeedError, match="C-contiguous"):
        context.execute({"x": Dlpack(device, x, (1, 3)), "shift": x})
    check(context.execute(feeds_of()), feeds_of())


def test_a_plan_for_a_newer_gpu(device: Any, tmp_path: Path) -> None:
    if device.arch >= 120:
        pytest.skip("there is none newer")
    build("cuda:sm_120").save(tmp_path / "tiny.plan")
    with pytest.raises(PlanError, match=f"built for cuda:sm_120.*is sm_{device.arch}"):
        es.load(tmp_path / "tiny.plan")


def test_a_saved_plan(device: Any, tmp_path: Path) -> None:
    build().save(tmp_path / "tiny.plan")
    with es.load(tmp_path / "tiny.plan") as engine:
        check(engine(feeds_of()), feeds_of())


@pytest.mark.cuda
def test_out_of_memory() -> None:
    """The driver says no, and the next run is right."""
    device, context = cuda.cuda_device(), context_of(build())
    check(context.execute(feeds_of()), feeds_of())
    with pytest.raises(DeviceError, match=r"OUT_OF_MEMORY.*smaller batches") as found:
        device.allocate(1 << 50)
    assert found.value.usable
    for seed in range(3):
        check(context.execute(feeds_of(seed=seed)), feeds_of(seed=seed))


LOST = """
from enginesmith.errors import DeviceError
from tests.cuda.test_runtime import build, context_of, feeds_of

class Nowhere:
    __cuda_array_interface__ = {
        "shape": (3, 8), "typestr": "<f4", "data": ((1 << 46) + 4096, False), "version": 3}

engine = build()
context = context_of(engine)
context.execute(feeds_of())
for feeds in ({**feeds_of(), "x": Nowhere()}, feeds_of()):
    try:
        context.execute(feeds)
    except DeviceError as error:
        print(error.usable, error)
"""


@pytest.mark.cuda
def test_a_lost_gpu() -> None:
    """In a process of its own: after an access to nowhere, every run says what happened."""
    done = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, text=True, check=False, cwd=ROOT
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert all("ILLEGAL_ADDRESS" in line and line.startswith("False") for line in lines), lines
    assert "start it again" in lines[0]


# -- threads --------------------------------------------------------------------------------------


def test_four_contexts_in_four_threads(device: Any) -> None:
    """Each thread's results are bitwise those of a context alone, whatever the others do."""
    engine = es.build(tail(), target="cuda", precision="fp16", tuning=False)
    alone = engine.context()
    sizes = [(2, 3, 4), (1, 4, 4), (3, 2, 3)]
    feeds = [
        np.random.default_rng(i).standard_normal((n, 24, h, w), np.float32)
        for i, (n, h, w) in enumerate(sizes)
    ]
    want = [alone.execute({"x": x})["y"] for x in feeds]
    wrong: list[Any] = []
    runs = 4 if isinstance(device, EmulatedDevice) else 60  # emulated kernels take their time

    def work(first: int) -> None:
        context = engine.context()
        for run in range(first, first + runs):
            k = run // 2 % 3
            got = context.execute({"x": feeds[k]})["y"]
            if not np.array_equal(got, want[k]):
                wrong.append((first, run, float(np.abs(got - want[k]).max())))

    assert side_by_side(work, 4) == []
    assert wrong == []


def test_times(device: Any, context: CudaExecutionContext) -> None:
    """Per step and per run: seconds of the GPU's clock."""
    steps = context.profile(feeds_of())
    assert all(0 <= t < 1 for t in steps) and sum(steps) > 0
    assert all(0 < t < 1 for t in context.gpu_times(feeds_of(), repeats=3, inner=2))
    check(context.execute(feeds_of()), feeds_of())
