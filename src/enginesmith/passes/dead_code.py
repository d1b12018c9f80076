"""Remove nodes whose results nobody reads.

    %a = pointwise(%x) expr=exp($0)
    %b = pointwise(%x) expr=neg($0)          ->      %b = pointwise(%x) expr=neg($0)
    return %b                                        return %b
"""  # fmt: skip

from __future__ import annotations

from enginesmith.ir.graph import Graph, Node


def dead_code(graph: Graph) -> bool:
    """Keep what graph outputs depend on."""
    outputs = {id(v) for v in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(v.uses or id(v) in outputs for v in node.outputs):
            kept.append(node)
        else:
            node.detach()
    changed = len(kept) != len(graph.nodes)
    graph.nodes = kept[::-1]
    return changed
