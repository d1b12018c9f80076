"""Fuse chains of pointwise nodes into one.

    %a = pointwise(%x) expr=exp($0)
    %y = pointwise(%a, %b) expr=add($0, $1)     ->    %y = pointwise(%x, %b) expr=add(exp($0), $1)
"""  # fmt: skip

from __future__ import annotations

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Expr, count_ops, rewrite_args
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import PointwiseAttrs, takes_epilogue
from enginesmith.passes.algebra import simplify
from enginesmith.passes.rewrite import (
    MAX_OPERANDS,
    Edits,
    compact,
    expr_of,
    gives_shape,
    is_cheap,
    merge_sources,
)

_MAX_OPS = 64
"""Calls in a fused tree."""


def pointwise_fusion(graph: Graph) -> bool:
    """A pointwise node takes in producers of its own shape that nobody else reads."""
    edits = Edits(graph)
    for node in edits.nodes():
        if node.op == "pointwise":
            fused: Node | None = node
            while fused is not None:
                fused = _fuse_one(edits, fused)
    return edits.apply()


def _fuse_one(edits: Edits, node: Node) -> Node | None:
    for value in node.inputs:
        producer = value.producer
        if (
            producer is not None
            and producer.op == "pointwise"
            and edits.graph.single_use(value)
            and dims.same_shape(value.shape, node.output.shape)
            and (merged := merge(producer, node)) is not None
        ):
            expr, inputs = merged
            return edits.replace(node, "pointwise", inputs, PointwiseAttrs(expr), [producer])
    return None


def merge(producer: Node, reader: Node) -> tuple[Expr, list[Value]] | None:
    """Tree and operands of both pointwise nodes in one; None if that is too large for a kernel."""
    inner, shift = expr_of(producer), len(reader.inputs)
    moved = rewrite_args(inner, lambda i: Arg(i + shift))
    inputs = [*reader.inputs, *producer.inputs]
    tree = rewrite_args(
        expr_of(reader), lambda i: moved if inputs[i] is producer.output else Arg(i)
    )
    if count_ops(tree) > _MAX_OPS:
        return None
    expr, kept = compact(simplify(tree, tuple(v.dtype for v in inputs)), inputs)
    if not kept or len(kept) > MAX_OPERANDS or not gives_shape(kept, reader.output.shape):
        return None
    return expr, kept


def pointwise_duplication(graph: Graph) -> bool:
    """Cheap pointwise nodes of one operand are computed again by each reader instead of stored, if
    all readers are pointwise: they then read the operand, as much memory as the stored result.

        %a = pointwise(%x) expr=max($0, 0.0)
        %b = pointwise(%a) expr=exp($0)
        %c = pointwise(%a, %z) expr=add($0, $1)                    ->
        %b = pointwise(%x) expr=exp(max($0, 0.0))
        %c = pointwise(%x, %z) expr=add(max($0, 0.0), $1)
    """  # fmt: skip
    edits = Edits(graph)
    for node in edits.nodes():
        if node.op != "pointwise" or not _worth_repeating(graph, node):
            continue
        readers = list(dict.fromkeys(reader for reader, _ in node.output.uses))
        merged = [merge(node, r) if r.op == "pointwise" else None for r in readers]
        if any(m is None for m in merged):
            continue
        for reader, result in zip(readers, merged, strict=True):
            assert result is not None
            merge_sources(reader, node)
            edits.replace(reader, "pointwise", result[1], PointwiseAttrs(result[0]))
        edits.drop(node)
    return edits.apply()


def _worth_repeating(graph: Graph, node: Node) -> bool:
    varying = [v for v in node.inputs if not v.is_constant]
    if graph.is_output(node.output) or not node.output.uses or len(varying) != 1:
        return False
    producer = varying[0].producer
    # The producer's kernel could apply it for free.
    absorbable = (
        producer is not None and takes_epilogue(producer.op) and graph.single_use(varying[0])
    )
    return not absorbable and count_ops(expr_of(node)) <= 2 and is_cheap(expr_of(node))
