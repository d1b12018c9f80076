"""Compute small what a constant of equal elements only spreads over a larger shape.

    %m = pointwise(const (1, 1, 128, 1) True, %keys (n, 1, 1, 128)) expr=where(and($0, $1), 0, -inf)
                                                                              (n, 1, 128, 128)
    ->
    %s = pointwise(%keys) expr=where(and(True, $0), 0, -inf)                  (n, 1, 1, 128)
    %m = expand(%s)                                                           (n, 1, 128, 128)

Exporters write masks of keys like this. The expansion is a view for kernels that take any strides,
so attention reads one row of the mask for all queries.
"""

from __future__ import annotations

from enginesmith.ir.expr import Arg, rewrite_args
from enginesmith.ir.graph import Graph, Node
from enginesmith.ir.ops import ExpandAttrs, PointwiseAttrs
from enginesmith.ir.types import TensorType
from enginesmith.passes.rewrite import Edits, compact, expr_of, gives_shape, joint_shape, uniform_of


def uniform_shapes(graph: Graph) -> bool:
    """Pointwise nodes but those whose result leaves the graph, which would have to be copied."""
    edits = Edits(graph)
    for node in edits.nodes():
        if isinstance(node.attrs, PointwiseAttrs) and not graph.is_output(node.output):
            _shrink(edits, node)
    return edits.apply()


def _shrink(edits: Edits, node: Node) -> None:
    constants = {i: c for i, v in enumerate(node.inputs) if (c := uniform_of(v)) is not None}
    expr = rewrite_args(expr_of(node), lambda i: constants.get(i, Arg(i)))
    expr, inputs = compact(expr, node.inputs)
    shape = joint_shape(inputs)
    if not constants or not inputs or shape is None or gives_shape(inputs, node.output.shape):
        return
    small = TensorType(node.output.dtype, shape)
    value = edits.produce(node, "pointwise", inputs, PointwiseAttrs(expr), small)
    edits.replace(node, "expand", [value], ExpandAttrs())
