"""A Graph as text: stable, diffable, with types, attributes, expressions and provenance.

    graph "tiny" {
      input %x: float32[batch, 3, 8, 8]
      const %w: float32[4, 3, 3, 3] #5be1c64a09d1
      const %b: float32[4, 1, 1] = [0.0, 1.0, 2.0, 3.0]
      %y: float32[batch, 4, 6, 6] = conv(%x, %w, %b) {strides=[1, 1], ...} from "c"
      output %y
    }

Attributes at their default are left out, expressions stand in backquotes. Small constants are
printed in full, the others as a hash; `parser.parse_graph` reads the text back, given those. Names
are labels: printed ones are made unique with a suffix `.1`, `.2`, ... Constants come at their first
use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import sympy

from enginesmith.ir import dims, expr
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import Attrs

INLINE = 16
"""Constants of up to this many elements are printed in full."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/\-]+")


def print_graph(graph: Graph) -> str:
    """The text, ending in a newline."""
    names = _unique_names(graph)
    lines = [f"graph {json.dumps(graph.name)} {{"]
    lines += [f"  meta {json.dumps(k)} = {json.dumps(v)}" for k, v in graph.metadata.items()]
    lines += [f"  note {json.dumps(note)}" for note in graph.notes]
    lines += [
        f"  assume <{dims.to_text(a)}> = <{dims.to_text(b)}>{_from(sources)}"
        for a, b, sources in graph.assumptions
    ]
    lines += [f"  input {names[id(v)]}: {v.type}" for v in graph.inputs]
    seen: set[int] = set()

    def constants(values: list[Value]) -> Iterator[str]:
        for value in values:
            if value.is_constant and id(value) not in seen:
                seen.add(id(value))
                yield f"  const {names[id(value)]}: {value.type} {_constant_text(value)}"

    for node in graph.nodes:
        lines += constants(node.inputs)
        lines.append("  " + _node_text(node, names))
    lines += constants(graph.outputs)
    lines += [f"  output {names[id(v)]}" for v in graph.outputs]
    return "\n".join([*lines, "}", ""])


def _unique_names(graph: Graph) -> dict[int, str]:
    """id(value) -> its printed name; inputs and outputs keep theirs where they can."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for value in [*graph.inputs, *graph.outputs, *graph.values()]:
        if id(value) in names:
            continue
        name, count = value.name, 0
        while name in taken:
            count += 1
            name = f"{value.name}.{count}"
        taken.add(name)
        names[id(value)] = f"%{name}" if _PLAIN_NAME.fullmatch(name) else f"%{json.dumps(name)}"
    return names


def constant_hash(data: np.ndarray[Any, Any]) -> str:
    """12 hexadecimal digits of the bytes, dtype and shape."""
    digest = hashlib.sha256(f"{data.dtype.name}{data.shape}".encode())
    digest.update(np.ascontiguousarray(data).tobytes())
    return digest.hexdigest()[:12]


def _constant_text(value: Value) -> str:
    assert value.data is not None
    if value.data.size <= INLINE:
        return f"= [{', '.join(repr(x) for x in value.data.ravel().tolist())}]"
    return f"#{constant_hash(value.data)}"


def _node_text(node: Node, names: dict[int, str]) -> str:
    outputs = ", ".join(f"{names[id(v)]}: {v.type}" for v in node.outputs)
    inputs = ", ".join(names[id(v)] for v in node.inputs)
    attrs = attrs_text(node.attrs)
    return (
        f"{outputs} = {node.op}({inputs})"
        + (f" {{{attrs}}}" if attrs else "")
        + _from(node.sources)
    )


def _from(sources: tuple[str, ...]) -> str:
    return f" from {', '.join(map(json.dumps, sources))}" if sources else ""


def attrs_text(attrs: Attrs) -> str:
    """`name=value` of every attribute that isn't at its default."""
    parts = []
    for field in fields(attrs):
        value = getattr(attrs, field.name)
        if field.default is MISSING or value != field.default:
            parts.append(f"{field.name}={_value_text(value)}")
    return ", ".join(parts)


def _value_text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    if isinstance(value, expr.Arg | expr.Const | expr.Call | expr.Cast):
        return f"`{value}`"
    if isinstance(value, sympy.Expr):
        return f"<{dims.to_text(value)}>"
    return json.dumps(value) if isinstance(value, str) else repr(value)
