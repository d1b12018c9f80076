"""Move a transpose of a matmul's (convolution's, ...) result below the pointwise node that reads
it, so that the matmul can take the pointwise work into its epilogue. For targets whose kernels take
any strides, where transposes are mostly views.

    %a = matmul(%x, %w)                              (n, h, w, c)
    %b = transpose(%a) perm=[0, 3, 1, 2]             (n, c, h, w)
    %y = pointwise(%z, %b) expr=add($0, $1)               ->
    %a = matmul(%x, %w)
    %c = transpose(%z) perm=[0, 2, 3, 1]
    %d = pointwise(%c, %a) expr=add($0, $1)
    %y = transpose(%d) perm=[0, 3, 1, 2]
"""

from __future__ import annotations

import numpy as np

from enginesmith.ir.dims import Shape
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import TransposeAttrs
from enginesmith.ir.types import TensorType
from enginesmith.passes.rewrite import Edits, merge_sources, parts_from_producer


def sink_transposes(graph: Graph) -> bool:
    """Operands of full rank are transposed, constants at once; others must be scalars."""
    edits = Edits(graph)
    for node in edits.nodes():
        if node.op != "pointwise" or node.output.dtype != "float32":
            continue
        for value in node.inputs:
            transpose = value.producer
            if transpose is not None and _worth_moving(graph, transpose, node):
                _move(edits, transpose, node)
                break
    return edits.apply()


def _worth_moving(graph: Graph, transpose: Node, reader: Node) -> bool:
    if transpose.op != "transpose" or not parts_from_producer(graph, transpose, reader):
        return False
    producer, rank = transpose.inputs[0].producer, reader.output.type.rank
    assert producer is not None
    return producer.op != "reduce" and all(
        v.type.rank in (0, rank) or (v.is_constant and v.type.rank < rank) for v in reader.inputs
    )


def _move(edits: Edits, transpose: Node, node: Node) -> None:
    attrs, inner = transpose.attrs, transpose.inputs[0]
    assert isinstance(attrs, TransposeAttrs)
    perm = attrs.perm
    back = tuple(perm.index(axis) for axis in range(len(perm)))
    inputs: list[Value] = []
    for value in node.inputs:
        if value is transpose.output:
            inputs.append(inner)
        elif value.data is not None:
            inputs.append(_transposed(value, back))
        elif value.type.rank == 0:
            inputs.append(value)
        else:
            shape: Shape = tuple(value.shape[axis] for axis in back)
            type_ = value.type.with_shape(shape)
            inputs.append(edits.produce(node, "transpose", [value], TransposeAttrs(back), type_))
    type_ = node.output.type.with_shape(inner.shape)
    result = edits.produce(node, "pointwise", inputs, node.attrs, type_)
    below = edits.replace(node, "transpose", [result], attrs, [transpose])
    assert result.producer is not None
    merge_sources(result.producer, below)


def _transposed(value: Value, perm: tuple[int, ...]) -> Value:
    assert value.data is not None
    full = value.data.reshape((1,) * (len(perm) - value.data.ndim) + value.data.shape)
    data = np.ascontiguousarray(full.transpose(perm))
    return Value(value.name, TensorType(value.dtype, data.shape), data)
