"""What a model takes for granted about its symbolic sizes: equalities the plan's runtime checks.

ONNX lets a model add `(h//2)*2` rows to `h` rows; no one can tell at build time whether they agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import OPS, ConcatAttrs, MatMulAttrs, prologue_extras
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
    first = max(OPS[node.op].inputs, 0)
    last = len(node.inputs) - prologue_extras(attrs)
    if node.op == "pointwise" or getattr(attrs, "epilogue", None) is not None:
        pairs += _against(out, node.inputs[first:last])
    return pairs + _against(node.inputs[0].shape, node.inputs[last:]) if node.inputs else pairs


def _against(shape: Shape, values: Sequence[Value]) -> list[tuple[Dim, Dim]]:
    """Dims of operands that broadcast to `shape`, with those they meet."""
    return [(d, shape[len(shape) - v.type.rank + i]) for v in values for i, d in enumerate(v.shape)]


def _plain(text: str) -> int | str:
    return int(text) if text.isdigit() else text
