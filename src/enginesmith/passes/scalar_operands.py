"""Write constants that are one number into the expression, and drop operands it doesn't need.

    %y = pointwise(%x, const (1, 1) [0.5]) expr=mul($0, $1)     ->
    %y = pointwise(%x) expr=mul($0, 0.5)
"""  # fmt: skip

from __future__ import annotations

from dataclasses import replace
from typing import Any

from enginesmith.ir.expr import Arg, Expr, args_of, rewrite_args
from enginesmith.ir.graph import Graph, Node
from enginesmith.ir.ops import OPS, PointwiseAttrs, epilogue_of
from enginesmith.passes.rewrite import Edits, compact, gives_shape, uniform_of


def scalar_operands(graph: Graph) -> bool:
    """Pointwise nodes and epilogues."""
    edits = Edits(graph)
    for node in edits.nodes():
        if isinstance(node.attrs, PointwiseAttrs):
            _shrink_pointwise(edits, node, node.attrs.expr)
        elif (epilogue := epilogue_of(node.attrs)) is not None:
            _shrink_epilogue(edits, node, epilogue)
    return edits.apply()


def _shrink_pointwise(edits: Edits, node: Node, expr: Expr) -> None:
    constants = {i: c for i, v in enumerate(node.inputs) if (c := uniform_of(v)) is not None}
    small, inputs = compact(rewrite_args(expr, lambda i: constants.get(i, Arg(i))), node.inputs)
    # A constant may be what gives the result its shape; then it stays.
    if inputs and len(inputs) < len(node.inputs) and gives_shape(inputs, node.output.shape):
        edits.replace(node, "pointwise", inputs, PointwiseAttrs(small))


def _shrink_epilogue(edits: Edits, node: Node, epilogue: Expr) -> None:
    own = OPS[node.op].inputs
    if getattr(node.attrs, "prologue", None) is not None:
        return
    extras = node.inputs[own:]
    constants = {i + 1: c for i, v in enumerate(extras) if (c := uniform_of(v)) is not None}
    if constants or len(args_of(epilogue) - {0}) < len(extras):
        inputs, small = shrunk(rewrite_args(epilogue, lambda i: constants.get(i, Arg(i))), node)
        attrs: Any = node.attrs
        edits.replace(node, node.op, inputs, replace(attrs, epilogue=small))


def shrunk(epilogue: Expr, node: Node) -> tuple[list[Any], Expr | None]:
    """All operands of `node`, and its epilogue, with extras that `epilogue` doesn't read dropped.
    The epilogue is None if it only returns the result."""
    own = OPS[node.op].inputs
    result = node.output
    small, kept = compact(epilogue, [result, *node.inputs[own:]])
    # compact numbers operands by first slot, so the result is 0 if it is read at all.
    assert kept[:1] == [result], "an epilogue reads the result"
    return [*node.inputs[:own], *kept[1:]], None if small == Arg(0) else small
