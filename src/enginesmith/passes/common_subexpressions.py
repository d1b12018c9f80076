"""Compute equal things once: nodes with the same operator, attributes and operands become one, and
so do small constants of equal contents.

    %a = pointwise(%x) expr=exp($0)
    %b = pointwise(%x) expr=exp($0)                  %a = pointwise(%x) expr=exp($0)
    %y = pointwise(%a, %b) expr=add($0, $1)    ->    %y = pointwise(%a, %a) expr=add($0, $1)
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Hashable

from enginesmith.ir.graph import Graph, Value
from enginesmith.passes.rewrite import Edits, merge_sources

_SMALL = 1 << 14
"""Bytes of a constant worth comparing by contents."""


def common_subexpressions(graph: Graph) -> bool:
    """One sweep in topological order: operands are merged before their readers are looked at."""
    edits = Edits(graph)
    constants: dict[Hashable, Value] = {}
    nodes: dict[Hashable, list[Value]] = {}
    changed = False
    for node in edits.nodes():
        for slot, value in enumerate(node.inputs):
            same = constants.setdefault(_constant_key(value), value)
            if same is not value:
                node.set_input(slot, same)
                changed = True
        key = (
            node.op,
            node.attrs,
            tuple(map(id, node.inputs)),
            tuple(v.type for v in node.outputs),
        )
        first = nodes.setdefault(key, node.outputs)
        if first is node.outputs or not _forward_all(edits, node.outputs, first):
            continue
        assert first[0].producer is not None
        merge_sources(first[0].producer, node)
        edits.drop(node)
    return edits.apply() or changed


def _constant_key(value: Value) -> Hashable:
    if value.data is None or value.data.nbytes > _SMALL:
        return id(value)
    return value.type, value.data.tobytes()


def _forward_all(edits: Edits, old: list[Value], new: list[Value]) -> bool:
    """Readers of every old value read its twin; refused as a whole if two are graph outputs."""
    pairs = list(zip(old, new, strict=True))
    if any(edits.graph.is_output(o) and edits.graph.is_output(n) for o, n in pairs):
        return False
    return all(edits.forward(o, n) for o, n in pairs)
