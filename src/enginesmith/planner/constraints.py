"""What a model takes for granted about its symbolic sizes: equalities the plan's runtime checks.

ONNX lets a model add `(h//2)*2` rows to `h` rows; no one can tell at build time whether they agree.
"""

from __future__ import annotations

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Graph, Node
from enginesmith.ir.ops import OPS, ConcatAttrs, MatMulAttrs
from enginesmith.plan.plan import Constraint


def constraints(graph: Graph) -> tuple[Constraint, ...]:
    """Every pair of dims that must be equal for the graph to make sense and isn't provably so."""
    assumed = [*graph.assumptions]
    assumed += [(a, b, node.sources) for node in graph.nodes for a, b in _pairs(node)]
    found: dict[tuple[str, str], Constraint] = {}
    for a, b, nodes in assumed:
        if dims.equal(a, b) or 1 in (a, b):
            continue
        left, right = sorted((dims.to_text(a), dims.to_text(b)))
        found.setdefault((left, right), Constraint(_plain(left), _plain(right), nodes))
    return tuple(found.values())


def _pairs(node: Node) -> list[tuple[Dim, Dim]]:
    out = node.outputs[0].shape
    attrs = node.attrs
    if isinstance(attrs, ConcatAttrs):
        return [(d, out[i]) for v in node.inputs for i, d in enumerate(v.shape) if i != attrs.axis]
    pairs: list[tuple[Dim, Dim]] = []
    if isinstance(attrs, MatMulAttrs) and min(v.type.rank for v in node.inputs[:2]) >= 2:
        a, b = node.inputs[:2]
        pairs.append(
            (a.shape[-2 if attrs.transpose_a else -1], b.shape[-1 if attrs.transpose_b else -2])
        )
        batch = [v.shape[:-2] for v in (a, b)]
        pairs += [(d, out[len(out) - 2 - len(s) + i]) for s in batch for i, d in enumerate(s)]
    first = max(OPS[node.op].inputs, 0) if node.op != "pointwise" else 0
    if node.op == "pointwise" or getattr(attrs, "epilogue", None) is not None:
        for value in node.inputs[first:]:
            lead = len(out) - value.type.rank
            pairs += [(d, out[lead + i]) for i, d in enumerate(value.shape)]
    return pairs


def _plain(text: str) -> int | str:
    return int(text) if text.isdigit() else text
