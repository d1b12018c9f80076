"""Operators without an importer that ONNX defines as functions of simpler ones (Attention, ...).

A model of the one node, typed with what the import knows of its operands, goes through onnx's
inliner; the nodes that come out are imported in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import defs, helper, inliner

from enginesmith.frontend.node import Unsupported
from enginesmith.ir.graph import Value


def is_composite(op_type: str, opset: int) -> bool:
    """Does ONNX define the operator by a function?"""
    try:
        schema = defs.get_schema(op_type, min(opset, defs.onnx_opset_version()), "")
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def expand(
    node: onnx.NodeProto, opset: int, inputs: Sequence[Value | None]
) -> list[onnx.NodeProto]:
    """The nodes `node` stands for; outputs keep their names, inner names begin with the first
    one's.

    Unsupported if onnx can't expand it.
    """
    typed = {
        name: helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)),
            [d if isinstance(d, int) else None for d in value.shape],
        )
        for name, value in zip(node.input, inputs, strict=True)
        if name and value is not None
    }
    results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    node = _with_defaults(node, opset)
    graph = helper.make_graph([node], "composite", list(typed.values()), results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        nodes = inliner.inline_selected_functions(
            model, [("", node.op_type)], inline_schema_functions=True
        ).graph.node
    except Exception:  # onnx raises bare C++ exceptions of several kinds
        nodes = [node]
    if any(inner.op_type == node.op_type for inner in nodes):
        raise Unsupported(f"no importer for operator {node.op_type}")
    outer = {*node.input, *node.output}
    prefix = next(filter(None, node.output))
    for inner in nodes:
        for names in (inner.input, inner.output):
            names[:] = [n if not n or n in outer else f"{prefix}/{n}" for n in names]
    return list(nodes)


def _with_defaults(node: onnx.NodeProto, opset: int) -> onnx.NodeProto:
    """A copy with the default of every attribute left out: functions refer to them by name."""
    full = onnx.NodeProto()
    full.CopyFrom(node)
    given = {a.name for a in node.attribute}
    schema = defs.get_schema(node.op_type, min(opset, defs.onnx_opset_version()), "")
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            full.attribute.append(attribute.default_value)
    return full
