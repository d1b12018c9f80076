"""Host steps on the CPU, end to end: right, loud, safe with threads and forks, errors, plans."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests import host_models
from tests.frontend.graphs import model, node
from tests.threads import side_by_side

import enginesmith as es
from enginesmith import onnx_backend
from enginesmith.cli.app import app
from enginesmith.plan import file
from enginesmith.plan.plan import HostCall, Plan
from enginesmith.runtime.host_node import HostNode, NodeError, check_node, node_text


def build(name: str, **options: Any) -> es.Engine:
    return es.build(host_models.MODELS[name](), tuning=False, threads=2, **options)


@pytest.mark.parametrize("name", host_models.MODELS)
def test_what_onnx_runtime_computes(name: str) -> None:
    """For several batches, and for an empty one."""
    engine, proto = build(name), host_models.MODELS[name]()
    for n, seed in ((2, 0), (2, 1), (5, 2), (1, 3)):
        feeds = host_models.feeds(proto, n, seed)
        host_models.check(proto, feeds, engine(feeds))
    empty = engine(host_models.feeds(proto, 0))
    for spec, array in zip(engine.outputs, empty.values(), strict=True):
        assert array.shape == tuple(0 if d == "n" else d for d in spec.shape)


def test_a_build_says_what_runs_on_the_host(caplog: pytest.LogCaptureFixture) -> None:
    """The report, the notes and a warning; and it can be forbidden."""
    with caplog.at_level(logging.WARNING, "enginesmith"):
        engine = build("between")
    (warning,) = caplog.messages
    assert "node top (TopK) runs on the host" in warning
    assert warning in engine.plan.notes and warning in engine.report
    (step,) = (s for s in engine.plan.steps if s.op.startswith("host"))
    assert (step.op, step.tactic, step.nodes) == ("host TopK", "onnx_reference()", ("top",))
    with pytest.raises(es.UnsupportedError, match="top: no importer for operator TopK"):
        build("between", host_steps=False)
    assert es.check_model(host_models.between()) == ()
    (problem,) = es.check_model(host_models.between(), host_steps=False)
    assert problem.where == "top"


def test_tuning_leaves_it_alone(tmp_path: Path) -> None:
    """A plan with such a step can be tuned, from the graph that it carries."""
    tuned = es.tune(build("between", cache=tmp_path), threads=2, budget=3, cache=tmp_path)
    assert any(step.timings for step in tuned.plan.steps)
    (step,) = (s for s in tuned.plan.steps if s.op.startswith("host"))
    assert step.timings == ()
    feeds = host_models.feeds(host_models.between(), 3)
    host_models.check(host_models.between(), feeds, tuned(feeds))


def test_threads_and_contexts(tmp_path: Path) -> None:
    """One engine's contexts in several threads, asynchronous runs, two engines at once."""
    proto, engines = host_models.indices(), [build("indices"), build("indices")]

    def work(seed: int) -> None:
        context = engines[seed % 2].context()
        for turn in range(20):
            feeds = host_models.feeds(proto, 1 + turn % 3, 100 * seed + turn)
            host_models.check(proto, feeds, context.execute(feeds))
        pending = [context.enqueue(host_models.feeds(proto, 2, s)) for s in range(4)]
        for s, item in enumerate(pending):
            host_models.check(proto, host_models.feeds(proto, 2, s), item.result())

    assert side_by_side(work, 4) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork() -> None:
    """The child's engine works, with contexts from before and after."""
    proto, engine = host_models.indices(), build("indices")
    context, feeds = engine.context(), host_models.feeds(host_models.indices(), 3)
    want = context.execute(feeds)["y"]
    engine(feeds)
    child = os.fork()
    if child == 0:
        right = [engine(feeds)["y"], context.execute(feeds)["y"]]
        os._exit(0 if all(np.array_equal(want, y) for y in right) else 1)
    assert os.waitpid(child, 0)[1] == 0
    host_models.check(proto, feeds, engine(feeds))


