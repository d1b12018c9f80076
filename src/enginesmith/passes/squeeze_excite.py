"""Recognise squeeze-and-excitation, which one kernel computes on GPUs.

    %m = reduce(%x) mean of rows and columns           (n, c, 1, 1)
    %h = conv(%m, %w1) 1x1, with an epilogue           (n, r, 1, 1)
    %y = conv(%h, %w2) 1x1, with an epilogue    ->     %y = squeeze_excite(%x, %w1, %w2)

The multiplication of x by the gates stays where it is: a prologue of the convolution that follows.
"""

from __future__ import annotations

from enginesmith.ir.expr import Arg
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import ConvAttrs, ReduceAttrs, SqueezeExciteAttrs
from enginesmith.passes.rewrite import Edits, note


def squeeze_excite(graph: Graph) -> bool:
    """Every match from its second convolution backwards."""
    edits = Edits(graph)
    count = 0
    for node in edits.nodes():
        excite = _product(node)
        squeeze = _product(_before(graph, node)) if excite is not None else None
        pool = _before(graph, squeeze) if squeeze is not None else None
        if squeeze is None or pool is None or not _is_mean(pool):
            continue
        inner, outer = squeeze.attrs, node.attrs
        assert isinstance(inner, ConvAttrs)
        assert isinstance(outer, ConvAttrs)
        extras = squeeze.inputs[2:]
        inputs = [pool.inputs[0], squeeze.inputs[1], node.inputs[1], *extras, *node.inputs[2:]]
        attrs = SqueezeExciteAttrs(
            inner.epilogue or Arg(0), outer.epilogue or Arg(0), len(extras)
        )  # fmt: skip
        edits.replace(node, "squeeze_excite", inputs, attrs, [squeeze, pool])
        count += 1
    note(graph, count, "recognised {} squeeze-and-excitation",
         "recognised {} squeeze-and-excitations")  # fmt: skip
    return edits.apply()


def _before(graph: Graph, node: Node | None) -> Node | None:
    """What computes the node's first operand, for it alone."""
    x: Value | None = node.inputs[0] if node is not None else None
    return x.producer if x is not None and graph.single_use(x) else None


def _product(node: Node | None) -> Node | None:
    """The node, if it is a product of constant weights and the channels of single pixels."""
    if node is None or not isinstance(node.attrs, ConvAttrs):
        return None
    attrs, x, weights = node.attrs, node.inputs[0], node.inputs[1]
    plain = attrs.groups == 1 and attrs.prologue is None and not any(attrs.pads)
    single = x.shape[2:] == (1, 1) and weights.shape[2:] == (1, 1)
    constants = all(v.data is not None for v in node.inputs[1:])
    return node if plain and single and constants else None


def _is_mean(node: Node) -> bool:
    return node.attrs == ReduceAttrs("mean", (2, 3), True)
