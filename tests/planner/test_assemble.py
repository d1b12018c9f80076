"""The plan put together: buffers, weights, sizes, records."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.passes.graphs import Builder

from enginesmith.ir import dims
from enginesmith.ir.graph import Graph, constant
from enginesmith.passes.layout import assign_layouts
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.plan.plan import Plan, SymbolRange
from enginesmith.plan.target import Target
from enginesmith.planner.assemble import SLACK, Assembly, aligned, assemble, program_of
from enginesmith.planner.lower import lower
from enginesmith.planner.storage import place
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.tune import Choice, candidates

N, H, W = (dims.symbol(name) for name in "nhw")
TARGET = Target("cpu", "avx2")
TYPICAL = {"n": 1, "h": 6, "w": 7}
CACHE = ArtifactCache(Path(os.environ["ENGINESMITH_CACHE"]))


def parts_of(graph: Graph) -> Assembly:
    run_pipeline(graph)
    assign_layouts(graph, TARGET.lanes)
    storage = place(graph)
    steps = [lower(step, storage, TARGET.lanes, TYPICAL) for step in storage.steps]
    choices = {
        i: Choice(candidates(step.family, step.problem, TARGET)[0], ())
        for i, step in enumerate(steps)
    }
    ranges = tuple(SymbolRange(name, 0, size, None) for name, size in TYPICAL.items())
    return Assembly(graph, steps, choices, storage.storages, ranges, TARGET, "fp32")


def net() -> Graph:
    """Two equal branches and a product."""
    b = Builder()
    x = b.input(N, 16, H, W)
    w = b.const(16, 16, 3, 3)
    branches = []
    for value in (b.call("tanh", x), b.call("abs", x)):
        y = b.conv(value, 16, 3, pad=1)
        y.producer.set_input(1, w)  # type: ignore[union-attr]
        branches.append(y)
    mean = b.reduce("mean", b.call("add", *branches), 2, 3, keepdims=False)
    return b.result(b.matmul(mean, constant("fc", w.data[:, :5, 0, 0])), mean)  # type: ignore[index]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return assemble(parts_of(net()), CACHE)


def test_buffers_come_as_inputs_outputs_weights_arena(plan: Plan) -> None:
    kinds = [buffer.kind for buffer in plan.buffers]
    assert kinds[:4] == ["input", "output", "output", "weights"]
    assert set(kinds[4:]) == {"arena"}
    assert plan.buffers[0].size == "64*h*n*w"
    assert (plan.buffers[1].index, plan.buffers[2].index) == (0, 1)


def test_arena_buffers_live_within_the_program_and_may_be_read_past(plan: Plan) -> None:
    for buffer in plan.buffers:
        if buffer.kind == "arena":
            assert 0 <= buffer.first <= buffer.last < len(plan.steps)
            assert buffer.slack == SLACK


def test_equal_steps_share_one_kernel(plan: Plan) -> None:
    cleared = {step.kernel for step in plan.steps if step.op == "clear_halo"}
    assert len(cleared) == 1 and sum(step.op == "clear_halo" for step in plan.steps) == 2
    assert {step.kernel for step in plan.steps} == set(plan.sources)


def test_equal_constants_are_stored_once() -> None:
    def weights(same: bool) -> int:
        b = Builder()
        x = b.input(N, 40)
        w = b.const(40, 40)
        second = w if same else b.const(40, 40)
        return len(
            assemble(
                parts_of(b.result(b.matmul(x, w), b.matmul(b.call("tanh", x), second))), CACHE
            ).weights
        )

    assert weights(False) - weights(True) >= 40 * 40 * 4


def test_weights_are_aligned_in_memory_and_readable_past_the_end(plan: Plan) -> None:
    array = np.frombuffer(plan.weights, np.uint8)
    assert array.ctypes.data % 64 == 0
    assert not array[-SLACK:].any() and array[:-SLACK].any()
    assert not array.flags.writeable


def test_pieces_keep_their_order() -> None:
    whole = aligned([b"ab" * 32, b"", b"c" * 64])
    assert bytes(whole) == b"ab" * 32 + b"c" * 64


def test_sizes_are_expressions_over_the_models_symbols(plan: Plan) -> None:
    assert {"n", "h", "w"} <= set(plan.exprs)
    assert len(set(plan.exprs)) == len(plan.exprs)
    (mean,) = (step for step in plan.steps if step.op == "reduce")
    assert mean.problem == "nx16xhxw -> nx16x1x1"


def test_steps_remember_their_nodes_and_their_work(plan: Plan) -> None:
    (product,) = (step for step in plan.steps if step.op == "matmul")
    assert product.nodes == ("n6",)
    assert product.flops == "160*n"
    assert product.timings == ()
    assert any("untuned" in note for note in plan.notes)


def test_the_program_launches_every_step_in_order(plan: Plan) -> None:
    program = program_of(parts_of(net()), CACHE)
    comments = [line.split(": ")[1] for line in program.splitlines() if "// " in line]
    assert comments == [step.op for step in plan.steps]
    assert program.count("es_parallel(pool, k_") >= len(plan.steps)


def test_the_same_parts_give_the_same_plan(plan: Plan) -> None:
    again = assemble(parts_of(net()), CACHE)
    assert replace(again, weights=b"") == replace(plan, weights=b"")
    assert bytes(again.weights) == bytes(plan.weights)
