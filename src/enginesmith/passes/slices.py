"""Merge slices of slices, concats of concats and slices of concats, and cancel a split with the
concat that undoes it.

    %a = slice(%x) starts=(0, 0) steps=(1, 1)       (2, 6) -> (2, 4)
    %b = slice(%x) starts=(0, 4) steps=(1, 1)       (2, 6) -> (2, 2)
    %y = concat(%a, %b) axis=1                      ->    %x itself

Gathering one constant index, or a range of them, is a slice.
"""  # fmt: skip

from __future__ import annotations

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import ConcatAttrs, GatherAttrs, ReshapeAttrs, SliceAttrs
from enginesmith.passes.rewrite import Edits


def slices(graph: Graph) -> bool:
    """One sweep in topological order."""
    edits = Edits(graph)
    for node in edits.nodes():
        match node.attrs:
            case SliceAttrs() as attrs:
                _merge_slice(edits, node, attrs)
            case ConcatAttrs(axis):
                _merge_concat(edits, node, axis)
            case GatherAttrs("axis", axis):
                _slice_for_gather(edits, node, axis)
    return edits.apply()


def _slice_for_gather(edits: Edits, node: Node, axis: int) -> None:
    data, indices = node.inputs
    size = data.shape[axis]
    if indices.data is None or indices.type.rank > 1 or not isinstance(size, int):
        return
    at = [i + size if i < 0 else i for i in indices.data.ravel().tolist()]
    if not at or at != list(range(at[0], at[0] + len(at))) or at[0] < 0 or at[-1] >= size:
        return
    starts = tuple(at[0] if i == axis else 0 for i in range(data.type.rank))
    attrs = SliceAttrs(starts, (1,) * data.type.rank)
    if indices.type.rank == 1:
        edits.replace(node, "slice", [data], attrs)
        return
    shape = tuple(1 if i == axis else d for i, d in enumerate(data.shape))
    value = edits.produce(node, "slice", [data], attrs, data.type.with_shape(shape))
    edits.replace(node, "reshape", [value], ReshapeAttrs())


def _merge_slice(edits: Edits, node: Node, attrs: SliceAttrs) -> None:
    producer = node.inputs[0].producer
    if producer is None:
        return
    match producer.attrs:
        case SliceAttrs(starts, steps):
            merged = SliceAttrs(
                tuple(
                    dims.simplify(a + b * step)
                    for a, b, step in zip(starts, attrs.starts, steps, strict=True)
                ),
                tuple(a * b for a, b in zip(steps, attrs.steps, strict=True)),
            )
            edits.replace(node, "slice", producer.inputs, merged)
        case ConcatAttrs(axis):
            if (part := _part_of(node, attrs, producer, axis)) is not None:
                value, start = part
                starts = tuple(start if i == axis else s for i, s in enumerate(attrs.starts))
                edits.replace(node, "slice", [value], SliceAttrs(starts, attrs.steps))


def _part_of(node: Node, attrs: SliceAttrs, concat: Node, axis: int) -> tuple[Value, int] | None:
    """The operand of `concat` that holds the whole slice, and the slice's start in it."""
    start, length = attrs.starts[axis], node.output.shape[axis]
    if attrs.steps[axis] != 1 or not isinstance(start, int) or not isinstance(length, int):
        return None
    for value in concat.inputs:
        size = value.shape[axis]
        if not isinstance(size, int):
            return None
        if start < size:
            return (value, start) if start + length <= size else None
        start -= size
    return None


def _merge_concat(edits: Edits, node: Node, axis: int) -> None:
    inputs: list[Value] = []
    for value in node.inputs:
        inner = value.producer
        if inner is not None and inner.attrs == ConcatAttrs(axis) and edits.graph.single_use(value):
            inputs.extend(inner.inputs)
        else:
            inputs.append(value)
    merged: list[Value] = []
    for value in inputs:
        joined = _join(edits, node, merged[-1], value, axis) if merged else None
        merged[-1:] = [joined] if joined is not None else [*merged[-1:], value]
    if len(merged) < len(node.inputs) or len(inputs) > len(node.inputs):
        edits.replace(node, "concat", merged, ConcatAttrs(axis))


def _join(edits: Edits, node: Node, a: Value, b: Value, axis: int) -> Value | None:
    """One slice in place of two neighbouring slices of one value."""
    first, second = a.producer, b.producer
    if first is None or second is None or first.inputs[:1] != second.inputs[:1]:
        return None
    if not isinstance(first.attrs, SliceAttrs) or not isinstance(second.attrs, SliceAttrs):
        return None
    here, there = first.attrs, second.attrs
    end: Dim = dims.simplify(here.starts[axis] + a.shape[axis])
    if (
        here.steps != there.steps
        or here.steps[axis] != 1
        or not dims.equal(end, there.starts[axis])
    ):
        return None
    for i, (p, q) in enumerate(zip(here.starts, there.starts, strict=True)):
        if i != axis and not (dims.equal(p, q) and dims.equal(a.shape[i], b.shape[i])):
            return None
    shape = list(a.shape)
    shape[axis] = dims.simplify(a.shape[axis] + b.shape[axis])
    sources = (*first.sources, *second.sources)
    return edits.produce(
        node, "slice", first.inputs, here, a.type.with_shape(tuple(shape)), sources, a.name
    )
