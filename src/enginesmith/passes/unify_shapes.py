"""Give upsampled values the symbolic shape of what they meet in a sum or concat.

    %b = resize(%a)                              (n, 8, h, w) ->  (n, 8, 2*((h + 1)//2), ...)
    %y = pointwise(%c, %b) expr=add($0, $1)      %c: (n, 8, h, w)      ->
    %b = resize(%a)                              (n, 8, (h + 1)//2, ...) -> (n, 8, h, w)

Feature pyramids halve and double sizes, and their sums only fit where the size is a multiple of
some power of two. The IR takes dims that meet there as equal (`types.broadcast`); written as one
expression they are also provably equal, so the other passes and the kernels see one size, not two.
What was taken for equal is noted in `graph.assumptions`, and shapes that break it are refused at
run time.
"""

from __future__ import annotations

from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.infer import CHOSEN_SHAPE, infer
from enginesmith.ir.ops import ConcatAttrs


def unify_shapes(graph: Graph) -> bool:
    """One sweep in topological order; types after a changed one follow at once."""
    changed: set[Node] = set()
    for node in graph.nodes:
        if any(v.producer in changed for v in node.inputs) and node.op not in CHOSEN_SHAPE:
            changed |= _infer_again(node)
        if node.op not in ("pointwise", "concat"):
            continue
        for value in node.inputs:
            shape = _met_shape(node, value)
            if shape != value.shape and value.producer is not None:
                pairs = zip(value.shape, shape, strict=True)
                graph.assumptions += [(a, b, node.sources) for a, b in pairs if a != b]
                value.type = value.type.with_shape(shape)
                changed |= {value.producer, *_infer_again(node)}
    return bool(changed)


def _infer_again(node: Node) -> set[Node]:
    """The node, if its type changes."""
    found = infer(node.op, node.attrs, [v.type for v in node.inputs], node.output.type)
    if found.shape == node.output.shape:
        return set()
    node.output.type = node.output.type.with_shape(found.shape)
    return {node}


def _met_shape(node: Node, value: Value) -> Shape:
    """The shape of a resized operand of `node` in terms of the operands that aren't resized."""
    if value.producer is None or value.producer.op != "resize":
        return value.shape
    others = [
        v.shape
        for v in node.inputs
        if v.type.rank == value.type.rank and (v.producer is None or v.producer.op != "resize")
    ]
    along = node.attrs.axis if isinstance(node.attrs, ConcatAttrs) else -1
    return tuple(
        d if axis == along else _met(d, [s[axis] for s in others])
        for axis, d in enumerate(value.shape)
    )


def _met(dim: Dim, others: list[Dim]) -> Dim:
    symbolic = [d for d in others if not isinstance(d, int)]
    return dim if isinstance(dim, int) or not symbolic else symbolic[0]
