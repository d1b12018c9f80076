"""Let 1x1 convolutions apply a pointwise node to what they read.

    %a = pointwise(%x, const (8, 1, 1), const (8, 1, 1)) expr=max(add(mul($0, $1), $2), 0.0)
    %y = conv(%a, %w)                                                             ->
    %y = conv(%x, %w, const, const) prologue=max(add(mul($0, $1), $2), 0.0)

DenseNets and other pre-activation networks have one before every convolution; a squeeze-excite
gate, (n, c, 1, 1), is multiplied in the same way.
"""  # fmt: skip

from __future__ import annotations

from dataclasses import replace

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, rewrite_args
from enginesmith.ir.graph import Graph, Node
from enginesmith.ir.ops import ConvAttrs, PointwiseAttrs
from enginesmith.passes.layout import STEM_CHANNELS
from enginesmith.passes.rewrite import Edits, expr_of


def prologue_fusion(graph: Graph) -> bool:
    """Pointwise nodes of one value and operands of one number per channel (or per image and
    channel), read by one convolution of a 1x1 kernel without padding."""
    edits = Edits(graph)
    for node in edits.nodes():
        attrs = node.attrs
        if not isinstance(attrs, ConvAttrs) or attrs.prologue is not None or any(attrs.pads):
            continue
        if attrs.groups != 1 or node.inputs[1].shape[1] <= STEM_CHANNELS:
            continue
        value, producer = node.inputs[0], node.inputs[0].producer
        if producer is None or not isinstance(producer.attrs, PointwiseAttrs):
            continue
        if node.inputs[1].shape[2:] != (1, 1) or not graph.single_use(value):
            continue
        slot = _varying_slot(producer)
        if slot is None:
            continue
        extras = [v for i, v in enumerate(producer.inputs) if i != slot]
        order = {slot: 0} | {
            i: k + 1 for k, i in enumerate(j for j in range(len(producer.inputs)) if j != slot)
        }
        prologue = rewrite_args(expr_of(producer), lambda i, order=order: Arg(order[i]))  # type: ignore[misc]
        inputs = [producer.inputs[slot], *node.inputs[1:], *extras]
        edits.replace(node, "conv", inputs, replace(attrs, prologue=prologue), [producer])
    return edits.apply()


def _varying_slot(node: Node) -> int | None:
    """The one operand that isn't one float32 number per channel."""
    shape = node.output.shape
    channel = shape[1]
    per_channel = ((channel, 1, 1), (1, channel, 1, 1), (shape[0], channel, 1, 1))
    varying = [i for i, v in enumerate(node.inputs) if v.shape not in per_channel]
    if len(varying) != 1 or any(v.dtype != "float32" for v in node.inputs):
        return None
    return varying[0] if dims.same_shape(node.inputs[varying[0]].shape, shape) else None
