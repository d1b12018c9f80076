"""Multiply once where several matmuls read one operand: queries, keys and values of attention.

    %q = matmul(%x, %wq, %bq) epilogue=add($0, $1)        %m = matmul(%x, %w, %b) epilogue=...
    %k = matmul(%x, %wk, %bk) epilogue=add($0, $1)   ->   %q = slice(%m)
                                                          %k = slice(%m)

One launch with more columns fills a GPU better than several. The slices are views, which readers
must take; so this is for targets whose kernels take any strides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from enginesmith.ir.expr import Arg, Expr, call
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import MatMulAttrs, SliceAttrs
from enginesmith.ir.types import TensorType
from enginesmith.passes.match import readers
from enginesmith.passes.rewrite import Edits

BIAS = call("add", Arg(0), Arg(1))


def merge_matmuls(graph: Graph) -> bool:
    """Matmuls of one operand by constant matrices, each with a bias per column or nothing after."""
    edits = Edits(graph)
    merged: set[int] = set()
    for node in edits.nodes():
        if id(node) in merged or not _fits(graph, node):
            continue
        x = node.inputs[0]
        group = [
            n for n in readers(x)
            if _fits(graph, n) and n.inputs[0] is x and n.inputs[1].dtype == node.inputs[1].dtype
        ]  # fmt: skip
        if len(group) > 1:
            merged.update(map(id, group))
            _merge(edits, x, group)
    return edits.apply()


def _fits(graph: Graph, node: Node) -> bool:
    attrs = node.attrs
    if not isinstance(attrs, MatMulAttrs) or attrs.transpose_a or graph.is_output(node.output):
        return False
    weight = node.inputs[1]
    if weight.data is None or weight.type.rank != 2 or node.inputs[0].type.rank < 2:
        return False
    if attrs.epilogue is None:
        return len(node.inputs) == 2
    bias = node.inputs[2] if len(node.inputs) == 3 else None
    per_column = bias is not None and bias.data is not None and bias.data.ndim <= 1
    return attrs.epilogue == BIAS and per_column and node.output.dtype == "float32"


def _merge(edits: Edits, x: Value, group: list[Node]) -> None:
    weights, biases = [], []
    for node in group:
        attrs, data = node.attrs, node.inputs[1].data
        assert isinstance(attrs, MatMulAttrs)
        assert data is not None
        weights.append(data.T if attrs.transpose_b else data)
        columns = weights[-1].shape[1]
        bias = node.inputs[2].data if len(node.inputs) == 3 else np.zeros((), np.float32)
        assert bias is not None
        biases.append(np.broadcast_to(bias, (columns,)))
    inputs = [x, _constant("weights", np.concatenate(weights, axis=1))]
    epilogue: Expr | None = None
    if any(len(node.inputs) == 3 for node in group):
        inputs.append(_constant("biases", np.concatenate(biases)))
        epilogue = BIAS
    total = sum(w.shape[1] for w in weights)
    anchor, first = group[0], group[0].output
    shape = (*first.shape[:-1], total)
    whole = edits.produce(
        anchor, "matmul", inputs, MatMulAttrs(epilogue=epilogue), replace(first.type, shape=shape),
        [s for node in group for s in node.sources], f"{first.name}_merged",
    )  # fmt: skip
    start, rank = 0, len(shape)
    for node, weight in zip(group, weights, strict=True):
        starts = (*[0] * (rank - 1), start)
        edits.replace(node, "slice", [whole], SliceAttrs(starts, (1,) * rank))
        start += weight.shape[1]


def _constant(name: str, data: np.ndarray) -> Value:
    array = np.ascontiguousarray(data)
    return Value(name, TensorType(array.dtype.name, array.shape), array)
