"""An ONNX node that runs on the host through `onnx.reference`: read, checked, evaluated.

It may come from a plan of unknown origin, so it is checked before anything runs: one operator of
ONNX's own domain, without subgraphs, whose tensors are in the node itself. The package `onnx` is
needed for such nodes alone, and imported when there is one.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from enginesmith.errors import EnginesmithError, PlanError

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

RANDOM = frozenset(
    {
        "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    }
)  # fmt: skip
"""Operators (Dropout: in training mode) whose results differ from run to run."""


UNREAD = "unread"
"""What the names of outputs begin with that nobody reads, but the operator's form demands."""


class NodeError(ValueError):
    """Why a node can't run on the host."""


class HostNode:
    """A node ready to be evaluated. `dtypes`: numpy names of its inputs that aren't left out."""

    def __init__(self, node: onnx.NodeProto, opset: int, dtypes: Sequence[str]) -> None:
        """NodeError if the node may not or can't run."""
        from onnx import helper

        check_node(node)
        self.operator = node.op_type
        self.inputs = tuple(dict.fromkeys(name for name in node.input if name))
        self.outputs = outputs_of(node)
        if len(self.inputs) != len(dtypes) or not self.outputs:
            raise NodeError(f"it has {len(self.inputs)} inputs for {len(dtypes)} operands")
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(d)), None)
            for name, d in zip(self.inputs, dtypes, strict=True)
        ]
        results = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        graph = helper.make_graph([node], "host", infos, results)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        self._evaluator = _evaluator(model)

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs as the evaluator gives them; raises whatever it raises."""
        feeds = dict(zip(self.inputs, inputs, strict=True))
        with np.errstate(all="ignore"):
            return [np.asarray(result) for result in self._evaluator.run(None, feeds)]

    def into(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Evaluate, and write the results. EnginesmithError if their number, shapes or types are
        not what `outputs` are made for."""
        for result, target in zip(self(inputs), outputs, strict=True):
            # The evaluator computes some float32 operators in double; only bits are lost then.
            same_kind = np.can_cast(result.dtype, target.dtype, "same_kind")
            if result.shape != target.shape or not same_kind:
                raise EnginesmithError(
                    f"onnx.reference made {result.dtype} {result.shape} where the model has "
                    f"{target.dtype} {target.shape}"
                )
            target[...] = result


def outputs_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """The names of the outputs that are read."""
    return tuple(name for name in node.output if name and not name.startswith(UNREAD))


def check_node(node: onnx.NodeProto) -> None:
    """NodeError unless it is a single operator that computes the same results in every run and
    reads its operands and attributes alone."""
    from onnx import AttributeProto, TensorProto

    if node.domain not in ("", "ai.onnx"):
        raise NodeError(f"its domain {node.domain} isn't ONNX's own")
    if node.op_type in RANDOM:
        raise NodeError("its results are random")
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise NodeError(f"its attribute {attribute.name} refers to a function's")
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise NodeError("it has subgraphs")
        if attribute.type in (AttributeProto.TYPE_PROTO, AttributeProto.TYPE_PROTOS):
            raise NodeError(f"its attribute {attribute.name} is a type")
        sparse = [*attribute.sparse_tensors, attribute.sparse_tensor]
        parts = [t for s in sparse for t in (s.values, s.indices)]
        for tensor in (attribute.t, *attribute.tensors, *parts):
            if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
                raise NodeError(f"its attribute {attribute.name} lies in another file")


def _evaluator(model: onnx.ModelProto) -> Any:
    """onnx.reference's evaluator of the model. NodeError if it has none for the node."""
    from onnx.reference import ReferenceEvaluator

    try:
        return ReferenceEvaluator(model)
    except Exception as error:  # it raises several kinds, bare C++ ones among them
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NodeError(f"onnx.reference doesn't implement it ({first})") from error


def node_text(node: onnx.NodeProto) -> str:
    """A node as text, for the IR and plans."""
    return base64.b64encode(node.SerializeToString(deterministic=True)).decode()


def node_of_text(text: str) -> onnx.NodeProto:
    """The inverse of `node_text`. NodeError if it is none."""
    import onnx

    node = onnx.NodeProto()
    try:
        node.ParseFromString(base64.b64decode(text, validate=True))
    except Exception as error:  # base64's, and protobuf's, whose class belongs to that package
        raise NodeError(f"its bytes aren't a node ({error})") from error
    return node


def host_node(operator: str, text: str, opset: int, dtypes: Sequence[str], where: str) -> HostNode:
    """The node of a plan. PlanError, which names `where`, if `onnx` is missing or the node is none
    that may run."""
    try:
        import onnx.reference  # noqa: F401 (is it there?)
    except ImportError as error:
        raise PlanError(
            f"{where} ({operator}) runs on the host through onnx.reference, and the package onnx "
            f"is missing ({error}); install it with: pip install onnx, or build the model without "
            "this operator (host_steps=False lists all such nodes)"
        ) from error
    try:
        node = node_of_text(text)
        if node.op_type != operator:
            raise NodeError(f"it is a {node.op_type}")
        return HostNode(node, opset, dtypes)
    except NodeError as error:
        raise PlanError(
            f"the plan is damaged, or this version of onnx is too old for it: {where} ({operator}) "
            f"can't run on the host: {error}; build the model again"
        ) from error
