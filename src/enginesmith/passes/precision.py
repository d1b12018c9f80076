"""Chooses the element types that float32 values are held in: half precision where a build asks.

Precision is a matter of memory. A value keeps its type, and so does all arithmetic around it; it is
rounded when a kernel stores it (`Layout.held`). Held in half precision are all float32 values and
the weights of convolutions, matmuls and tables. Not held are the graph's inputs and outputs, what
only moves them (views of their memory), small constants such as biases, counted numbers (ranges,
whose steps half precision would lose), and the values of `keep`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import LayoutAttrs

WEIGHT_SLOTS = {"conv": (1,), "conv_transpose": (1,), "matmul": (0, 1), "gather": (0,)}
"""Operands that are many and are multiplied or looked up."""

FACTORS = {"conv": (0,), "conv_transpose": (0,), "matmul": (0, 1), "attention": (0, 1, 2)}
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
    kept = set(keep) | {id(v) for v in (*graph.inputs, *graph.outputs)}
    kept.update(id(v) for node in graph.nodes if node.op == "range" for v in node.outputs)
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
            continue
        value.type = replace(value.type, layout=replace(value.type.layout, held=held))
    return too_large


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


def _halved(value: Value) -> bool:
    """Is this constant one of the many numbers that halving is for?"""
    weight = any(slot in WEIGHT_SLOTS.get(node.op, ()) for node, slot in value.uses)
    assert value.data is not None
    return weight or value.data.size >= LARGE


def _largest(data: np.ndarray) -> float:
    return float(np.abs(data).max(initial=0))
