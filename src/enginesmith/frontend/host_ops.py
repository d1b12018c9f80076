"""Host steps: nodes that no importer lowers, left to `onnx.reference` where that is possible.

The types of their outputs come from ONNX's shape inference on the node alone, with the types of its
operands and the contents of small constants. A size has to be a number or a size that an operand
has; what is computed from data is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from enginesmith.frontend import symbolic
from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.node import OnnxNode, Refusal, Unsupported, dtype_name
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.ops import HostAttrs
from enginesmith.ir.types import TensorType
from enginesmith.runtime.host_node import UNREAD, HostNode, NodeError, node_text, outputs_of

TYPICAL = 8
"""What symbolic sizes are where a number is needed to try a node out."""

TRIED = 1 << 20
"""Elements of operands and outputs up to which a node is evaluated once while it is imported."""

MARK = "host step: "
"""What the notes about host steps begin with."""


def note_of(where: str, operator: str, reason: str, tensors: int) -> str:
    """What the user is told of a host step."""
    return (
        f"{MARK}node {where} ({operator}) runs on the host through onnx.reference ({reason}); it "
        f"is slow, nothing is fused, and on a GPU {tensors} tensors are copied there and back"
    )


def host_notes(graph: Graph) -> list[str]:
    """The notes about the graph's host steps."""
    return [note for note in graph.notes if note.startswith(MARK)]


def host_step(
    builder: GraphBuilder, view: OnnxNode, wanted: Sequence[bool], refusal: Refusal
) -> list[Value | None]:
    """The outputs of the node as a host step, None where `wanted` says that nobody reads one.

    refusal: why no importer serves it. Unsupported, with both reasons, if the host can't either.
    """
    try:
        return _emit(builder, view, wanted)
    except (NodeError, Refusal) as error:
        remedy = refusal.remedy or (error.remedy if isinstance(error, Refusal) else "")
        raise Unsupported(f"{refusal.reason}; it can't run on the host: {error}", remedy) from error


def _emit(builder: GraphBuilder, view: OnnxNode, wanted: Sequence[bool]) -> list[Value | None]:
    if not any(wanted):
        return [None] * len(wanted)
    values = [builder.data(v) for v in view.inputs if v is not None]
    node = _canonical(view, wanted)
    opset = _modern(node, min(view.opset, onnx.defs.onnx_opset_version()))
    made = HostNode(node, opset, [v.dtype for v in values])
    arrays = [v.data for v in values if v.data is not None]
    if len(arrays) == len(values):
        found = _folded(builder, made, arrays)
    else:
        types = _infer(node, opset, values)
        _try(made, values, types)
        attrs = HostAttrs(node.op_type, node_text(node), opset)
        found = builder.host(values, attrs, types)
    results = iter(found)
    return [next(results) if want else None for want in wanted]


def _canonical(view: OnnxNode, wanted: Sequence[bool]) -> onnx.NodeProto:
    """The node with names of its own, so that equal ones are equal."""
    node = onnx.NodeProto(op_type=view.proto.op_type)
    if view.proto.domain not in ("", "ai.onnx"):
        node.domain = view.proto.domain
    node.input.extend("" if v is None else f"x{i}" for i, v in enumerate(view.inputs))
    for i, (name, want) in enumerate(zip(view.proto.output, wanted, strict=True)):
        node.output.append(f"y{i}" if want else f"{UNREAD}{i}" if name else "")
    node.attribute.extend(sorted(view.proto.attribute, key=lambda a: a.name))
    for attribute in node.attribute:
        attribute.doc_string = ""
    return node


def _modern(node: onnx.NodeProto, opset: int) -> int:
    """The version to evaluate the node in: onnx.reference knows GridSample in its form of version
    20 alone, which gave modes other names."""
    if node.op_type != "GridSample" or opset >= 20:
        return opset
    modes = {b"bilinear": b"linear", b"bicubic": b"cubic"}
    for attribute in node.attribute:
        if attribute.name == "mode":
            attribute.s = modes.get(attribute.s, attribute.s)
    return 20


def _folded(builder: GraphBuilder, node: HostNode, arrays: Sequence[np.ndarray]) -> list[Value]:
    """The results for constants, which are constants."""
    results = _evaluated(node, arrays)
    for result in results:
        if result.dtype.kind not in "biuf":
            raise Unsupported(f"it makes elements of type {result.dtype}")
        dtype_name(helper.np_dtype_to_tensor_dtype(result.dtype), "its output")
    return [constant(builder.hint, result) for result in results]


