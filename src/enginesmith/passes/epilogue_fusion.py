"""Let the kernels of convolutions, matmuls, reductions, pools and resizes finish their own results.

    %a = conv(%x, %w)
    %b = pointwise(%a, %bias) expr=add($0, $1)
    %c = pointwise(%b, %skip) expr=max(add($0, $1), 0.0)      ->
    %c = conv(%x, %w, %bias, %skip) epilogue=max(add(add($0, $1), $2), 0.0)

The fused node stands where the pointwise node stood, so all its operands exist by then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Expr, count_ops, rewrite_args
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import OPS, epilogue_of, takes_epilogue
from enginesmith.passes.algebra import simplify
from enginesmith.passes.rewrite import MAX_OPERANDS, Edits, broadcasts_to, compact, expr_of

_MAX_OPS = 40
"""Calls in an epilogue."""


def epilogue_fusion(graph: Graph) -> bool:
    """Each pointwise node goes into the last of its producers that can take it."""
    edits = Edits(graph)
    position = {node.outputs[0]: i for i, node in enumerate(graph.nodes)}
    for node in edits.nodes():
        if node.op != "pointwise" or node.output.dtype != "float32":
            continue
        candidates = [v for v in node.inputs if _can_finish(graph, v, node)]
        for value in sorted(candidates, key=lambda v: -position[v]):
            if _absorb(edits, value, node):
                break
    return edits.apply()


def _can_finish(graph: Graph, value: Value, node: Node) -> bool:
    producer = value.producer
    return (
        producer is not None
        and takes_epilogue(producer.op)
        and getattr(producer.attrs, "prologue", None) is None
        and value.dtype == "float32"
        and graph.single_use(value)
        and dims.same_shape(value.shape, node.output.shape)
    )


def _absorb(edits: Edits, result: Value, node: Node) -> bool:
    producer = result.producer
    assert producer is not None
    own = OPS[producer.op].inputs
    extras = producer.inputs[own:]
    others = [v for v in node.inputs if v is not result]
    if any(v.dtype != "float32" or not broadcasts_to(v.shape, result.shape) for v in others):
        return False
    values = [result, *extras, *others]
    done: Expr = epilogue_of(producer.attrs) or Arg(0)
    slots = {
        i: len(extras) + 1 + others.index(v) for i, v in enumerate(node.inputs) if v is not result
    }
    tree = rewrite_args(expr_of(node), lambda i: Arg(slots[i]) if i in slots else done)
    expr, kept = compact(simplify(tree, ("float32",) * len(values)), values)
    if not kept or kept[0] is not result or len(kept) > MAX_OPERANDS or count_ops(expr) > _MAX_OPS:
        return False
    if producer.op == "reduce" and len(kept) > 1:
        return False  # its kernels finish with what they folded alone
    attrs: Any = producer.attrs
    attrs = replace(attrs, epilogue=None if expr == Arg(0) else expr)
    inputs = [*producer.inputs[:own], *kept[1:]]
    edits.replace(node, producer.op, inputs, attrs, [producer])
    return True
