"""Chooses the element types that float32 values are held in: half precision where a build asks.

Precision is a matter of memory. A value keeps its type, and so does all arithmetic around it; it is
rounded when a kernel stores it (`Layout.held`). Held in half precision are all float32 values and
the weights of convolutions, matmuls and tables. Not held are the graph's inputs and outputs, what
only moves them (views of their memory), small constants such as biases, counted numbers (ranges,
whose steps half precision would lose), and the values of `keep`.

Some values go together (`layers`): what shares memory, and the factors that a kernel multiplies on
tensor cores, which know no mixture. If one of them stays float32, so do the others, and the kernel
multiplies in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import ConvAttrs, LayoutAttrs

WEIGHT_SLOTS = {"conv": (1,), "conv_transpose": (1,), "matmul": (0, 1), "gather": (0,)}
"""Operands that are many and are multiplied or looked up."""

FACTORS = {"conv": (0, 1), "conv_transpose": (0, 1), "matmul": (0, 1), "attention": (0, 1, 2)}
"""Operands of kernels for matrices, which should all be of one type."""

LARGE = 1 << 14
"""Other constants are held in half precision from this many elements on."""

MOVES = frozenset({"reshape", "transpose", "slice", "layout", "expand"})

HELD = {"fp16": "float16", "bf16": "bfloat16"}
"""Element type by a build's precision; fp32 holds nothing otherwise."""

LARGEST = {"float16": 65504.0, "bfloat16": 3.38e38}


def assign_precision(graph: Graph, held: str, keep: Collection[int] = ()) -> list[Value]:
    """Set `Layout.held` of the graph's values. keep: ids of values that stay float32. Returns the
    weights that had to stay, because `held` can't hold their largest element."""
    _copy_shared_outputs(graph)
    _copy_for_factors(graph)
    kept = set(keep) | {id(v) for v in (*graph.inputs, *graph.outputs)}
    kept.update(id(v) for node in graph.nodes if node.op == "range" for v in node.outputs)
    hosts = [node for node in graph.nodes if node.op == "host"]  # onnx.reference has float32
    kept.update(id(v) for node in hosts for v in (*node.inputs, *node.outputs))
    for node in reversed(graph.nodes):  # what only moves an output's memory has its type
        if node.op in MOVES and all(id(v) in kept for v in node.outputs):
            kept.update(id(v) for v in node.inputs if len(v.uses) == 1 and v.producer)
    too_large: list[Value] = []
    for value in graph.values():
        if value.dtype != "float32" or id(value) in kept:
            continue
        if value.data is not None and not _halved(value):
            continue
        if value.data is not None and _largest(value.data) > LARGEST[held]:
            too_large.append(value)
        value.type = replace(value.type, layout=replace(value.type.layout, held=held))
    large = {id(v) for v in too_large}
    for layer in layers(graph):
        if not large.isdisjoint(map(id, layer)):
            raise_to_float32(layer)
    return too_large


def raise_to_float32(values: Iterable[Value]) -> None:
    """Hold these values as what they are."""
    for value in values:
        value.type = replace(value.type, layout=replace(value.type.layout, held=""))


def layers(graph: Graph) -> list[list[Value]]:
    """The values held in another type than their own, in groups of which all or none can be raised,
    in the graph's order."""
    values = [v for v in graph.values() if v.type.layout.held]
    parent = {id(v): id(v) for v in values}

    def root(key: int) -> int:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for node in graph.nodes:
        tied = [root(id(v)) for v in _tied(node) if id(v) in parent]
        for key in tied[1:]:
            parent[root(key)] = root(tied[0])
    found: dict[int, list[Value]] = {}
    for value in values:
        found.setdefault(root(id(value)), []).append(value)
    return list(found.values())


def _tied(node: Node) -> list[Value]:
    """Values at a node that must be of one type."""
    if node.op in MOVES:
        return [node.inputs[0], node.output]
    factors = [node.inputs[slot] for slot in FACTORS.get(node.op, ())]
    if node.op == "attention":
        return [*factors, node.output]  # kernels round scores to the type of all four
    return [node.inputs[1], node.output] if depthwise(node) else factors


def depthwise(node: Node) -> bool:
    """A convolution with a kernel of its own for each channel: on GPUs it has kernels for factors
    of any types, which multiply in float32. Its weights are few, so they may go with the result."""
    if node.op != "conv":
        return False
    assert isinstance(node.attrs, ConvAttrs)
    out, group_in = node.inputs[1].shape[:2]
    return bool(group_in == 1 and out == node.attrs.groups)


def _copy_shared_outputs(graph: Graph) -> None:
    """A graph output that kernels for matrices read gets a copy of its own, since those kernels
    want their factors held in half precision."""
    for value in graph.outputs:
        node = value.producer
        multiplied = any(n.op in FACTORS and slot in FACTORS[n.op] for n, slot in value.uses)
        if node is None or value.dtype != "float32" or not multiplied:
            continue
        inner = Value(f"{value.name}_inner", value.type)
        for reader, slot in list(value.uses):
            reader.set_input(slot, inner)
        node.outputs[node.outputs.index(value)] = inner
        inner.producer = node
        graph.insert_after(node, Node("layout", [inner], [value], LayoutAttrs(), node.sources))


def _copy_for_factors(graph: Graph) -> None:
    """What a host step makes gets a copy for the kernels that want it held in half precision."""
    for node in [n for n in graph.nodes if n.op == "host"]:
        for value in node.outputs:
            readers = [u for u in value.uses if u[1] in FACTORS.get(u[0].op, ())]
            if value.dtype != "float32" or not readers:
                continue
            held = Value(f"{value.name}_held", value.type)
            graph.insert_after(node, Node("layout", [value], [held], LayoutAttrs(), node.sources))
            for reader, slot in readers:
                reader.set_input(slot, held)


def _halved(value: Value) -> bool:
    """Is this constant one of the many numbers that halving is for?"""
    weight = any(slot in WEIGHT_SLOTS.get(node.op, ()) for node, slot in value.uses)
    assert value.data is not None
    return weight or value.data.size >= LARGE


def _largest(data: np.ndarray) -> float:
    return float(np.abs(data).max(initial=0))
