"""Remove operations that change nothing, and name simpler ones by their simpler name.

    %a = transpose(%x) perm=(0, 1, 2)
    %b = slice(%a) starts=(0, 0, 0) steps=(1, 1, 1)   (as long as %a)
    %y = pointwise(%b) expr=exp($0)                   ->      %y = pointwise(%x) expr=exp($0)
"""  # fmt: skip

from __future__ import annotations

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg
from enginesmith.ir.graph import Graph, Node
from enginesmith.ir.ops import (
    ConcatAttrs,
    ExpandAttrs,
    PadAttrs,
    PointwiseAttrs,
    PoolAttrs,
    ReduceAttrs,
    ReshapeAttrs,
    ResizeAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from enginesmith.passes.rewrite import Edits, broadcasts_to, gives_shape

_REDUCTIONS_OF_ONE = ("sum", "mean", "max", "min", "prod")


def identities(graph: Graph) -> bool:
    """Bypass every node that provably returns its operand."""
    edits = Edits(graph)
    for node in edits.nodes():
        if _is_identity(node):
            edits.bypass(node, node.inputs[0])
        else:
            _rename(edits, node)
    return edits.apply()


def _is_identity(node: Node) -> bool:
    if len(node.inputs) != 1 or len(node.outputs) != 1:
        return False
    if not dims.same_shape(node.inputs[0].shape, node.output.shape):
        return False
    match node.attrs:
        case ReshapeAttrs() | ExpandAttrs() | ConcatAttrs():
            return True
        case PointwiseAttrs(expr):
            return expr == Arg(0)
        case TransposeAttrs(perm):
            return perm == tuple(range(len(perm)))
        case SliceAttrs(starts, steps):
            return all(s == 0 for s in starts) and all(s == 1 for s in steps)
        case PadAttrs(pads=pads):
            return all(p == 0 for p in pads)
        case ResizeAttrs(scales=scales, coordinates=coordinates, epilogue=None):
            return all(s in (None, 1.0) for s in scales) and not coordinates.startswith("tf_")
        case PoolAttrs(kernel=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0), epilogue=None):
            return True
    return False


def _rename(edits: Edits, node: Node) -> None:
    match node.attrs:
        case ConcatAttrs(axis):
            whole = [v for v in node.inputs if v.shape[axis] != 0]
            if whole and len(whole) < len(node.inputs):
                edits.replace(node, "concat", whole, node.attrs)
        case ReduceAttrs(kind=kind, axes=axes, epilogue=None) if kind in _REDUCTIONS_OF_ONE:
            if axes and all(node.inputs[0].shape[a] == 1 for a in axes):
                edits.replace(node, "reshape", node.inputs, ReshapeAttrs())
        case PointwiseAttrs(Arg(0)) if len(node.inputs) == 1:
            if broadcasts_to(node.inputs[0].shape, node.output.shape):
                edits.replace(node, "expand", node.inputs, ExpandAttrs())
        case ExpandAttrs():
            _expand_into_readers(edits, node)


def _expand_into_readers(edits: Edits, node: Node) -> None:
    """Pointwise readers broadcast by themselves, where another operand has the full shape; those of
    one operand compute on the small one."""
    small = node.inputs[0]
    for reader in dict.fromkeys(reader for reader, _ in node.output.uses):
        if reader.op != "pointwise":
            continue
        inputs = [small if v is node.output else v for v in reader.inputs]
        if gives_shape(inputs, reader.output.shape):
            edits.replace(reader, "pointwise", inputs, reader.attrs)
        elif len(inputs) == 1:
            type_ = reader.output.type.with_shape(small.shape)
            value = edits.produce(reader, "pointwise", inputs, reader.attrs, type_)
            edits.replace(reader, "expand", [value], ExpandAttrs())
