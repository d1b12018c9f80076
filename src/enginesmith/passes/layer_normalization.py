"""Recognise layer normalization (and RMS normalization) written out in elementary operations.

    %m = reduce(%x) kind=mean axes=(2,) keepdims=True
    %d = pointwise(%x, %m) expr=sub($0, $1)
    %q = pointwise(%d) expr=mul($0, $0)
    %v = reduce(%q) kind=mean axes=(2,) keepdims=True
    %e = pointwise(%v) expr=add($0, 1e-05)
    %s = pointwise(%e) expr=sqrt($0)
    %n = pointwise(%d, %s) expr=div($0, $1)
    %a = pointwise(%n, const g) expr=mul($0, $1)
    %y = pointwise(%a, const b) expr=add($0, $1)     ->
    %y = normalization(%x, g, b) axis=2 epsilon=1e-05

Without the subtraction of the mean it is RMS normalization. Scale and bias may be missing.
"""

from __future__ import annotations

import numpy as np

from enginesmith.ir import dims
from enginesmith.ir.dims import Shape
from enginesmith.ir.expr import Const
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.ops import NormalizationAttrs, ReduceAttrs
from enginesmith.passes.match import operand_and_constant, operands, readers, square_of
from enginesmith.passes.rewrite import Edits, note


def layer_normalization(graph: Graph) -> bool:
    """Every match from its mean of squares on."""
    edits = Edits(graph)
    layer = rms = 0
    for node in edits.nodes():
        axes = _mean_axes(node)
        centered = square_of(node.inputs[0]) if axes else None
        if axes is None or centered is None:
            continue
        for normalised, epsilon in _normalised_by(node.output, centered):
            x = _mean_subtracted_from(centered, axes)
            is_rms = x is None
            if _replace(edits, normalised, x or centered, axes[0], epsilon, is_rms):
                rms += is_rms
                layer += not is_rms
    note(graph, layer, "recognised {} layer normalization", "recognised {} layer normalizations")
    note(graph, rms, "recognised {} RMS normalization", "recognised {} RMS normalizations")
    return edits.apply()


def _mean_axes(node: Node) -> tuple[int, ...] | None:
    """The axes of a mean over the last ones that keeps the rank."""
    match node.attrs:
        case ReduceAttrs(kind="mean", axes=axes, keepdims=True, epilogue=None):
            rank = node.output.type.rank
            return axes if axes and axes == tuple(range(axes[0], rank)) else None
    return None


def _normalised_by(variance: Value, centered: Value) -> list[tuple[Value, float]]:
    """Each value `centered` / sqrt(variance + epsilon), and its epsilon."""
    found: list[tuple[Value, float]] = []
    for reader in readers(variance):
        shifted = reader.outputs[0]
        match = operand_and_constant(shifted, "add")
        if match is None or match[0] is not variance:
            continue
        roots = [n.output for n in readers(shifted) if operands(n.output, "sqrt")]
        for root in roots:
            for node in readers(root):
                if operands(node.output, "div") == (centered, root):
                    found.append((node.output, match[1]))
                elif operands(node.output, "div") == (Const(1.0), root):
                    found.extend((v, match[1]) for v in _products(node.output, centered))
    return found


def _products(factor: Value, other: Value) -> list[Value]:
    pairs = [(n.output, operands(n.output, "mul")) for n in readers(factor)]
    return [v for v, p in pairs if p in ((factor, other), (other, factor))]


def _mean_subtracted_from(centered: Value, axes: tuple[int, ...]) -> Value | None:
    """x where the value is x minus its mean along `axes`."""
    match operands(centered, "sub"):
        case (Value() as x, Value(producer=Node() as mean)):
            if _mean_axes(mean) == axes and mean.inputs[0] is x:
                return x
    return None


def _replace(
    edits: Edits, normalised: Value, x: Value, axis: int, epsilon: float, rms: bool
) -> bool:
    """Put one node in place of the last value that scale and bias lead to."""
    shape = x.shape[axis:]
    if x.dtype != "float32" or not dims.is_static(shape):
        return False
    result, scale = _with_constant(edits.graph, normalised, "mul", shape)
    bias: Value | None = None
    if not rms:
        result, bias = _with_constant(edits.graph, result, "add", shape)
    if scale is None:
        scale = constant("ones", np.ones(shape, np.float32))
    node = result.producer
    assert node is not None
    inputs = [x, scale] if bias is None else [x, scale, bias]
    edits.replace(node, "normalization", inputs, NormalizationAttrs(axis, epsilon, rms))
    return True


def _with_constant(graph: Graph, value: Value, op: str, shape: Shape) -> tuple[Value, Value | None]:
    """(op(value, c), c of shape `shape`) if that is how `value` is read, else (value, None)."""
    if not graph.single_use(value):
        return value, None
    result = value.uses[0][0].outputs[0]
    pair = operands(result, op)
    for other in pair or ():
        data = other.data if isinstance(other, Value) and other is not value else None
        if data is None or data.dtype != np.float32 or data.ndim > value.type.rank:
            continue
        padded = (1,) * max(len(shape) - data.ndim, 0) + data.shape
        lead, tail = padded[: len(padded) - len(shape)], padded[len(padded) - len(shape) :]
        if all(d == 1 for d in lead) and all(a in (1, b) for a, b in zip(tail, shape, strict=True)):
            return result, constant("scale", np.broadcast_to(data.reshape(tail), shape))
    return value, None
