"""Host steps on a GPU: between launches, in graphs, two in flight, failing. On the emulated GPU,
and marked `cuda` on a real one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import host_models
from tests.cuda_emulator.device import EmulatedDevice
from tests.threads import side_by_side

import enginesmith as es
from enginesmith.errors import DeviceError
from enginesmith.runtime.cuda_context import CudaExecutionContext
from enginesmith.runtime.device_array import new_array, to_device
from enginesmith.runtime.host_node import HostNode


def build(name: str, **options: Any) -> es.Engine:
    return es.build(host_models.MODELS[name](), target="cuda", tuning=False, **options)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that host steps were evaluated on from now on."""
    made: list[int] = []
    real = HostNode.into

    def into(self: HostNode, *arguments: Any) -> None:
        made.append(threading.get_ident())
        real(self, *arguments)

    monkeypatch.setattr(HostNode, "into", into)
    return made


@pytest.mark.parametrize("name", host_models.MODELS)
def test_what_onnx_runtime_computes(device: Any, evaluated: list[int], name: str) -> None:
    """Launched, captured, replayed; another batch; an empty one."""
    engine, proto = build(name), host_models.MODELS[name]()
    assert [call.step for call in engine.plan.hosts] == [
        i for i, step in enumerate(engine.plan.steps) if step.op.startswith("host ")
    ]
    for n, seed in ((2, 0), (2, 1), (2, 2), (3, 3)):
        feeds = host_models.feeds(proto, n, seed)
        host_models.check(proto, feeds, engine(feeds))
    assert len(evaluated) == 4 * len(engine.plan.hosts)
    assert threading.get_ident() not in evaluated
    feeds = host_models.feeds(proto, 0)
    for spec, array in zip(engine.outputs, engine(feeds).values(), strict=True):
        assert array.shape == tuple(0 if d == "n" else d for d in spec.shape)
    assert len(evaluated) == 4 * len(engine.plan.hosts)  # nothing to compute


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 3e-3), ("bf16", 2e-2)])
def test_half_precision_stops_at_a_host_step(device: Any, precision: str, bound: float) -> None:
    """Its operands are float32, and the convolution after it reads a copy held in half."""
    engine, proto = build("between", precision=precision), host_models.between()
    (call,) = engine.plan.hosts
    assert [o.dtype for o in (*call.inputs, *call.outputs)] == [
        "float32", "int64", "float32", "int64",
    ]  # fmt: skip
    feeds = host_models.feeds(proto, 2)
    got = engine(feeds)
    (y, order) = host_models.expected(proto, feeds)
    assert np.mean(got["i"] == order) > 0.9  # near ties may change places
    assert np.linalg.norm(got["y"] - y) < bound * np.linalg.norm(y)
    proto = host_models.grid_sample()
    feeds = host_models.feeds(proto, 2)
    host_models.check(proto, feeds, build("grid_sample", precision=precision)(feeds), bound)


def test_samples_measure_through_host_steps(device: Any) -> None:
    feeds = host_models.feeds(host_models.grid_sample(), 2)
    engine = build("grid_sample", precision="fp16", samples=feeds, tolerance=1e-2)
    host_models.check(host_models.grid_sample(), feeds, engine(feeds), 1e-2)


def test_two_in_flight_share_no_memory(device: Any) -> None:
    proto = host_models.between()
    context = build("between").context()
    fed = [host_models.feeds(proto, 2, seed) for seed in range(6)]
    pending = [context.enqueue(f) for f in fed[:2]]
    for i, feeds in enumerate(fed):
        host_models.check(proto, feeds, pending[i].result())
        if i + 2 < len(fed):
            pending.append(context.enqueue(fed[i + 2]))


def test_arrays_on_the_gpu(device: Any) -> None:
    proto = host_models.alone()
    context = build("alone").context()
    assert isinstance(context, CudaExecutionContext)
    feeds = host_models.feeds(proto, 4)
    x = to_device(device, feeds["x"])
    values = new_array(device, (4, 3), "float32")
    for _ in range(3):
        got: dict[str, Any] = context.execute({"x": x}, {"v": values}, results="device")
        assert got["v"] is values
        host_models.check(proto, feeds, {k: np.asarray(v.numpy()) for k, v in got.items()})


def test_contexts_side_by_side(device: Any) -> None:
    proto, engine = host_models.indices(), build("indices")

    def work(seed: int) -> None:
        context = engine.context()
        for turn in range(4):
            feeds = host_models.feeds(proto, 3, 10 * seed + turn)
            host_models.check(proto, feeds, context.execute(feeds))

    assert side_by_side(work, 4) == []


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx.reference fails on operands that begin with a number above 100."""
    real = HostNode.__call__

    def call(self: HostNode, inputs: list[np.ndarray]) -> list[np.ndarray]:
        if inputs[0].flat[0] > 100:
            raise ArithmeticError("too large")
        return real(self, inputs)

    monkeypatch.setattr(HostNode, "__call__", call)


def test_an_error_comes_with_its_own_result(device: Any, refused: None) -> None:
    """Not with the one before or after it, although both are in flight by then."""
    proto = host_models.indices()
    context = build("indices").context()
    good = [host_models.feeds(proto, 3, seed) for seed in range(5)]
    bad = {"x": np.full((3, 10), 200, np.float32)}
    for _ in range(3):  # launched, captured, replayed
        first, second = context.enqueue(good[0]), context.enqueue(bad)
        host_models.check(proto, good[0], first.result())
        third = context.enqueue(good[1])
        with pytest.raises(es.EnginesmithError, match=r"node top \(TopK\).*ArithmeticError: too l"):
            second.result()
        host_models.check(proto, good[1], third.result())
        context.profile(good[2])
        target = np.full((3, 6), 7, np.float32)
        with pytest.raises(es.EnginesmithError, match="too large"):
            context.execute(bad, {"y": target})
        assert np.all(target == 7)  # nothing was written
        host_models.check(proto, good[3], context.execute(good[3]))


def test_after_a_failed_launch(gpu: EmulatedDevice, refused: None) -> None:
    """What could not be started leaves nothing for the next inference."""
    proto = host_models.indices()
    context = build("indices").context()
    feeds = host_models.feeds(proto, 3)
    bad = {"x": np.full((3, 10), 200, np.float32)}
    for operation in ("call_host", "launch", "replay"):
        if operation == "replay":
            context.execute(feeds)
            context.execute(feeds)
        gpu.fail_next[operation] = DeviceError("on purpose")
        with pytest.raises(DeviceError, match="on purpose"):
            context.execute(bad)
        host_models.check(proto, feeds, context.execute(feeds))


def test_profile_and_times(device: Any) -> None:
    engine = build("between")
    context = engine.context()
    assert isinstance(context, CudaExecutionContext)
    feeds = host_models.feeds(host_models.between(), 2)
    assert len(context.profile(feeds)) == len(engine.plan.steps)
    assert len(context.gpu_times(feeds, 3)) == 3
    host_models.check(host_models.between(), feeds, context.execute(feeds))


def test_a_plan_is_saved_and_loaded(device: Any, tmp_path: Path) -> None:
    engine, proto = build("between"), host_models.between()
    path = tmp_path / "a.plan"
    engine.save(path)
    feeds = host_models.feeds(proto, 2)
    host_models.check(proto, feeds, es.load(path)(feeds))
