"""Small ONNX models for the frontend's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Size = int | str | None


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Size]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    dtypes: Mapping[str, int] | None = None,
    declared: Mapping[str, Sequence[Size]] | None = None,
) -> onnx.ModelProto:
    """A model. `dtypes`: element types of inputs and outputs that aren't float; `declared`: shapes
    of outputs."""
    kinds = dtypes or {}

    def info(name: str, shape: Sequence[Size] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)

    graph = helper.make_graph(
        list(nodes),
        "test",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, (declared or {}).get(name)) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """`inputs` and `outputs`: names separated by blanks; `-` for one left out."""
    names = ["" if i == "-" else i for i in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=name or f"the_{op}", **attributes)
