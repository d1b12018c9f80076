"""verify(): is a Graph what every pass relies on? Run between passes; a failure is a bug of
ours."""

from __future__ import annotations

from collections.abc import Iterator

from enginesmith.ir import dims, expr
from enginesmith.ir.expr import DTYPES, Expr
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.infer import CHOSEN_SHAPE, infer
from enginesmith.ir.ops import OPS, PointwiseAttrs, epilogue_of


class InternalError(AssertionError):
    """The graph breaks a rule of the IR."""


def verify(graph: Graph) -> None:
    """InternalError names every broken rule and the node that breaks it."""
    broken = [*_structure(graph), *_uses(graph)]
    for node in graph.nodes:
        broken += [f"{_where(node)}: {reason}" for reason in _node(node)]
    if broken:
        raise InternalError("the graph is inconsistent:\n  " + "\n  ".join(broken))


def _where(node: Node) -> str:
    outputs = ", ".join(f"%{v.name}" for v in node.outputs)
    sources = f" (from {', '.join(node.sources)})" if node.sources else ""
    return f"{outputs} = {node.op}{sources}"


def _structure(graph: Graph) -> Iterator[str]:
    """Every value is made once, before it is read."""
    made = {id(v) for v in graph.inputs}
    for value in graph.inputs:
        if value.producer is not None or value.is_constant:
            yield f"input %{value.name} has a producer or data"
    names = [v.name for v in graph.inputs]
    outputs = [v.name for v in graph.outputs]
    for kind, group in (("inputs", names), ("outputs", outputs)):
        if len(set(group)) != len(group):
            yield f"{kind} of equal names: {', '.join(group)}"
    for node in graph.nodes:
        for value in node.inputs:
            if not value.is_constant and id(value) not in made:
                yield f"{_where(node)}: reads %{value.name} before it is made"
        for value in node.outputs:
            if id(value) in made:
                yield f"{_where(node)}: makes %{value.name} a second time"
            if value.producer is not node:
                yield f"{_where(node)}: isn't the producer of its output"
            made.add(id(value))
    for value in graph.outputs:
        if not value.is_constant and id(value) not in made:
            yield f"output %{value.name} is made by no node"


def _uses(graph: Graph) -> Iterator[str]:
    """`uses` lists exactly the reading slots of nodes in the graph."""
    reads: dict[int, set[tuple[int, int]]] = {}
    for node in graph.nodes:
        for slot, value in enumerate(node.inputs):
            reads.setdefault(id(value), set()).add((id(node), slot))
    for value in graph.values():
        listed = {(id(node), slot) for node, slot in value.uses}
        if listed != reads.get(id(value), set()) or len(listed) != len(value.uses):
            yield f"%{value.name}: its list of uses doesn't match the nodes that read it"


def _node(node: Node) -> Iterator[str]:
    schema = OPS.get(node.op)
    if schema is None:
        yield "unknown operator"
        return
    if not isinstance(node.attrs, schema.attrs):
        yield f"attributes of class {type(node.attrs).__name__}, not {schema.attrs.__name__}"
        return
    if len(node.outputs) != 1 and (node.op != "host" or not node.outputs):
        yield f"{len(node.outputs)} outputs"
        return
    for value in (*node.inputs, *node.outputs):
        yield from _value(value)
    arity = list(_arity(node))
    yield from arity
    if arity or node.op == "host":  # ONNX's shape inference has chosen the types
        return
    try:
        chosen = node.output.type if node.op in CHOSEN_SHAPE else None
        derived = infer(node.op, node.attrs, [v.type for v in node.inputs], chosen)
    except (ValueError, IndexError) as error:
        yield str(error)
        return
    have = node.output.type
    if derived.dtype != have.dtype or not _compatible(derived.shape, have.shape):
        yield f"the output is of type {have}, its operands make it {derived}"
    yield from _elements(node)


def _compatible(a: dims.Shape, b: dims.Shape) -> bool:
    """Same rank, no static sizes that differ (symbolic ones may be equal in ways unprovable)."""
    if len(a) != len(b):
        return False
    return all(
        x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)
    )


def _value(value: Value) -> Iterator[str]:
    if value.dtype not in DTYPES:
        yield f"%{value.name} is of unknown element type {value.dtype}"
    if any(isinstance(d, int) and d < 0 for d in value.shape):
        yield f"%{value.name} has a negative size: {value.type}"
    if value.data is not None and (
        value.data.dtype.name != value.dtype or value.data.shape != tuple(value.shape)
    ):
        found = f"{value.data.dtype}{value.data.shape}"
        yield f"%{value.name} is of type {value.type}, its data {found}"


def _trees(node: Node) -> Iterator[tuple[str, Expr, int]]:
    """(what, tree, how many operands it may read) of the node's expressions."""
    if isinstance(node.attrs, PointwiseAttrs):
        yield "expression", node.attrs.expr, len(node.inputs)
        return
    extras = len(node.inputs) - OPS[node.op].inputs
    for what in ("epilogue", "prologue"):
        tree = getattr(node.attrs, what, None)
        if tree is not None:
            yield what, tree, 1 + extras


def _arity(node: Node) -> Iterator[str]:
    schema, count = OPS[node.op], len(node.inputs)
    has_trees = epilogue_of(node.attrs) is not None or getattr(node.attrs, "prologue", None)
    least = 1 if node.op == "concat" else max(schema.inputs, 0)
    if count < least:
        yield f"{count} operands where {least} are needed"
    elif schema.inputs >= 0 and not has_trees and count > schema.inputs + schema.optional:
        yield f"{count} operands where {schema.inputs + schema.optional} are the most"
    for what, tree, limit in _trees(node):
        if max(expr.args_of(tree), default=0) >= max(limit, 1):
            yield f"the {what} {tree} reads operands that don't exist"


def _elements(node: Node) -> Iterator[str]:
    """Reshapes keep the number of elements; slices stay inside."""
    if node.op == "reshape":
        old, new = dims.product(node.inputs[0].shape), dims.product(node.output.shape)
        if isinstance(old, int) and isinstance(new, int) and old != new:
            yield f"{old} elements reshaped to {new}"
    if node.op == "slice":
        x, y = node.inputs[0], node.output
        if not x.type.rank == y.type.rank == len(node.attrs.starts) == len(node.attrs.steps):  # type: ignore[union-attr]
            yield "a slice whose starts, steps and shapes differ in rank"
            return
        for start, step, size, limit in zip(
            node.attrs.starts, node.attrs.steps, y.shape, x.shape, strict=True  # type: ignore[union-attr]
        ):  # fmt: skip
            if all(isinstance(d, int) for d in (start, size, limit)) and size > 0:
                last = start + (size - 1) * step
                if not (0 <= start < limit and 0 <= last < limit):
                    yield f"reads elements {start} to {last} of an axis of size {limit}"
