"""Gathers that become fewer and larger."""

from __future__ import annotations

import numpy as np
import pytest
from tests.passes.graphs import Builder, ops, preserves

from enginesmith.ir import dims
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.ops import ConcatAttrs, GatherAttrs
from enginesmith.passes.gathers import lookups, picks
from enginesmith.passes.pipeline import run_pipeline

N = dims.symbol("n")


def lookup(b: Builder, ids: Value, column: int, table: Value, rank: int) -> Value:
    """(n, 4) or (n, 1, 4)."""
    cut = b.reshape(b.slice(ids, (0, column), (N, 1)), N)
    rows = b.emit("gather", [table, cut], GatherAttrs("axis", 0))
    return b.reshape(rows, N, 1, 4) if rank == 3 else rows


def concat(b: Builder, *parts: Value) -> Graph:
    return b.result(b.emit("concat", parts, ConcatAttrs(1)))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_lookups_by_neighbouring_columns(rank: int, shared: bool) -> None:
    """Negative indices count from the end of each one's own table."""
    b = Builder()
    x = b.input(N, 4) if rank == 2 else b.input(N, 1, 4)
    ids = b.input(N, 5, dtype="int64")
    one = b.const(9, 4)
    tables = [one if shared else b.const(9 + i, 4) for i in range(3)]
    found = [lookup(b, ids, 1 + i, table, rank) for i, table in enumerate(tables)]
    graph = concat(b, x, *found, x)
    assert preserves(graph, run_pipeline, n=6)
    assert ops(graph).count("gather") == 1
    (gather,) = (n for n in graph.nodes if n.op == "gather")
    assert gather.inputs[0].shape == (9 if shared else 9 + 10 + 11, 4)
    assert graph.notes == ["merged 2 lookups with neighbours"]


def test_runs_end_where_columns_do() -> None:
    """Columns 0, 1 and 3, 4 of one tensor, and 5 of another."""
    b = Builder()
    ids, others = b.input(N, 6, dtype="int64"), b.input(N, 6, dtype="int64")
    parts = [lookup(b, ids, c, b.const(9, 4), 2) for c in (0, 1, 3, 4)]
    graph = concat(b, *parts, lookup(b, others, 5, b.const(9, 4), 2))
    assert preserves(graph, lookups, n=5)
    assert ops(graph).count("gather") == 1 + 1 + 1 + 4, "the old ones are dead code"
    assert len(graph.nodes[-1].inputs) == 3


@pytest.mark.parametrize("why", ["read elsewhere", "other widths", "a table of the caller's"])
def test_other_lookups_stay(why: str) -> None:
    b = Builder()
    ids = b.input(N, 4, dtype="int64")
    table = b.input(9, 4) if why == "a table of the caller's" else b.const(9, 4)
    first = lookup(b, ids, 0, table, 2)
    if why == "other widths":
        cut = b.reshape(b.slice(ids, (0, 1), (N, 1)), N)
        second = b.emit("gather", [b.const(9, 3), cut], GatherAttrs("axis", 0))
    else:
        second = lookup(b, ids, 1, table, 2)
    y = b.emit("concat", [first, second], ConcatAttrs(1))
    outputs = [y, b.call("exp", first), b.call("exp", second)]
    graph = b.result(*(outputs if why == "read elsewhere" else outputs[:1]))
    assert not preserves(graph, lookups, n=3)


@pytest.mark.parametrize("shape", [(3, 4, N), (3, 4), (3, 4, 2, N)])
def test_picks(shape: tuple[object, ...]) -> None:
    b = Builder()
    places = constant("i", np.array([[0, 1], [2, -1], [-3, 0], [1, 1], [2, 3]]))
    graph = b.result(b.emit("gather", [b.input(*shape), places], GatherAttrs("nd")))
    assert preserves(graph, picks, n=3)
    assert ops(graph) == ["reshape", "gather"]
    assert graph.nodes[1].attrs == GatherAttrs("axis", 0)


@pytest.mark.parametrize("perm", [(1, 2, 0), (2, 3, 0, 1), (1, 2, 0, 3)])
def test_picks_from_axes_in_the_middle(perm: tuple[int, ...]) -> None:
    """x[:, i, j], as exporters write it."""
    b = Builder()
    sizes = {0: N, 1: 3, 2: 4, 3: 5}
    x = b.input(*(sizes[axis] for axis in range(len(perm))))
    places = constant("i", np.array([[0, 1], [2, 3], [2, 0]]))
    picked = b.emit("gather", [b.transpose(x, *perm), places], GatherAttrs("nd"))
    rank = len(perm) - 1
    back = (1, 0, *range(2, rank)) if perm[0] == 1 else (1, 2, 0)
    graph = b.result(b.transpose(picked, *back))
    assert preserves(graph, run_pipeline, n=2)
    assert "transpose" not in ops(graph)
    assert ops(graph).count("gather") == 1


def test_places_outside_are_left_to_the_gather() -> None:
    b = Builder()
    places = constant("i", np.array([[0, 4]]))
    graph = b.result(b.emit("gather", [b.input(3, 4), places], GatherAttrs("nd")))
    assert not picks(graph)
