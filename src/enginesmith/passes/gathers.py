"""Gathers by fewer and larger steps.

`picks`: elements at constant places of several axes are elements of one axis:

    %t = transpose(%x) perm=(1, 2, 0)                  (b, 27, 27) -> (27, 27, b)
    %y = gather(%t, const (351, 2)) kind=nd            (351, b)
        ->  %r = reshape(%x)                           (b, 729)
            %g = gather(%r, const (351)) axis=1        (b, 351)
            %y = transpose(%g) perm=(1, 0)             (cancels with one that follows)

`lookups`: neighbours of a concat that look up rows, each in a table of its own, by neighbouring
columns of one tensor (the embeddings of a recommender) look them up in one table:

    %i = reshape(slice(%ids) column i)                 (b)
    %e = reshape(gather(%table_i, %i) axis=0)          (b, 1, n), for each of k
    %y = concat(%x, %e0, %e1, ...) axis=1
        ->  %g = gather(all tables, %ids + first rows) (b, k, n)
            %y = concat(%x, %g) axis=1
"""  # fmt: skip

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.expr import Arg, Const, call
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.ops import (
    ConcatAttrs,
    GatherAttrs,
    PointwiseAttrs,
    ReshapeAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from enginesmith.ir.types import TensorType
from enginesmith.passes.rewrite import Edits, note

_ROWS = GatherAttrs("axis", 0)


# -- picks -----------------------------------------------------------------------------------------


def picks(graph: Graph) -> bool:
    """One sweep in topological order."""
    edits = Edits(graph)
    for node in edits.nodes():
        if node.attrs == GatherAttrs("nd"):
            _pick(edits, node)
    return edits.apply()


def _pick(edits: Edits, node: Node) -> None:
    data, indices = node.inputs
    if indices.data is None or indices.type.rank != 2:
        return
    count, depth = indices.data.shape
    sizes = [d for d in data.shape[:depth] if isinstance(d, int)]
    if len(sizes) < depth or 0 in sizes:
        return
    wrapped = np.where(indices.data < 0, indices.data + np.array(sizes), indices.data)
    if (wrapped < 0).any() or (wrapped >= np.array(sizes)).any():
        return  # an error of the model, which the gather finds
    x, at = _untransposed(data, depth)
    shape = (*x.shape[:at], int(np.prod(sizes)), *x.shape[at + depth :])
    flat = edits.produce(node, "reshape", [x], ReshapeAttrs(), x.type.with_shape(shape))
    places = np.ravel_multi_index(tuple(wrapped.T), tuple(sizes)).astype(np.int64)
    inputs = [flat, constant(indices.name, places)]
    if at == 0:
        edits.replace(node, "gather", inputs, _ROWS)
        return
    picked = x.type.with_shape((*shape[:at], count, *shape[at + 1 :]))
    value = edits.produce(node, "gather", inputs, GatherAttrs("axis", at), picked)
    rest = [axis for axis in range(len(shape)) if axis != at]
    edits.replace(node, "transpose", [value], TransposeAttrs((at, *rest)))


def _untransposed(data: Value, depth: int) -> tuple[Value, int]:
    """(x, axis): `data` is x with `depth` axes from `axis` on moved to the front."""
    node = data.producer
    if node is not None and isinstance(node.attrs, TransposeAttrs):
        perm = node.attrs.perm
        at = perm[0]
        moved = tuple(range(at, at + depth))
        rest = tuple(axis for axis in range(len(perm)) if axis not in moved)
        if perm == (*moved, *rest):
            return node.inputs[0], at
    return data, 0


# -- lookups ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lookup:
    """Rows of `table` (rows, n) by column `column` of `ids` (b, columns)."""

    table: Value
    ids: Value
    column: int
    gather: Node


def lookups(graph: Graph) -> bool:
    """Every concat along axis 1."""
    edits = Edits(graph)
    count = 0
    for node in edits.nodes():
        if node.attrs == ConcatAttrs(1):
            count += _merge_lookups(edits, node)
    note(graph, count, "merged {} lookup with its neighbour", "merged {} lookups with neighbours")
    return edits.apply()


def _merge_lookups(edits: Edits, node: Node) -> int:
    """How many lookups of the concat became part of others."""
    inputs: list[Value] = []
    run: list[_Lookup] = []
    merged = 0

    def finish() -> None:
        nonlocal merged
        if len(run) > 1:
            merged += len(run) - 1
            inputs[len(inputs) - len(run) :] = [_merged(edits, node, run)]
        run.clear()

    for value in node.inputs:
        found = _lookup(edits.graph, value)
        if found is None or (run and not _follows(run[-1], found)):
            finish()
        inputs.append(value)
        if found is not None:
            run.append(found)
    finish()
    if merged:
        edits.replace(node, "concat", inputs, node.attrs)
    return merged


def _lookup(graph: Graph, value: Value) -> _Lookup | None:
    """The lookup whose rows `value` is, as (b, n) or (b, 1, n)."""
    node = value.producer
    if node is not None and node.op == "reshape" and value.type.rank == 3 and value.shape[1] == 1:
        if not graph.single_use(value):
            return None
        value = node.inputs[0]
        node = value.producer
    if node is None or node.attrs != _ROWS or not graph.single_use(value):
        return None
    table, rows = node.inputs
    flatten = rows.producer
    if table.data is None or table.type.rank != 2 or rows.type.rank != 1:
        return None
    cut = flatten.inputs[0].producer if flatten is not None and flatten.op == "reshape" else None
    if cut is None or not isinstance(cut.attrs, SliceAttrs) or cut.output.type.rank != 2:
        return None
    first, column = cut.attrs.starts
    if first != 0 or cut.attrs.steps != (1, 1) or not isinstance(column, int):
        return None
    whole = (cut.inputs[0].shape[0], 1)
    if not dims.same_shape(cut.output.shape, whole):
        return None
    return _Lookup(table, cut.inputs[0], column, node)


def _follows(before: _Lookup, after: _Lookup) -> bool:
    a, b = before.table, after.table
    next_column = before.ids is after.ids and after.column == before.column + 1
    return next_column and a.dtype == b.dtype and a.shape[1] == b.shape[1]


def _merged(edits: Edits, node: Node, run: list[_Lookup]) -> Value:
    """What the concat reads instead of the lookups: (b, k, n) or (b, k * n)."""
    k, ids, table = len(run), run[0].ids, run[0].table
    sources = [source for lookup in run for source in lookup.gather.sources]
    tables = list({id(lookup.table): lookup.table for lookup in run}.values())
    heights = [int(t.shape[0]) for t in tables if isinstance(t.shape[0], int)]
    first = dict(zip(map(id, tables), (0, *accumulate(heights)), strict=False))
    batch: Dim = ids.shape[0]
    rows = edits.produce(
        node, "slice", [ids], SliceAttrs((0, run[0].column), (1, 1)),
        TensorType(ids.dtype, (batch, k)), sources,
    )  # fmt: skip
    # A negative index counts from the end of its own table.
    height = np.array([[lookup.table.shape[0] for lookup in run]], ids.dtype)
    start = np.array([[first[id(lookup.table)] for lookup in run]], ids.dtype)
    negative = call("lt", Arg(0), Const(0, ids.dtype))
    expr = call("add", call("where", negative, call("add", Arg(0), Arg(1)), Arg(0)), Arg(2))
    operands = [rows, constant("rows", height), constant("first", start)]
    moved = edits.produce(
        node, "pointwise", operands, PointwiseAttrs(expr), TensorType(ids.dtype, (batch, k)),
        sources,
    )  # fmt: skip
    data = [t.data for t in tables if t.data is not None]
    every = table if len(tables) == 1 else constant(table.name, np.concatenate(data))
    shape = (batch, k, table.shape[1])
    found = edits.produce(node, "gather", [every, moved], _ROWS, TensorType(table.dtype, shape),
                          sources)  # fmt: skip
    if node.output.type.rank == 3:
        return found
    assert isinstance(table.shape[1], int)
    flat = (batch, k * table.shape[1])
    return edits.produce(node, "reshape", [found], ReshapeAttrs(), found.type.with_shape(flat),
                         sources)  # fmt: skip
