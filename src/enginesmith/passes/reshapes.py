"""Merge chains of reshapes and transposes, and turn transposes that move no data into reshapes.

    %a = reshape(%x)                                       (1, 8, 6) -> (8, 6, 1)
    %b = transpose(%a) perm=(2, 0, 1)                      -> (1, 8, 6)
    %c = transpose(%b) perm=(0, 2, 1)                ->    %c = transpose(%x) perm=(0, 2, 1)

A transpose that feeds a matmul becomes the matmul's flag, as far as it swaps the last two axes:

    %k = transpose(%x) perm=(0, 2, 3, 1)                   %k = transpose(%x) perm=(0, 2, 1, 3)
    %y = matmul(%q, %k)                              ->    %y = matmul(%q, %k) transpose_b=True

And so does a transpose between a reshape that merges axes and one that splits them again:

    %a = reshape(%x)                                       (2, 3, 4, 5) -> (6, 4, 5)
    %b = transpose(%a) perm=(0, 2, 1)
    %c = reshape(%b)                                       (6, 5, 4) -> (2, 3, 5, 4)    ->
    %c = transpose(%x) perm=(0, 1, 3, 2)

A reshape that splits axes behind a transpose goes before it, where it meets another reshape:

    %a = reshape(%x)                                       (9, 2, 12) -> (9, 8, 3)
    %b = transpose(%a) perm=(1, 0, 2)                      %a = reshape(%x)     -> (9, 2, 4, 3)
    %c = reshape(%b)         (8, 9, 3) -> (2, 4, 9, 3) ->  %c = transpose(%a) perm=(1, 2, 0, 3)
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from enginesmith.ir import dims
from enginesmith.ir.dims import Shape
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import MatMulAttrs, ReshapeAttrs, TransposeAttrs
from enginesmith.passes.rewrite import Edits


def reshapes(graph: Graph) -> bool:
    """One sweep in topological order; producers are merged before their readers."""
    edits = Edits(graph)
    for node in edits.nodes():
        match node.attrs:
            case ReshapeAttrs():
                _merge_reshape(edits, node)
            case TransposeAttrs(perm):
                _merge_transpose(edits, node, perm)
            case MatMulAttrs() as attrs:
                _fold_into_matmul(edits, node, attrs)
    return edits.apply()


def _merge_reshape(edits: Edits, node: Node) -> None:
    producer = node.inputs[0].producer
    if producer is None:
        return
    if producer.op == "reshape":
        edits.replace(node, "reshape", producer.inputs, ReshapeAttrs())
    elif (inner := producer.inputs[0].producer if producer.op == "transpose" else None) is not None:
        assert isinstance(producer.attrs, TransposeAttrs)
        x = inner.inputs[0]
        groups = _merged_axes(x.shape, inner.output.shape) if inner.op == "reshape" else None
        if groups is not None:
            perm = tuple(axis for p in producer.attrs.perm for axis in groups[p])
            if dims.same_shape([x.shape[p] for p in perm], node.output.shape):
                edits.replace(node, "transpose", [x], TransposeAttrs(perm))
                return
        if inner.op == "reshape" or all(n.op == "transpose" for n, _ in node.output.uses):
            _split_before(edits, producer, node)


def _split_before(edits: Edits, transpose: Node, node: Node) -> None:
    """A reshape behind a transpose that only splits axes."""
    attrs, shape = transpose.attrs, node.output.shape
    assert isinstance(attrs, TransposeAttrs)
    groups = _merged_axes(shape, transpose.output.shape)
    if groups is None or not edits.graph.single_use(transpose.output):
        return
    back = [attrs.perm.index(axis) for axis in range(len(attrs.perm))]
    order = [axis for position in back for axis in groups[position]]  # as they lie in x
    split = tuple(shape[axis] for axis in order)
    type_ = node.output.type.with_shape(split)
    before = edits.produce(node, "reshape", transpose.inputs, ReshapeAttrs(), type_)
    perm = tuple(order.index(axis) for axis in range(len(order)))
    edits.replace(node, "transpose", [before], TransposeAttrs(perm))


def _merged_axes(given: Shape, merged: Shape) -> list[list[int]] | None:
    """For each axis of `merged`, the neighbouring axes of `given` it merges (None if they aren't
    merged, or not only)."""
    groups, axis = [], 0
    for dim in merged:
        group = [axis]
        if axis >= len(given):
            return None
        size = given[axis]
        while not dims.equal(size, dim):
            if len(group) + axis >= len(given):
                return None
            size = dims.simplify(size * given[axis + len(group)])
            group.append(axis + len(group))
        axis += len(group)
        groups.append(group)
    return groups if axis == len(given) else None


def _merge_transpose(edits: Edits, node: Node, perm: tuple[int, ...]) -> None:
    producer = node.inputs[0].producer
    if _keeps_order(node.inputs[0].shape, perm):
        edits.replace(node, "reshape", node.inputs, ReshapeAttrs())
    elif producer is not None and isinstance(producer.attrs, TransposeAttrs):
        first = producer.attrs.perm
        edits.replace(
            node, "transpose", producer.inputs, TransposeAttrs(tuple(first[p] for p in perm))
        )


def _keeps_order(shape: Shape, perm: Sequence[int]) -> bool:
    """Are the axes longer than 1 left in their order?"""
    moved = [p for p in perm if shape[p] != 1]
    return moved == sorted(moved)


def _fold_into_matmul(edits: Edits, node: Node, attrs: MatMulAttrs) -> None:
    a = _without_swap(edits, node, node.inputs[0])
    b = _without_swap(edits, node, node.inputs[1])
    if a is not None or b is not None:
        attrs = replace(
            attrs,
            transpose_a=attrs.transpose_a ^ (a is not None),
            transpose_b=attrs.transpose_b ^ (b is not None),
        )
        inputs = [a or node.inputs[0], b or node.inputs[1], *node.inputs[2:]]
        edits.replace(node, "matmul", inputs, attrs)


def _without_swap(edits: Edits, node: Node, value: Value) -> Value | None:
    """The operand with its last two axes swapped, where that saves or cheapens a transpose: if the
    axis that is contiguous in memory stays last."""
    producer = value.producer
    if producer is None or not isinstance(producer.attrs, TransposeAttrs):
        return None
    perm = producer.attrs.perm
    if len(perm) < 2 or perm[-2] != len(perm) - 1:
        return None
    swapped = (*perm[:-2], perm[-1], perm[-2])
    if swapped == tuple(range(len(perm))):
        return producer.inputs[0]
    type_ = value.type.with_shape((*value.shape[:-2], value.shape[-1], value.shape[-2]))
    attrs = TransposeAttrs(swapped)
    return edits.produce(
        node, "transpose", producer.inputs, attrs, type_, producer.sources, value.name
    )