def _evaluated(node: HostNode, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    try:
        return node(arrays)
    except Exception as error:  # whatever the evaluator, or numpy under it, raises
        text = str(error).strip() or type(error).__name__
        raise Unsupported(f"onnx.reference fails on it ({text.splitlines()[0]})") from error


def _infer(node: onnx.NodeProto, opset: int, values: Sequence[Value]) -> list[TensorType]:
    """The types of the outputs that are read. Unsupported says which size isn't known."""
    symbols: dict[str, Dim] = {}
    inferred = _inference(node, opset, values, symbols)
    found = []
    for info in inferred:
        tensor = info.type.tensor_type
        if not info.type.HasField("tensor_type") or not tensor.elem_type:
            raise Unsupported(f"its output {info.name[1:]} isn't known to be a tensor")
        dtype = dtype_name(tensor.elem_type, f"its output {info.name[1:]}")
        if not tensor.HasField("shape"):
            raise Unsupported(f"the rank of its output {info.name[1:]} is computed from data")
        shape: list[Dim] = []
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.HasField("dim_value"):
                shape.append(int(dim.dim_value))
            elif dim.dim_param in symbols:
                shape.append(symbols[dim.dim_param])
            else:
                raise _unknown_size(node, opset, values, info.name, axis)
        found.append(TensorType(dtype, tuple(shape)))
    return found


def _unknown_size(
    node: onnx.NodeProto, opset: int, values: Sequence[Value], name: str, axis: int
) -> Unsupported:
    where = f"size {axis} of its output {name[1:]}"
    if any(not dims.is_static(v.shape) for v in values):
        for info in _inference(node, opset, values, None):
            known = info.type.tensor_type.shape.dim
            if info.name == name and axis < len(known) and known[axis].HasField("dim_value"):
                return Unsupported(
                    f"{where} follows from symbolic sizes in a way that isn't known",
                    "fix them with shapes={...}",
                )
    return Unsupported(f"{where} is computed from data")


def _inference(
    node: onnx.NodeProto, opset: int, values: Sequence[Value], symbols: dict[str, Dim] | None
) -> Sequence[onnx.ValueInfoProto]:
    """ONNX's inference on the node. symbols: filled with the sizes that names stand for; None:
    symbolic sizes are TYPICAL."""

    def size(dim: Dim) -> int | str:
        if isinstance(dim, int):
            return dim
        if symbols is None:
            return TYPICAL
        name = next((n for n, known in symbols.items() if dims.equal(known, dim)), "")
        name = name or f"s{len(symbols)}"
        symbols[name] = dim
        return name

    infos, initializers = [], []
    for name, value in zip((n for n in node.input if n), values, strict=True):
        if value.data is not None and value.data.size <= symbolic.LARGEST:
            initializers.append(numpy_helper.from_array(value.data, name))
            continue
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
        infos.append(helper.make_tensor_value_info(name, kind, [size(d) for d in value.shape]))
    results = [helper.make_empty_tensor_value_info(name) for name in outputs_of(node)]
    graph = helper.make_graph([node], "host", infos, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        inferred = shape_inference.infer_shapes(model, True, True, True)
    except Exception as error:  # several kinds, bare C++ ones among them
        text = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise Unsupported(f"ONNX's shape inference refuses it ({text.strip()})") from error
    return list(inferred.graph.output)


def _try(node: HostNode, values: Sequence[Value], types: Sequence[TensorType]) -> None:
    """Evaluate a small node once, on zeros: what onnx.reference lacks shows here, not in each run.
    Unsupported if it fails, or makes other shapes than were inferred."""

    def sizes(shape: Sequence[Dim]) -> tuple[int, ...]:
        names: Mapping[str, int] = {n: TYPICAL for d in shape for n in dims.symbols_of(d)}
        return tuple(dims.evaluate(d, names) for d in shape)

    shapes = [sizes(v.shape) for v in values]
    expected = [sizes(t.shape) for t in types]
    if sum(map(prod, (*shapes, *expected))) > TRIED or not any(map(prod, expected)):
        return
    arrays = [
        np.zeros(shape, v.dtype) if v.data is None else v.data
        for v, shape in zip(values, shapes, strict=True)
    ]
    for result, shape, type_ in zip(_evaluated(node, arrays), expected, types, strict=True):
        if result.shape != shape or not np.can_cast(result.dtype, type_.dtype, "same_kind"):
            raise Unsupported(
                f"onnx.reference makes {result.dtype} {result.shape} of it, and ONNX says "
                f"{type_.dtype} {shape}"
            )