def test_profile_times_it() -> None:
    engine = build("between")
    feeds, context = host_models.feeds(host_models.between(), 2), engine.context()
    runs = [context.profile(feeds) for _ in range(20)]
    assert {len(times) for times in runs} == {len(engine.plan.steps)} and np.min(runs) >= 0
    assert np.argmax(np.min(runs, axis=0)) == engine.plan.hosts[0].step  # other work disturbs some


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ArithmeticError, KeyboardInterrupt])
def test_an_error_in_the_step_is_the_run_s(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """Steps after it read zeros, not what memory held: they use them as indices."""
    proto, engine = host_models.indices(), build("indices")
    context, feeds = engine.context(), host_models.feeds(host_models.indices(), 3)
    host_models.check(proto, feeds, context.execute(feeds))
    real = HostNode.__call__

    def fail(self: HostNode, inputs: Any) -> Any:
        raise kind("on purpose")

    monkeypatch.setattr(HostNode, "__call__", fail)
    expected: Any = kind if kind is KeyboardInterrupt else es.EnginesmithError
    with pytest.raises(expected, match="on purpose") as caught:
        context.execute(feeds)
    if kind is ArithmeticError:
        assert "node top (TopK) failed on the host: ArithmeticError" in str(caught.value)
        with pytest.raises(es.EnginesmithError, match="on purpose"):
            context.enqueue(feeds).result()
    monkeypatch.setattr(HostNode, "__call__", real)
    host_models.check(proto, feeds, context.execute(feeds))


def test_results_of_another_shape_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written nowhere."""
    engine = build("alone")
    feeds = host_models.feeds(host_models.alone(), 2)
    monkeypatch.setattr(
        HostNode, "__call__", lambda self, inputs: [np.zeros((2, 4)), np.zeros((2, 3), np.int64)]
    )
    with pytest.raises(es.EnginesmithError, match=r"made float64 \(2, 4\) where the model has fl"):
        engine(feeds)


def test_operands_can_not_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build("alone")
    feeds = host_models.feeds(host_models.alone(), 2)

    def change(self: HostNode, inputs: Any) -> Any:
        inputs[0][...] = 0

    monkeypatch.setattr(HostNode, "__call__", change)
    with pytest.raises(es.EnginesmithError, match="read-only"):
        engine(feeds)


# --- plans ---------------------------------------------------------------------------------------


def loaded(plan: Plan, path: Path) -> es.Engine:
    file.save(plan, path)
    return es.load(path, threads=1)


def test_a_saved_plan_runs(tmp_path: Path) -> None:
    proto, engine = host_models.between(), build("between")
    feeds = host_models.feeds(proto, 2)
    host_models.check(proto, feeds, loaded(engine.plan, tmp_path / "a.plan")(feeds))


def test_without_onnx_the_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be read, and other plans run."""
    path = tmp_path / "a.plan"
    build("between").save(path)
    relu = es.build(model([node("Relu", "x", "y")], {"x": [3]}, ["y"]), tuning=False)
    monkeypatch.setitem(sys.modules, "onnx.reference", None)
    with pytest.raises(es.PlanError, match=r"node top \(TopK\) .*package onnx is missing.*pip ins"):
        es.load(path)
    assert file.load(path).hosts[0].operator == "TopK"
    relu.save(tmp_path / "b.plan")
    np.testing.assert_array_equal(es.load(tmp_path / "b.plan")(np.ones(3, np.float32))["y"], 1)


def _subgraph() -> Any:
    from onnx import helper

    body = helper.make_graph([], "body", [], [])
    return helper.make_node("If", ["x0"], ["y0"], then_branch=body, else_branch=body)


def _external() -> Any:
    from onnx import TensorProto, helper

    tensor = TensorProto(data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return helper.make_node("ConstantOfShape", ["x0"], ["y0"], value=tensor)


def _node(op: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(op, ["x0", "x1"], ["y0", "y1"], **attributes)


FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "a subgraph": (_subgraph, "it has subgraphs"),
    "another file": (_external, "its attribute value lies in another file"),
    "another domain": (lambda: _node("TopK", domain="com.example"), "isn't ONNX's own"),
    "random": (lambda: _node("Bernoulli"), "its results are random"),
    "unknown": (lambda: _node("Fancy"), "onnx.reference doesn't implement it"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_plan_runs_nothing_unasked(tmp_path: Path, kind: str) -> None:
    """Operators of ONNX's own domain alone, which see their operands and nothing else."""
    make, reason = FOREIGN[kind]
    plan = build("alone").plan
    foreign = make()
    call = replace(plan.hosts[0], operator=foreign.op_type, node=node_text(foreign))
    with pytest.raises(es.PlanError, match=f"node top .*{reason}"):
        loaded(replace(plan, hosts=(call,)), tmp_path / "a.plan")


def test_a_node_by_reference_is_refused() -> None:
    foreign = _node("TopK")
    attribute = foreign.attribute.add(name="axis", type=2)
    attribute.ref_attr_name = "axis"
    with pytest.raises(NodeError, match="refers to a function's"):
        check_node(foreign)


DAMAGED: dict[str, tuple[Callable[[HostCall], HostCall], str]] = {
    "step": (lambda c: replace(c, step=9), "host step 0 belongs to step 9"),
    "outputs": (lambda c: replace(c, outputs=()), "has no outputs"),
    "dtype": (
        lambda c: replace(c, inputs=(replace(c.inputs[0], dtype="O"), *c.inputs[1:])),
        "unknown type 'O'",
    ),
    "symbol": (
        lambda c: replace(c, inputs=(replace(c.inputs[0], shape=("q", 10)), *c.inputs[1:])),
        "unknown symbols",
    ),
    "buffer": (
        lambda c: replace(
            c, outputs=(replace(c.outputs[0], place=replace(c.outputs[0].place, buffer=99)),)
        ),
        "doesn't have",
    ),
    "constants": (lambda c: replace(c, outputs=c.inputs[1:]), "writes what must not change"),
    "bytes": (lambda c: replace(c, node="!"), "its bytes aren't a node"),
    "operands": (lambda c: replace(c, inputs=c.inputs[:1]), "2 inputs for 1 operands"),
    "other operator": (lambda c: replace(c, operator="Hardmax"), "it is a TopK"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_plan_is_refused(tmp_path: Path, kind: str) -> None:
    change, reason = DAMAGED[kind]
    plan = build("alone").plan
    with pytest.raises(es.PlanError, match=reason):
        loaded(replace(plan, hosts=(change(plan.hosts[0]),)), tmp_path / "a.plan")


def test_a_step_outside_of_its_memory_is_refused(tmp_path: Path) -> None:
    plan = build("alone").plan
    (call,) = plan.hosts
    large = replace(call.inputs[0], shape=(1 << 20, 10))
    engine = loaded(replace(plan, hosts=(replace(call, inputs=(large, *call.inputs[1:])),)),
                    tmp_path / "a.plan")  # fmt: skip
    with pytest.raises(es.PlanError, match="outside of its memory"):
        engine(host_models.feeds(host_models.alone(), 2))


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.onnx"
    path.write_bytes(host_models.between().SerializeToString())
    return path


def test_the_commands_show_it(saved: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        found = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
        assert found.exit_code == code, found.output
        return found.output

    text = run("check", str(saved), "--accuracy")
    assert "every node can be built, 1 of them on the host" in text
    assert "node top (TopK) runs on the host through onnx.reference" in text
    assert "top" in run("check", str(saved), "--no-host-steps", code=1)
    text = run("build", str(saved), "-o", "m.plan", "--no-tune")
    assert "host step: node top (TopK)" in text
    assert "TopK" in run("build", str(saved), "-o", "n.plan", "--no-host-steps", code=1)
    text = run("inspect", "m.plan")
    assert "host TopK" in text and "onnx_reference()" in text
    assert "host TopK" in run("bench", "m.plan", "--duration", "200ms")


def test_the_backend_leaves_them_out() -> None:
    """Unless asked for: its results are compared with those of onnx.reference."""
    with pytest.raises(es.UnsupportedError, match="TopK"):
        onnx_backend.prepare(host_models.alone())
    assert not onnx_backend.is_compatible(host_models.alone())
    assert onnx_backend.is_compatible(host_models.alone(), host_steps=True)
    feeds = host_models.feeds(host_models.alone(), 2)
    found = onnx_backend.run_model(host_models.alone(), [feeds["x"]], host_steps=True)
    host_models.check(host_models.alone(), feeds, dict(zip("vi", found, strict=True)))
