"""The commands of bench/, with stand-ins for the engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from bench import accuracy, chart, compare, machine, memory, runners, soak
from click.testing import CliRunner
from onnx import TensorProto, helper

import enginesmith as es
from enginesmith.plan.plan import Plan, Step, TensorSpec
from enginesmith.tuner.peak import Peak


def model() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negation", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


class Stand:
    """Stands in for an engine of `model`; `factor` -1 is right."""

    threads = 1

    def __init__(self, factor: float = -1) -> None:
        self.factor = factor
        specs = (TensorSpec("x", "float32", ("n", 3)),), (TensorSpec("y", "float32", ("n", 3)),)
        step = Step("pointwise", "neg", "plain()", "k", ("neg",), "n*3", "n*24")
        self.plan = Plan("m", "cpu:avx2", "fp32", (), *specs, (), (), (step,), 0)

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": self.factor * feeds["x"]}

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands write in this test."""
    for module in (compare, accuracy, soak):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "negation.onnx"
    onnx.save(model(), str(path))
    return path


def stand_in(name: str) -> Callable[[runners.Job], runners.Runner]:
    def start(job: runners.Job) -> runners.Runner:
        engine = Stand()
        return runners.Runner(name, lambda: engine(job.feeds), 0.5, engine)

    return start


def test_compare_writes_json_and_chart(
    file: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(compare, "RUNNERS", {n: stand_in(n) for n in compare.RUNNERS})
    monkeypatch.setattr(compare, "peak", lambda target, threads: Peak(threads, 100.0, 10.0))
    monkeypatch.setattr(machine, "wait_until_quiet", lambda: 0.0)
    arguments = ["--models", str(file), "--rounds", "2", "--seconds", "0.001", "--batch", "5"]
    found = CliRunner().invoke(compare.main, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert "negation" in found.output
    data = json.loads((results / "compare.json").read_text())
    (entry,) = data["models"]
    assert entry["inputs"] == {"x": [5, 3]}
    assert entry["flops"] == 15
    assert len(entry["rounds"]) == 2
    assert set(entry["latency"]) == set(compare.RUNNERS)
    assert entry["error"][runners.OURS] == 0
    assert data["machine"]["cores"] >= 1
    assert (results / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_compare_names_the_models_there_are(results: Path) -> None:
    found = CliRunner().invoke(compare.main, ["--models", "resnet51"])
    assert found.exit_code == 2
    assert "resnet50" in found.output


@pytest.mark.parametrize("name", runners.PEERS)
def test_peers_run_fixed_shapes(name: str) -> None:
    pytest.importorskip(name.replace(" ", "").lower())
    feeds = {"x": np.float32([[1, -2, 3], [4, 5, -6]])}
    runner = runners.RUNNERS[name](runners.Job(model(), feeds, 1))
    assert runner.build_seconds > 0
    assert np.array_equal(runner.run()["y"], -feeds["x"])


def test_fixed_shapes_leaves_the_original_alone() -> None:
    symbolic = model()
    fixed = runners.fixed_shapes(symbolic, {"x": np.ones((2, 3), np.float32)})
    dims = [m.graph.input[0].type.tensor_type.shape.dim[0] for m in (fixed, symbolic)]
    assert (dims[0].dim_value, dims[1].dim_param) == (2, "n")


@pytest.mark.parametrize(("factor", "code"), [(-1.0, 0), (-1.001, 1)])
def test_accuracy_passes_and_fails(
    factor: float, code: int, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(accuracy, "CASES", (accuracy.Case("tiny", (1, 3)),))
    monkeypatch.setattr(accuracy.zoo, "load", lambda name: model())
    monkeypatch.setitem(vars(es), "build", lambda *_, **__: Stand(factor))
    found = CliRunner().invoke(accuracy.main, [], catch_exceptions=False)
    assert found.exit_code == code, found.output
    cases = json.loads((results / "accuracy.json").read_text())["cases"]
    assert [case["input"] for case in cases] == ["1x3", "3x3"]
    assert all(case["passed"] == (code == 0) for case in cases)


def test_accuracy_reports_what_cannot_be_built(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise es.BuildError("no kernel for node 'neg'")

    monkeypatch.setattr(accuracy, "CASES", (accuracy.Case("tiny"),))
    monkeypatch.setattr(accuracy.zoo, "load", lambda name: model())
    monkeypatch.setitem(vars(es), "build", fail)
    found = CliRunner().invoke(accuracy.main, [])
    assert found.exit_code == 1
    assert "no kernel for node 'neg'" in found.output
    assert results.joinpath("accuracy.json").exists()


def test_memory_curve_sees_a_leak() -> None:
    held: list[np.ndarray] = []

    def leaking(feeds: Any) -> None:
        held.append(np.ones(1 << 16))

    def tidy(feeds: Any) -> None:
        np.ones(1 << 16)

    feeds = {1: None, 2: None}
    assert soak.memory_curve(leaking, feeds, 100)["growth"] > 20 << 20
    assert soak.memory_curve(tidy, feeds, 100)["growth"] < 4 << 20


def test_concurrency_counts_wrong_results() -> None:
    right = soak.concurrency(Stand(), {"x": np.ones((1, 3), np.float32)}, 0.03)
    assert right["wrong"] == 0
    assert right["one"] > 0 < right["many"]
    calls = iter(range(10**9))
    wrong = soak.concurrency(lambda feeds: {"y": np.array(next(calls))}, {}, 0.03)
    assert wrong["wrong"] > 0


def test_memory_of_a_child_process(file: Path, tmp_path: Path) -> None:
    """A peer's real process: the peak holds what was there before loading."""
    pytest.importorskip("onnxruntime")
    feeds = tmp_path / "feeds.npz"
    np.savez(feeds, x=np.ones((1, 3), np.float32))
    found = memory.measure("ONNX Runtime", file, feeds, 1)
    assert found["peak"] >= found["imported"] > 1 << 20
    assert found["load"] > 0 < found["first"]


def test_chart_of_a_peer_missing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    latency = {"Enginesmith": {"median": 1e-3}, "OpenVINO": {"median": 2e-3}}
    ratio = {"median": 2.0, "low": 1.9, "high": 2.2}
    chart.draw([{"name": "m", "latency": latency, "ratio": ratio}], "caption", tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_busy_share_is_a_share() -> None:
    assert 0 <= machine.busy_share(0.02) <= 1


def test_flops_follow_the_feeds() -> None:
    feeds = {"x": np.ones((7, 3), np.float32)}
    assert compare.flops(SimpleNamespace(**plan_parts()), feeds) == 21


def plan_parts() -> dict[str, Any]:
    plan = Stand().plan
    return {"inputs": plan.inputs, "steps": plan.steps}
