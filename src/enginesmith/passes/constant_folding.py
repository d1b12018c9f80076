"""Evaluate nodes whose operands are all constants.

    %a = expand(const (1,) [2.0])                 (1,) -> (3,)
    %y = pointwise(%x, %a) expr=mul($0, $1)       ->    %y = pointwise(%x, const) expr=mul($0, $1)

Results that would bloat the plan (large, and larger than what they are made of) stay computed.
"""  # fmt: skip

from __future__ import annotations

from math import prod

import numpy as np

from enginesmith.ir import dims, reference
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.passes.rewrite import Edits

_LARGE = 16 << 20
"""Bytes a folded result may have even if its operands are smaller."""


def constant_folding(graph: Graph) -> bool:
    """One sweep in topological order, so whole constant sub-graphs go."""
    edits = Edits(graph)
    for node in edits.nodes():
        if all(v.is_constant for v in node.inputs) and _affordable(node):
            arrays = [v.data for v in node.inputs if v.data is not None]
            try:
                (result,) = reference.run_node(node, arrays, {})
            except KeyError:  # attributes with symbols
                continue
            if edits.forward(node.output, _constant(node.output, result)):
                edits.drop(node)
    return edits.apply()


def _affordable(node: Node) -> bool:
    if len(node.outputs) > 1 or not dims.is_static(node.output.shape):
        return False
    size = prod(node.output.shape) * np.dtype(node.output.dtype).itemsize
    read = sum(v.data.nbytes for v in node.inputs if v.data is not None)
    return bool(size <= max(_LARGE, read))


def _constant(output: Value, result: np.ndarray) -> Value:
    data = np.ascontiguousarray(result).reshape(output.shape)
    return Value(output.name, output.type, data)
