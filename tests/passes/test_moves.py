"""Chains of copies that become one gather."""

from __future__ import annotations

from typing import Any

import pytest
from tests.passes.graphs import Builder, ops, preserves

from enginesmith.ir import dims
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import ConcatAttrs
from enginesmith.passes.moves import moves
from enginesmith.passes.pipeline import run_pipeline

N = dims.symbol("n")


def rolled(b: Builder, x: Value, axis: int, by: int) -> Value:
    """The value with the first `by` of an axis moved behind the others."""
    shape = list(x.shape)
    parts = []
    for start, size in ((by, shape[axis] - by), (0, by)):
        starts = [start if i == axis else 0 for i in range(len(shape))]
        parts.append(b.slice(x, starts, [size if i == axis else d for i, d in enumerate(shape)]))
    return b.emit("concat", parts, ConcatAttrs(axis))


def windows(b: Builder, x: Value, size: int) -> Value:
    """(n, h, w, c) to (windows, size * size, c)."""
    n, h, w, c = x.shape
    split = b.reshape(x, n, h // size, size, w // size, size, c)
    turned = b.transpose(split, 0, 1, 3, 2, 4, 5)
    return b.reshape(turned, n * (h // size) * (w // size), size * size, c)


@pytest.mark.parametrize("batch", [N, 1, 3])
def test_shifted_windows(batch: Any) -> None:
    b = Builder()
    x = b.call("exp", b.input(batch, 6, 9, 16))
    graph = b.result(b.call("exp", windows(b, rolled(b, rolled(b, x, 1, 2), 2, 1), 3)))
    assert preserves(graph, run_pipeline, n=4)
    assert ops(graph).count("gather") == 1
    assert not {"slice", "concat", "transpose"} & set(ops(graph))
    (gather,) = (n for n in graph.nodes if n.op == "gather")
    assert gather.inputs[1].shape == (54,), "for one image"
    assert graph.notes == ["replaced 1 chain of copies by a gather"]


def test_neighbours_side_by_side() -> None:
    """Swin's patch merging: four strided slices as one row; runs are the channels of one."""
    b = Builder()
    x = b.input(N, 4, 6, 8)
    parts = [b.slice(x, (0, i, j, 0), (N, 2, 3, 8), 1, 2, 2, 1) for i in (0, 1) for j in (0, 1)]
    graph = b.result(b.emit("concat", parts, ConcatAttrs(3)))
    assert preserves(graph, run_pipeline, n=3)
    assert [op for op in ops(graph) if op != "reshape"] == ["gather"]


def test_images_that_change_places() -> None:
    b = Builder()
    graph = b.result(b.call("exp", rolled(b, b.input(3, 4, 8), 0, 1)))
    assert preserves(graph, run_pipeline)
    (gather,) = (n for n in graph.nodes if n.op == "gather")
    assert gather.inputs[1].shape == (12,), "for all images at once"


@pytest.mark.parametrize("why", ["short runs", "two sources", "read between", "batch", "sizes"])
def test_other_chains_stay(why: str) -> None:
    b = Builder()
    h = dims.symbol("h") if why == "sizes" else 6
    x = b.input(N, h, 9, 4 if why == "short runs" else 16)
    first = rolled(b, x, 2, 1)
    outputs = []
    if why == "two sources":
        first = b.emit("concat", [first, b.input(N, h, 9, 16)], ConcatAttrs(2))
    if why == "read between":
        outputs = [b.call("exp", first)]
    if why == "batch":
        first = b.transpose(first, 1, 0, 2, 3)
    second = first if why in ("short runs", "sizes", "batch") else rolled(b, first, 1, 2)
    graph = b.result(b.call("exp", second), *outputs)
    changed = preserves(graph, moves, n=3, h=6)
    # A chain that is read between still has its second half.
    assert changed == (why == "read between")
    assert ops(graph).count("gather") == changed * 2
