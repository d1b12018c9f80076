"""The engine on hand-made plans: results, memory, threads, life and death."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tests.threads import side_by_side

from enginesmith.errors import ContextError, FeedError, PlanError
from enginesmith.plan.plan import SymbolRange, TensorSpec
from enginesmith.runtime.devices.cpu import check_host
from enginesmith.runtime.engine import Engine, load

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(tiny.plan(), threads=2) as engine:
        yield engine


def status(field: str) -> int:
    """A number of /proc/self/status: VmRSS (kB), Threads, ..."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("slack", [0, 4096])
def test_computes(threads: int, slack: int) -> None:
    """Batches 0, 1 and others in any order, with and without readable surroundings."""
    with Engine(tiny.plan(slack), threads=threads) as engine:
        assert engine.threads == threads
        for batch in (3, 1, 0, 200, 2, 0, 64):
            x = tiny.sample(batch, batch)
            tiny.check(engine({"x": x}), x)
            tiny.check(engine(x), x)


def test_saved_and_loaded(engine: Engine, tmp_path: Path) -> None:
    """A loaded engine is the same engine."""
    engine.save(tmp_path / "a.plan")
    with load(tmp_path / "a.plan", threads=1) as loaded:
        x = tiny.sample(7)
        tiny.check(loaded(x), x)
        assert loaded.inputs == engine.inputs
        assert loaded.outputs == engine.outputs
        loaded.save(tmp_path / "b.plan")
    assert (tmp_path / "a.plan").read_bytes() == (tmp_path / "b.plan").read_bytes()


def test_outputs_own_their_memory(engine: Engine) -> None:
    """Later inferences change nothing, and the arrays outlive the engine."""
    x, other = tiny.sample(5, 1), tiny.sample(5, 2)
    first = engine(x)
    engine(other)
    engine.close()
    tiny.check(first, x)
    assert all(array.flags.writeable for array in first.values())


def test_inputs_are_not_changed(engine: Engine) -> None:
    """Read-only arrays do."""
    x = tiny.sample(5)
    kept = x.copy()
    x.flags.writeable = False
    engine(x)
    np.testing.assert_array_equal(x, kept)


def test_report(engine: Engine) -> None:
    """Names target, symbols, notes, steps, tactics and nodes."""
    for part in (
        str(tiny.TARGET), "input x: float32 (batch, 37)", "output sum: float32 (batch,)",
        "batch: 0 to any, tuned for 1", "fused nothing", "rows(threads=1)", "0.002", "untimed",
        "Add_1, ReduceSum_2",
    ):  # fmt: skip
        assert part in engine.report
    assert "tiny" in repr(engine)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=10))
def test_any_sequence_of_batches(batches: list[int]) -> None:
    """The arena grows, shrinks in use, and is used again."""
    with Engine(tiny.plan(), threads=2) as engine:
        for seed, batch in enumerate(batches):
            x = tiny.sample(batch, seed)
            tiny.check(engine(x), x)


# --- memory ----------------------------------------------------------------------------------


def test_memory_is_flat(engine: Engine) -> None:
    """10,000 inferences with changing batch: no growth after the largest."""
    feeds = [tiny.sample(batch) for batch in (1, 300, 7, 0, 150, *range(2, 120))]
    for x in feeds:
        engine(x)
    gc.collect()
    before = status("VmRSS")
    for i in range(10_000):
        engine(feeds[i * 7 % len(feeds)])
    gc.collect()
    assert status("VmRSS") - before < 2000


def test_engines_are_collected(tmp_path: Path) -> None:
    """Threads end, the code and the plan's file are unmapped, descriptors are closed."""
    Engine(tiny.plan()).save(tmp_path / "a.plan")
    gc.collect()
    x = tiny.sample(9)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        engine = load(tmp_path / "a.plan", threads=3)
        engine(x)
        context = engine.context()
        outputs = context.execute({"x": x})
        dead = weakref.ref(engine)
        del engine, context
        gc.collect()
        assert dead() is None
        tiny.check(outputs, x)
    for worker in threading.enumerate():
        if worker.name.startswith("enginesmith"):
            worker.join(10)
    gc.collect()
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_context_keeps_what_it_needs() -> None:
    """The engine may go first."""
    context = Engine(tiny.plan(), threads=2).context()
    gc.collect()
    x = tiny.sample(4)
    tiny.check(context.execute({"x": x}), x)


