"""Move a reshape of a matmul's (convolution's, ...) result below the pointwise node that reads it,
so that the matmul can take the pointwise work into its epilogue.

    %a = matmul(%x, %w)                              (6, 4)
    %b = reshape(%a)                                 (6, 4) -> (2, 3, 4)
    %y = pointwise(%b, %z) expr=add($0, $1)               ->
    %a = matmul(%x, %w)
    %c = reshape(%z)                                 (2, 3, 4) -> (6, 4)
    %d = pointwise(%a, %c) expr=add($0, $1)
    %y = reshape(%d)                                 (6, 4) -> (2, 3, 4)

Reshapes of plain tensors are views, so the ones that are added cost nothing.
"""

from __future__ import annotations

from enginesmith.ir import dims
from enginesmith.ir.dims import Shape
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import ReshapeAttrs
from enginesmith.passes.rewrite import Edits, merge_sources, parts_from_producer


def sink_reshapes(graph: Graph) -> bool:
    """Operands of the full shape are reshaped; others may vary along the last axis, if kept."""
    edits = Edits(graph)
    for node in edits.nodes():
        if node.op != "pointwise" or node.output.dtype != "float32":
            continue
        for value in node.inputs:
            reshape = value.producer
            if reshape is not None and _worth_moving(graph, reshape, node):
                _move(edits, reshape, node)
                break
    return edits.apply()


def _worth_moving(graph: Graph, reshape: Node, reader: Node) -> bool:
    if reshape.op != "reshape" or not parts_from_producer(graph, reshape, reader):
        return False
    inner = reshape.inputs[0].shape
    return all(_can_follow(v, reader.output.shape, inner) for v in reader.inputs)


def _can_follow(value: Value, outer: Shape, inner: Shape) -> bool:
    """Does reshaping the full-shaped operand, or leaving a row along the last axis, line up?"""
    if dims.same_shape(value.shape, outer):
        return not value.is_constant
    is_row = all(d == 1 for d in value.shape[:-1])
    return is_row and bool(inner) and (
        value.shape[-1:] in ((), (1,)) or dims.equal(outer[-1], inner[-1])
    )  # fmt: skip


def _move(edits: Edits, reshape: Node, node: Node) -> None:
    inner = reshape.inputs[0]
    inputs: list[Value] = []
    for value in node.inputs:
        if value is reshape.output:
            inputs.append(inner)
        elif dims.same_shape(value.shape, node.output.shape):
            type_ = value.type.with_shape(inner.shape)
            inputs.append(edits.produce(node, "reshape", [value], ReshapeAttrs(), type_))
        elif value.type.rank > 1:
            type_ = value.type.with_shape(value.shape[-1:])
            inputs.append(edits.produce(node, "reshape", [value], ReshapeAttrs(), type_))
        else:
            inputs.append(value)
    type_ = node.output.type.with_shape(inner.shape)
    result = edits.produce(node, "pointwise", inputs, node.attrs, type_)
    below = edits.replace(node, "reshape", [result], ReshapeAttrs())
    assert result.producer is not None
    merge_sources(result.producer, below)
    edits.drop(reshape)
