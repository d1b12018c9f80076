"""What the passes share: collected edits of a graph, and small questions about values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from enginesmith.ir import dims
from enginesmith.ir.dims import Shape
from enginesmith.ir.expr import Arg, Call, Cast, Const, Expr, args_of, rewrite_args
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import Attrs, PointwiseAttrs, takes_epilogue
from enginesmith.ir.types import TensorType, broadcast

CHEAP = frozenset(
    ("add", "sub", "mul", "max", "min", "neg", "abs", "where", "lt", "le", "eq", "and", "or", "not")
)
"""Calls that cost about one instruction."""

MAX_OPERANDS = 8
"""Operands of a fused node: more would run kernels out of registers and address streams."""


class Edits:
    """Changes to a graph collected by one pass, so that its node list is rebuilt once.

    Edges change at once; `graph.nodes` only in `apply`, which also restores topological order.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._before: dict[Node, list[Node]] = {}
        self._dead: set[Node] = set()
        self._touched = False

    def nodes(self) -> Iterator[Node]:
        """The graph's nodes that were there at the start and are not dropped when reached."""
        return (node for node in list(self.graph.nodes) if node not in self._dead)

    def insert(self, anchor: Node, node: Node) -> Node:
        """Put `node` before `anchor`."""
        self._before.setdefault(anchor, []).append(node)
        self._touched = True
        return node

    def drop(self, node: Node) -> None:
        """Take a node out. Nothing may read its outputs afterwards."""
        node.detach()
        self._dead.add(node)
        self._touched = True

    def replace(
        self, node: Node, op: str, inputs: Sequence[Value], attrs: Attrs,
        absorbed: Iterable[Node] = (),
    ) -> Node:  # fmt: skip
        """A new node in place of `node` that produces the same output values. It takes over the
        provenance of the `absorbed` nodes, which are dropped."""
        inputs, absorbed = list(inputs), list(absorbed)
        sources = [s for n in (*absorbed, node) for s in n.sources]
        self.drop(node)
        for other in absorbed:
            self.drop(other)
        return self.insert(node, Node(op, inputs, node.outputs, attrs, sources))

    def produce(
        self, anchor: Node, op: str, inputs: Sequence[Value], attrs: Attrs, type: TensorType,
        sources: Iterable[str] = (), name: str = "",
    ) -> Value:  # fmt: skip
        """The output of a new node before `anchor`."""
        value = Value(name or anchor.outputs[0].name, type)
        self.insert(anchor, Node(op, inputs, [value], attrs, sources or anchor.sources))
        return value

    def forward(self, old: Value, new: Value) -> bool:
        """Let the readers of `old` read `new`. False, and no change, where that would make a graph
        input or an already listed output the result under another name."""
        if self.graph.is_output(old):
            is_input = new.producer is None and not new.is_constant
            if is_input or self.graph.is_output(new):
                return False
            new.name = old.name
        self.graph.replace_uses(old, new)
        self._touched = True
        return True

    def bypass(self, node: Node, value: Value) -> bool:
        """Drop a single-output node whose result equals `value`."""
        if not self.forward(node.output, value):
            return False
        if value.producer is not None:
            merge_sources(value.producer, node)
        self.drop(node)
        return True

    def apply(self) -> bool:
        """Rebuild the node list. True if anything changed."""
        if not self._touched:
            return False
        order: list[Node] = []
        for start in self.graph.nodes:
            stack = [(start, False)]
            while stack:
                node, ready = stack.pop()
                if not ready:
                    stack.append((node, True))
                    stack.extend((n, False) for n in reversed(self._before.get(node, ())))
                elif node not in self._dead:
                    order.append(node)
        self.graph.nodes = order
        self.graph.sort()
        return True


def merge_sources(node: Node, *others: Node) -> None:
    """Add the provenance of `others` to `node`."""
    node.sources = tuple(dict.fromkeys((*node.sources, *(s for n in others for s in n.sources))))


def note(graph: Graph, count: int, text: str, many: str = "") -> None:
    """Tell the user `text`, e.g. "recognised {} softmax", keeping one running count per text."""
    if not count:
        return
    forms = [re.escape(t).replace(r"\{\}", r"(\d+)") for t in (text, many or text)]
    for position, line in enumerate(graph.notes):
        for form in forms:
            if found := re.fullmatch(form, line):
                count += int(found[1])
                graph.notes[position] = (text if count == 1 else many or text).format(count)
                return
    graph.notes.append((text if count == 1 else many or text).format(count))


def broadcasts_to(shape: Shape, target: Shape) -> bool:
    """Does numpy broadcasting of both give provably `target`?"""
    if len(shape) > len(target):
        return False
    tail = target[len(target) - len(shape) :]
    return all(d == 1 or dims.equal(d, t) for d, t in zip(shape, tail, strict=True))


def joint_shape(values: Sequence[Value]) -> Shape | None:
    """The shape the values broadcast to; None if they don't."""
    try:
        return broadcast(*(v.shape for v in values))
    except ValueError:
        return None


def parts_from_producer(graph: Graph, view: Node, reader: Node) -> bool:
    """Is a reshape or transpose all that keeps a pointwise `reader` out of the epilogue of what
    computes the view's operand?"""
    producer = view.inputs[0].producer
    return (
        producer is not None
        and takes_epilogue(producer.op)
        and graph.single_use(view.inputs[0])
        and graph.single_use(view.output)
        and dims.same_shape(view.output.shape, reader.output.shape)
    )


def gives_shape(values: Sequence[Value], shape: Shape) -> bool:
    """Do these operands of a pointwise node broadcast to exactly `shape`?"""
    joint = joint_shape(values)
    return joint is not None and dims.same_shape(joint, shape)


def scalar_of(value: Value) -> Const | None:
    """The constant as one number, if it is one element."""
    if value.data is None or value.data.size != 1:
        return None
    return Const(value.data.reshape(()).item(), value.dtype)


def uniform_of(value: Value, limit: int = 1 << 20) -> Const | None:
    """The constant as one number, if all its elements (at most `limit`) equal the first."""
    data = value.data
    if data is None or not 1 <= data.size <= limit:
        return None
    flat = data.reshape(-1)
    if data.size > 1 and not (flat[0] == flat[-1] and bool(np.all(flat == flat[0]))):
        return None
    return Const(flat[0].item(), value.dtype)


def compact(expr: Expr, inputs: Sequence[Value]) -> tuple[Expr, list[Value]]:
    """The same function of fewer operands: unread ones dropped, equal ones read once."""
    kept: list[Value] = []
    slots: dict[int, int] = {}
    used = args_of(expr)
    for index, value in enumerate(inputs):
        if index in used:
            known = next((s for s, v in enumerate(kept) if v is value), None)
            if known is None:
                known = len(kept)
                kept.append(value)
            slots[index] = known
    return rewrite_args(expr, lambda i: Arg(slots[i])), kept


def expr_of(node: Node) -> Expr:
    """The tree of a pointwise node."""
    assert isinstance(node.attrs, PointwiseAttrs)
    return node.attrs.expr


def is_cheap(expr: Expr) -> bool:
    """Only CHEAP calls and casts."""
    match expr:
        case Call(op, operands):
            return op in CHEAP and all(is_cheap(o) for o in operands)
        case Cast(_, x):
            return is_cheap(x)
    return True
