"""What ONNX demands of a graph, checked before import, so that all mistakes are reported
together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import AttributeProto, defs

from enginesmith.errors import Problem
from enginesmith.frontend.node import label


def structure_problems(graph: onnx.GraphProto) -> Iterator[Problem]:
    """Names defined twice or never, and cycles."""
    available = {i.name for i in graph.initializer} | {
        s.values.name for s in graph.sparse_initializer
    }
    makers: dict[str, str] = {}
    for value in graph.input:
        if value.name in makers:
            yield Problem(f"input {value.name}", "is declared twice")
        makers[value.name] = "the graph's inputs"
    for name in available:
        makers.setdefault(name, "the initializers")
    for node in graph.node:
        for name in filter(None, node.output):
            if name in makers:
                yield Problem(label(node), f"defines {name}, which {makers[name]} define already",
                              "names are unique in ONNX: export the model again")  # fmt: skip
            makers[name] = f"node {label(node)}"
    for node in graph.node:
        for name in dict.fromkeys(filter(None, node.input)):
            if name not in makers:
                yield Problem(label(node), f"reads {name}, which nothing defines",
                              "the file is incomplete or was cut wrongly")  # fmt: skip
    for value in graph.output:
        if value.name not in makers:
            yield Problem(f"output {value.name}", "nothing defines it")
    if not graph.output:
        yield Problem(f"graph {graph.name}", "has no outputs")


def ordered(nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """(nodes with every node after those it reads from, the nodes of one cycle or none).

    Stable: a sorted list stays as it is.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    state = [0] * len(nodes)  # 0 new, 1 being visited, 2 done
    order: list[onnx.NodeProto] = []
    for root in range(len(nodes)):
        path: list[tuple[int, Iterator[str]]] = []
        if state[root] == 0:
            state[root] = 1
            path.append((root, iter(nodes[root].input)))
        while path:
            current, names = path[-1]
            for name in names:
                other = maker.get(name, -1)
                if other >= 0 and state[other] == 1:
                    visiting = [i for i, _ in path]
                    return order, [nodes[i] for i in visiting[visiting.index(other) :]]
                if other >= 0 and state[other] == 0:
                    state[other] = 1
                    path.append((other, iter(nodes[other].input)))
                    break
            else:
                state[current] = 2
                order.append(nodes[current])
                path.pop()
    return order, []


def schema_problem(node: onnx.NodeProto, opset: int) -> str:
    """What breaks the operator's schema: attributes unknown, missing or of a wrong type, or the
    number of operands. Empty if nothing, or if ONNX doesn't know the operator."""
    try:
        schema = defs.get_schema(node.op_type, min(opset, defs.onnx_opset_version()), "")
    except defs.SchemaError:
        return ""
    wrong = []
    given = {a.name: a for a in node.attribute}
    for name, attribute in given.items():
        if name not in schema.attributes:
            wrong.append(f"unknown attribute {name}")
            continue
        kind = AttributeProto.AttributeType.Name(attribute.type)
        wanted = str(schema.attributes[name].type).rpartition(".")[2]  # "AttrType.INT"
        if kind != wanted:
            wrong.append(f"attribute {name} is of type {kind}, not {wanted}")
    wrong += [
        f"attribute {name} is missing"
        for name, attribute in schema.attributes.items()
        if attribute.required and name not in given
    ]
    if not schema.min_input <= len(node.input) <= schema.max_input:
        wrong.append(_count(len(node.input), schema.min_input, schema.max_input, "inputs"))
    if not schema.min_output <= len(node.output) <= schema.max_output:
        wrong.append(_count(len(node.output), schema.min_output, schema.max_output, "outputs"))
    return "; ".join(wrong)


def _count(found: int, least: int, most: int, what: str) -> str:
    need = f"{least} to {most}" if most < 2**31 - 1 else f"at least {least}"
    need = str(least) if least == most else need
    return f"{found} {what} where {need} are needed"