def test_two_engines_of_one_process() -> None:
    """Each has its own code, though both are loaded from memory."""
    scaled = replace(tiny.plan(), weights=(tiny.weights() * 3).tobytes())
    other = replace(
        tiny.plan(), code=tiny.shared(tiny.PROGRAM.replace("hidden[i * C + j] + x", "x"))
    )
    x = tiny.sample(6)
    with Engine(tiny.plan()) as a, Engine(scaled) as b, Engine(other) as c:
        tiny.check(a(x), x)
        np.testing.assert_allclose(b(x)["y"], x * tiny.weights() * 3 + x, rtol=1e-5)
        np.testing.assert_array_equal(c(x)["y"], x)


# --- threads ---------------------------------------------------------------------------------


def test_eight_threads_on_one_engine(engine: Engine) -> None:
    """Each gets the results of its own feeds."""

    def work(seed: int) -> None:
        for i in range(60):
            x = tiny.sample((seed * 13 + i) % 40, seed * 100 + i)
            tiny.check(engine(x), x)

    assert side_by_side(work, 8) == []


def test_errors_reach_the_thread_that_made_them(engine: Engine) -> None:
    """Wrong feeds in some threads don't disturb the others."""
    outcomes: list[bool] = []

    def work(wrong: bool) -> None:
        for i in range(40):
            x = tiny.sample(5, i)
            try:
                tiny.check(engine(x[:, :30] if wrong else x), x)
                outcomes.append(not wrong)
            except FeedError:
                outcomes.append(wrong)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 240


def _child(engine: Engine, x: np.ndarray) -> None:
    tiny.check(engine(x), x)
    tiny.check(engine.context().enqueue({"x": x}).result(30), x)


def test_fork(engine: Engine) -> None:
    """A forked child has no threads and makes its own, also when the parent was in the middle of a
    run in another thread; the parent's go on."""
    x = tiny.sample(50)
    slow = Engine(tiny.plan(pause=20_000), threads=2)
    for e in (engine, slow):
        tiny.check(e(x), x)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            slow(x)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        fork = multiprocessing.get_context("fork")
        for e in (engine, slow, slow):
            child = fork.Process(target=_child, args=(e, x))
            child.start()
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        busy.join()
    for e in (engine, slow):
        tiny.check(e(x), x)
    slow.close()


