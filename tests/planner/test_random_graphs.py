"""Random graphs through passes, layouts, storage and lowering: first with numpy in the kernels'
place (many graphs, all but exactly), then as engines (fewer: kernels take time to compile)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tests.passes.graphs import feeds_of
from tests.planner.random_graphs import SIZES, random_graphs
from tests.planner.simulate import lowered, simulate

from enginesmith.ir import dims, reference
from enginesmith.ir.graph import Graph
from enginesmith.ir.printer import print_graph
from enginesmith.ir.verifier import verify
from enginesmith.passes.channels_last import assign_channels_last
from enginesmith.passes.layout import assign_layouts
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.plan.plan import SymbolRange
from enginesmith.plan.target import Target
from enginesmith.planner.assemble import Assembly, assemble
from enginesmith.runtime.devices.host import host_isas
from enginesmith.runtime.engine import Engine
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.tune import Choice, candidates

TARGETS = [Target("cpu", "avx2"), Target("cpu", "avx512"), Target("cuda", "sm_90")]
HERE = [target for target in TARGETS if target.isa in host_isas()]
CACHE = ArtifactCache(Path(os.environ["ENGINESMITH_CACHE"]))
NO_HURRY = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
# The same graphs in every normal run, so that compiled kernels come from the cache; the slow tests
# look for new ones.
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=NO_HURRY)
FEWEST = settings(FEW, max_examples=25)
MANY = settings(FEW, max_examples=400, derandomize=False)
SOME = settings(FEW, max_examples=60, derandomize=False)


def optimized(graph: Graph, target: Target) -> Graph:
    run_pipeline(graph, strided=target.device == "cuda")
    if target.device == "cuda":
        assign_channels_last(graph)
    else:
        assign_layouts(graph, target.lanes)
    verify(graph)
    return graph


Run = tuple[dict[str, int], dict[str, np.ndarray], list[np.ndarray]]


def runs(graph: Graph) -> Iterator[Run]:
    """Per set of sizes: the symbols, feeds and expected outputs (double)."""
    for sizes in SIZES:
        feeds = feeds_of(graph, **sizes)
        yield sizes, feeds, list(reference.run_graph(graph, feeds, "float64").values())


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def check_memory(graph: Graph, target: Target) -> None:
    """Run the planned steps in numpy. The tolerance is for weights that passes fold in float32."""
    note(print_graph(graph))
    wanted = list(runs(graph))
    optimized(graph, target)
    for sizes, feeds, expected in wanted:
        for found, array in zip(simulate(graph, target, feeds, sizes), expected, strict=True):
            assert_close(found, array, 1e-5)


def check_engine(graph: Graph, target: Target, pick: int) -> None:
    """Build and run. pick: which of a step's tactics, modulo how many there are."""
    note(print_graph(graph))
    wanted = list(runs(graph))
    types = [value.type for value in graph.outputs]
    with engine_of(optimized(graph, target), target, pick) as engine:
        for _, feeds, expected in wanted:
            found = engine(feeds)
            for value, array in zip(found.values(), expected, strict=True):
                assert value.dtype == np.float32
                assert_close(value, array, 3e-4)
        empty = {**SIZES[0], "n": 0}
        for value, type_ in zip(engine(feeds_of(graph, **empty)).values(), types, strict=True):
            assert value.shape == tuple(dims.evaluate(d, empty) for d in type_.shape)


def engine_of(graph: Graph, target: Target, pick: int) -> Engine:
    steps, storage = lowered(graph, target, SIZES[0])
    choices = {}
    for i, step in enumerate(steps):
        tactics = candidates(step.family, step.problem, target)
        choices[i] = Choice(tactics[pick % len(tactics)], ())
    symbols = {name for value in graph.inputs for d in value.shape for name in dims.symbols_of(d)}
    ranges = tuple(SymbolRange(name, 0, SIZES[0][name], None) for name in sorted(symbols))
    parts = Assembly(graph, steps, choices, storage.storages, ranges, target, "fp32")
    return Engine(assemble(parts, CACHE), threads=2)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(graph=random_graphs())
@FEW
def test_planned_memory_gives_the_right_numbers(target: Target, graph: Graph) -> None:
    check_memory(graph, target)


@pytest.mark.parametrize("target", HERE, ids=str)
@given(graph=random_graphs(longest=8), pick=st.integers(0, 7))
@FEWEST
def test_engines_give_the_right_numbers(target: Target, graph: Graph, pick: int) -> None:
    check_engine(graph, target, pick)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(graph=random_graphs())
@MANY
def test_more_planned_memory(target: Target, graph: Graph) -> None:
    check_memory(graph, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", HERE, ids=str)
@given(graph=random_graphs(), pick=st.integers(0, 7))
@SOME
def test_more_engines(target: Target, graph: Graph, pick: int) -> None:
    check_engine(graph, target, pick)
