"""Let a convolution do the zero padding written before it.

    %a = pad(%x) pads=(0, 0, 1, 1, 0, 0, 1, 1) mode=constant value=0.0
    %y = conv(%a, %w) pads=(0, 0, 0, 0)              ->    %y = conv(%x, %w) pads=(1, 1, 1, 1)
"""  # fmt: skip

from __future__ import annotations

from dataclasses import replace

from enginesmith.ir.graph import Graph
from enginesmith.ir.ops import ConvAttrs, PadAttrs
from enginesmith.passes.rewrite import Edits


def pad_into_conv(graph: Graph) -> bool:
    """Only constant zeros of static width around height and width."""
    edits = Edits(graph)
    for node in edits.nodes():
        attrs = node.attrs
        producer = node.inputs[0].producer if node.inputs else None
        if not isinstance(attrs, ConvAttrs) or attrs.prologue is not None or producer is None:
            continue
        if not isinstance(producer.attrs, PadAttrs) or len(producer.attrs.pads) != 8:
            continue
        n0, c0, top, left, n1, c1, bottom, right = producer.attrs.pads
        zeros = producer.attrs.mode == "constant" and producer.attrs.value == 0.0
        if not zeros or any(p != 0 for p in (n0, c0, n1, c1)):
            continue
        extra = [p for p in (top, left, bottom, right) if isinstance(p, int)]
        if len(extra) == 4:
            a, b, c, d = (p + q for p, q in zip(attrs.pads, extra, strict=True))
            inputs = [producer.inputs[0], *node.inputs[1:]]
            edits.replace(node, "conv", inputs, replace(attrs, pads=(a, b, c, d)))
    return edits.apply()
