"""Random graphs through passes, layouts, storage and lowering: first with numpy in the kernels'
place (many graphs, exactly), then as real engines (few)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from tests.passes.graphs import feeds_of
from tests.planner.random_graphs import SIZES, random_graphs
from tests.planner.simulate import simulate

from enginesmith.ir import reference
from enginesmith.ir.graph import Graph
from enginesmith.ir.printer import print_graph
from enginesmith.ir.verifier import verify
from enginesmith.passes.layout import assign_layouts
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.plan.target import Target

TARGETS = (Target("cpu", "avx2"), Target("cpu", "avx512"))
SLOW_TO_DRAW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def expectations(
    graph: Graph,
) -> list[tuple[dict[str, int], dict[str, np.ndarray], list[np.ndarray]]]:
    """Per set of sizes: the symbols, feeds and outputs (double)."""
    found = []
    for sizes in SIZES:
        feeds = feeds_of(graph, **sizes)
        found.append((sizes, feeds, [*reference.run_graph(graph, feeds, "float64").values()]))
    return found


@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(graph=random_graphs())
@settings(max_examples=60, deadline=None, suppress_health_check=SLOW_TO_DRAW)
def test_planned_memory_gives_the_right_numbers(target: Target, graph: Graph) -> None:
    note(print_graph(graph))
    wanted = expectations(graph)
    run_pipeline(graph)
    assign_layouts(graph, target.lanes)
    verify(graph)
    for sizes, feeds, expected in wanted:
        found = simulate(graph, target, feeds, sizes)
        for value, array in zip(found, expected, strict=True):
            scale = np.abs(array).max(initial=0)
            np.testing.assert_allclose(value, array, rtol=1e-4, atol=1e-5 * scale)
