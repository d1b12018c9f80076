"""Execution contexts: arrays to write into, asynchronous runs, misuse, profiling."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import tiny

from enginesmith.errors import ContextError, FeedError
from enginesmith.runtime.context import Pending, Stream
from enginesmith.runtime.engine import Engine


@pytest.fixture(params=[0, 256])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Without and with slack around inputs and outputs."""
    with Engine(tiny.plan(slack=request.param), threads=2) as engine:
        yield engine


@pytest.fixture
def slow() -> Iterator[Engine]:
    """An engine that takes 50 ms for a batch of 50."""
    with Engine(tiny.plan(pause=1_000_000), threads=1) as engine:
        yield engine


def empty(batch: int) -> dict[str, np.ndarray]:
    """Poisoned arrays for both outputs."""
    wanted = tiny.expected(tiny.sample(batch))
    return {name: np.full_like(value, np.nan) for name, value in wanted.items()}


def test_writes_into_given_arrays(engine: Engine) -> None:
    """All or some of the outputs; the very arrays are returned."""
    context = engine.context()
    for batch in (4, 1, 0, 9):
        x, outputs = tiny.sample(batch, batch), empty(batch)
        results = context.execute({"x": x}, outputs)
        assert all(results[name] is outputs[name] for name in outputs)
        tiny.check(results, x)
        y = empty(batch)["y"]
        results = context.execute({"x": x}, {"y": y})
        assert results["y"] is y
        tiny.check(results, x)


def test_given_arrays_that_do_not_fit(engine: Engine) -> None:
    """Each misfit is named, all at once, and nothing is computed."""
    context = engine.context()
    x = tiny.sample(4)
    good = empty(4)
    read_only = good["sum"].copy()
    read_only.flags.writeable = False
    wrong = [
        good["y"][:3], good["y"].astype(np.float64), np.asfortranarray(good["y"]), [1.0],
        np.empty((4, 74), np.float32)[:, ::2], good["y"].astype(">f4"),
    ]  # fmt: skip
    for array in wrong:
        with pytest.raises(FeedError) as caught:
            context.execute({"x": x}, {"y": array, "sum": read_only, "z": good["y"]})
        text = str(caught.value)
        assert "array for output 'y' must be" in text
        assert "numpy.empty((4, 37), 'float32')" in text
        assert "array for output 'sum' must be" in text
        assert "no output 'z'; the outputs are ['y', 'sum']" in text
    with pytest.raises(FeedError, match="'y' shares memory with another array"):
        context.execute({"x": x}, {"y": x})
    memory = np.zeros(4 * 37 + 2, np.float32)
    with pytest.raises(FeedError, match="'sum' shares memory with another array"):
        context.execute({"x": x}, {"y": memory[:148].reshape(4, 37), "sum": memory[146:]})
    tiny.check(context.execute({"x": x}, good), x)


def test_enqueue(engine: Engine) -> None:
    """Results belong to their feeds, in order on one stream."""
    context = engine.context()
    feeds = [tiny.sample(i % 7, i) for i in range(40)]
    pendings = [context.enqueue({"x": x}) for x in feeds]
    for x, pending in zip(feeds, pendings, strict=True):
        tiny.check(pending.result(30), x)
        assert pending.done()
    tiny.check(context.execute({"x": feeds[3]}), feeds[3])


def test_order_on_a_stream(slow: Engine) -> None:
    """Contexts that share a stream take turns in the order they were enqueued."""
    stream = Stream()
    contexts = [slow.context() for _ in range(3)]
    x = tiny.sample(10)
    pendings = [contexts[i % 3].enqueue({"x": x}, stream) for i in range(6)]
    for i, pending in enumerate(pendings):
        tiny.check(pending.result(30), x)
        assert all(earlier.done() for earlier in pendings[:i])


def test_result_times_out(slow: Engine) -> None:
    """And comes later."""
    x = tiny.sample(300)
    pending = slow.context().enqueue({"x": x})
    assert not pending.done()
    with pytest.raises(TimeoutError, match=r"isn't done after 0.01 s"):
        pending.result(0.01)
    tiny.check(pending.result(30), x)


def test_errors_come_with_the_result(engine: Engine) -> None:
    """And the context serves on."""
    context = engine.context()
    x = tiny.sample(4)
    bad, good = context.enqueue({"z": x}), context.enqueue({"x": x})
    with pytest.raises(FeedError, match="input 'x' is missing"):
        bad.result(30)
    tiny.check(good.result(30), x)


def test_a_context_is_for_one_thread_at_a_time(slow: Engine) -> None:
    """The second user gets an error that says what to do; the first its results."""
    context = slow.context()
    x = tiny.sample(200)
    results: list[dict[str, np.ndarray]] = []
    user = threading.Thread(target=lambda: results.append(context.execute({"x": x})))
    user.start()
    while not context._running:
        pass
    for call in (context.execute, context.enqueue, context.profile):
        with pytest.raises(ContextError, match=r"in use: another thread .*engine.context\(\)"):
            call({"x": x})
    user.join()
    tiny.check(results[0], x)
    small = tiny.sample(1)
    tiny.check(context.execute({"x": small}), small)


def test_a_context_with_enqueued_work(slow: Engine) -> None:
    """Direct use and other streams must wait; the same stream need not."""
    context = slow.context()
    x = tiny.sample(50)
    first, second = Stream(), Stream()
    pendings: list[Pending] = [context.enqueue({"x": x}, first) for _ in range(2)]
    with pytest.raises(ContextError, match="in use"):
        context.execute({"x": x})
    with pytest.raises(ContextError, match="on another stream"):
        context.enqueue({"x": x}, second)
    pendings.append(context.enqueue({"x": x}))
    for pending in pendings:
        tiny.check(pending.result(30), x)
    tiny.check(context.enqueue({"x": x}, second).result(30), x)


def test_a_failed_run_frees_the_context(engine: Engine) -> None:
    """After wrong feeds it is as before."""
    context = engine.context()
    x = tiny.sample(3)
    for _ in range(3):
        with pytest.raises(FeedError):
            context.execute({"x": x[:, 1:]})
        tiny.check(context.execute({"x": x}), x)


def test_profile(slow: Engine) -> None:
    """Seconds of each step: the first waits a millisecond per row."""
    scale, add = slow.context().profile({"x": tiny.sample(5)})
    assert scale >= 0.005
    assert 0 <= add < scale