def test_process_ends_with_engines_alive(tmp_path: Path) -> None:
    """No hang and no crash at exit, even in the middle of enqueued work. Several at once, since the
    threads that a crash takes seldom meet on an idle machine."""
    Engine(tiny.plan(pause=100_000)).save(tmp_path / "a.plan")
    script = (
        "import sys, numpy as np\n"
        "from enginesmith.runtime.engine import load\n"
        "engine = load(sys.argv[1], threads=3)\n"
        "x = np.ones((40, 37), np.float32)\n"
        "engine(x)\n"
        "pending = [engine.context().enqueue({'x': x}) for _ in range(3)]\n"
        "print('end', flush=True)\n"
    )
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(run_python, script, str(tmp_path / "a.plan")) for _ in range(16)]
    for done in (job.result() for job in jobs):
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def run_python(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script that can import enginesmith from the source tree."""
    return subprocess.run(
        [sys.executable, "-c", script, *args], text=True, capture_output=True, check=False,
        timeout=60, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip


# --- machines and environments ---------------------------------------------------------------


def test_needs_numpy_alone(tmp_path: Path) -> None:
    """The runtime, with every package but numpy out of reach."""
    Engine(tiny.plan()).save(tmp_path / "a.plan")
    np.save(tmp_path / "x.npy", tiny.sample(6))
    script = (
        "import sys, importlib.abc, numpy as np\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        if top not in sys.stdlib_module_names | {'numpy', 'enginesmith'}:\n"
        "            raise ModuleNotFoundError(f'blocked: {name}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import enginesmith\n"
        "engine = enginesmith.load(sys.argv[1])\n"
        "print(engine(np.load(sys.argv[2]))['sum'].tolist())\n"
        "stages = {n.split('.')[1] for n in sys.modules if n.startswith('enginesmith.')}\n"
        "print(sorted(stages))\n"
    )
    done = run_python(script, str(tmp_path / "a.plan"), str(tmp_path / "x.npy"))
    assert done.returncode == 0, done.stderr
    sums, stages = done.stdout.splitlines()
    np.testing.assert_allclose(eval(sums), tiny.expected(tiny.sample(6))["sum"], rtol=1e-4)
    assert eval(stages) == ["errors", "knobs", "log", "plan", "runtime"]


def test_another_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names what the plan needs, what the machine has and what to do."""
    monkeypatch.setattr("enginesmith.runtime.devices.cpu.host_isas", lambda: ("avx2",))
    plan = replace(tiny.plan(), target="cpu:avx512")
    words = "needs the CPU instruction set 'avx512'.* has avx2; build .*target='cpu:avx2'"
    with pytest.raises(PlanError, match=words):
        Engine(plan)
    monkeypatch.setattr("enginesmith.runtime.devices.cpu.host_isas", tuple)
    with pytest.raises(PlanError, match="this machine has none a plan can use"):
        Engine(plan)


@pytest.mark.parametrize("target", ["cuda:sm_90", "cpu:neon", "", "cpu"])
def test_unknown_targets(target: str) -> None:
    """Of later versions or damaged."""
    with pytest.raises(PlanError, match="the plan was built for"):
        check_host(target)


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are for Linux on x86-64."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PlanError, match="on Linux x86_64; this is Linux aarch64"):
        check_host("cpu:avx2")


def test_code_that_is_no_shared_object() -> None:
    """The loader's message, as an error of ours."""
    with pytest.raises(PlanError, match="the plan's code can't be loaded"):
        Engine(replace(tiny.plan(), code=b"no code at all"))
    empty = tiny.shared("void nothing(void) {}")
    with pytest.raises(PlanError, match="it has no function es_run"):
        Engine(replace(tiny.plan(), code=empty))


def test_without_memfd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A temporary file serves, and goes with the engine."""

    def refuse(*_: object) -> int:
        raise OSError("not permitted")

    monkeypatch.setattr("os.memfd_create", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine = Engine(tiny.plan())
    x = tiny.sample(2)
    tiny.check(engine(x), x)
    assert len(os.listdir(tmp_path)) == 1
    engine.close()
    del engine
    gc.collect()
    assert not os.listdir(tmp_path)


def test_closed(engine: Engine) -> None:
    """Using it is an error; closing again is not."""
    context = engine.context()
    x = tiny.sample(3)
    engine(x)
    engine.close()
    engine.close()
    for call in (
        lambda: engine(x),
        lambda: context.execute({"x": x}),
        lambda: context.enqueue({"x": x}).result(30),
    ):
        with pytest.raises(ContextError, match="the engine is closed"):
            call()


def test_damaged_sizes() -> None:
    """A plan whose sizes can't be computed says so."""
    plan = replace(tiny.plan(), exprs=("batch//(batch - batch)", 64, 0))
    with Engine(plan) as engine, pytest.raises(PlanError, match="a size can't be computed"):
        engine(tiny.sample(2))


def test_symbols_of_expressions() -> None:
    """Dims that are expressions are solved or checked."""
    base = tiny.plan()
    inputs = (TensorSpec("x", "float32", ("2*batch + 1", tiny.COLUMNS)),)
    symbols = (SymbolRange("batch", 0, 1, 100),)
    buffers = tuple(
        replace(b, size=str(b.size).replace("batch", "(2*batch + 1)"))
        if b.kind != "weights" else b
        for b in base.buffers
    )  # fmt: skip
    outputs = (
        TensorSpec("y", "float32", ("2*batch + 1", tiny.COLUMNS)),
        TensorSpec("sum", "float32", ("batch*2 + 1",)),
    )
    plan = replace(
        base, inputs=inputs, symbols=symbols, buffers=buffers, outputs=outputs,
        exprs=("2*batch + 1", 64, 0),
    )  # fmt: skip
    with Engine(plan) as engine:
        for rows in (1, 3, 201):
            x = tiny.sample(rows)
            tiny.check(engine(x), x)
        with pytest.raises(FeedError, match=r"axis 0 is 4, but 2\*batch \+ 1 is 5 \(batch = 2\)"):
            engine(tiny.sample(4))
        with pytest.raises(FeedError, match=r"\(batch\) is 101, but .* built for 0 to 100"):
            engine(tiny.sample(203))
