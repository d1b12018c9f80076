"""Recognise softmax written out, with or without subtraction of the maximum.

    %m = reduce(%x) kind=max axes=(1,) keepdims=True
    %d = pointwise(%x, %m) expr=sub($0, $1)
    %e = pointwise(%d) expr=exp($0)
    %s = reduce(%e) kind=sum axes=(1,) keepdims=True
    %y = pointwise(%e, %s) expr=div($0, $1)            ->    %y = softmax(%x) axis=1

Ours subtracts the maximum in both cases: equal where the plain form doesn't overflow.
"""

from __future__ import annotations

from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import ReduceAttrs, SoftmaxAttrs
from enginesmith.passes.match import operands
from enginesmith.passes.rewrite import Edits, note


def softmax(graph: Graph) -> bool:
    """Every match from its division backwards."""
    edits = Edits(graph)
    count = 0
    for node in edits.nodes():
        if node.op != "pointwise" or node.output.dtype != "float32":
            continue
        match operands(node.output, "div"):
            case (Value() as e, Value(producer=Node() as total)):
                axis = _axis(total, "sum")
                exponent = operands(e, "exp")
                if axis is None or total.inputs[0] is not e or exponent is None:
                    continue
                x = exponent[0]
                if isinstance(x, Value):
                    x = _without_maximum(x, axis)
                    edits.replace(node, "softmax", [x], SoftmaxAttrs(axis))
                    count += 1
    note(graph, count, "recognised {} softmax")
    return edits.apply()


def _axis(node: Node, kind: str) -> int | None:
    match node.attrs:
        case ReduceAttrs(kind=found, axes=(axis,), keepdims=True, epilogue=None) if found == kind:
            return axis
    return None


def _without_maximum(x: Value, axis: int) -> Value:
    match operands(x, "sub"):
        case (Value() as inner, Value(producer=Node() as top)):
            if _axis(top, "max") == axis and top.inputs[0] is inner:
                return inner
    return x
