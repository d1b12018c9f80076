"""Simplify the expression trees of pointwise nodes, epilogues and prologues (rules: `algebra`).

    %y = pointwise(%x) expr=div(mul($0, min(max(add($0, 3.0), 0.0), 6.0)), 6.0)    ->
    %y = pointwise(%x) expr=mul($0, min(max(add(mul($0, 0.16666667), 0.5), 0.0), 1.0))
"""  # fmt: skip

from __future__ import annotations

from dataclasses import replace
from typing import Any

from enginesmith.ir.graph import Graph, Node
from enginesmith.ir.ops import OPS, ExpandAttrs, PointwiseAttrs, epilogue_of
from enginesmith.ir.types import broadcast
from enginesmith.passes.algebra import simplify
from enginesmith.passes.rewrite import Edits, compact, gives_shape
from enginesmith.passes.scalar_operands import shrunk


def expressions(graph: Graph) -> bool:
    """Every tree once; operands that drop out of it are no longer read."""
    edits = Edits(graph)
    for node in edits.nodes():
        if isinstance(node.attrs, PointwiseAttrs):
            _simplify_pointwise(edits, node, node.attrs)
        elif epilogue_of(node.attrs) is not None and getattr(node.attrs, "prologue", None) is None:
            _simplify_epilogue(edits, node)
    return edits.apply()


def _simplify_pointwise(edits: Edits, node: Node, attrs: PointwiseAttrs) -> None:
    expr = simplify(attrs.expr, tuple(v.dtype for v in node.inputs))
    small, inputs = compact(expr, node.inputs)
    if small == attrs.expr and len(inputs) == len(node.inputs):
        return
    if not inputs:
        return  # a constant: what reads it folds it
    if gives_shape(inputs, node.output.shape):
        edits.replace(node, "pointwise", inputs, PointwiseAttrs(small))
        return
    own = node.output.type.with_shape(broadcast(*(v.shape for v in inputs)))
    value = edits.produce(node, "pointwise", inputs, PointwiseAttrs(small), own)
    edits.replace(node, "expand", [value], ExpandAttrs())


def _simplify_epilogue(edits: Edits, node: Node) -> None:
    attrs: Any = node.attrs
    own = OPS[node.op].inputs
    types = (node.output.dtype, *(v.dtype for v in node.inputs[own:]))
    expr = simplify(attrs.epilogue, types)
    inputs, small = shrunk(expr, node)
    if small != attrs.epilogue or len(inputs) != len(node.inputs):
        edits.replace(node, node.op, inputs, replace(attrs, epilogue=small))
