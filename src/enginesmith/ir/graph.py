"""Graph, Node, Value: classes with identity. The object is the identity; names are labels, made
unique when printed. Everything hashed, saved or compared (types, attrs, expressions) is frozen
data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from enginesmith.ir.dims import Dim
from enginesmith.ir.types import TensorType

if TYPE_CHECKING:
    from enginesmith.ir.ops import Attrs


class Value:
    """One tensor: an output of `producer`, a graph input (no producer, no data) or a constant
    (`data`: a numpy array of the type's dtype and shape)."""

    __slots__ = ("data", "name", "producer", "type", "uses")

    def __init__(self, name: str, type: TensorType, data: np.ndarray | None = None) -> None:
        self.name = name
        self.type = type
        self.data = data
        self.producer: Node | None = None
        self.uses: list[tuple[Node, int]] = []
        """(node, input slot) of every reader."""

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


def constant(name: str, data: Any) -> Value:
    """A constant value of `data`'s dtype and shape."""
    array = np.ascontiguousarray(data).reshape(np.shape(data))
    return Value(name, TensorType(array.dtype.name, tuple(array.shape)), array)


class Node:
    """One operation. `sources`: names of the ONNX nodes it came from (provenance)."""

    __slots__ = ("attrs", "inputs", "op", "outputs", "sources")

    def __init__(
        self, op: str, inputs: Sequence[Value], outputs: Sequence[Value], attrs: Attrs,
        sources: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.op = op
        self.inputs: list[Value] = []
        self.outputs = list(outputs)
        self.attrs = attrs
        self.sources = tuple(dict.fromkeys(sources))
        for value in inputs:
            self.inputs.append(value)
            value.uses.append((self, len(self.inputs) - 1))
        for value in outputs:
            value.producer = self

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value

    def set_input(self, slot: int, value: Value) -> None:
        self.inputs[slot].uses.remove((self, slot))
        self.inputs[slot] = value
        value.uses.append((self, slot))

    def set_inputs(self, values: Sequence[Value]) -> None:
        """Replace all inputs."""
        self.detach()
        for slot, value in enumerate(values):
            self.inputs.append(value)
            value.uses.append((self, slot))

    def detach(self) -> None:
        """Stop reading all inputs (before removal)."""
        for slot, value in enumerate(self.inputs):
            value.uses.remove((self, slot))
        self.inputs = []

    def __repr__(self) -> str:
        return f"{self.outputs} = {self.op}({self.inputs}) {self.attrs}"


class Graph:
    """`nodes` is in topological order. `metadata`: the model's metadata_props."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.nodes: list[Node] = []
        self.metadata: dict[str, str] = {}
        self.assumptions: list[tuple[Dim, Dim, tuple[str, ...]]] = []
        """Pairs of dims that passes took to be equal, with the ONNX nodes that need it; the plan's
        runtime checks them."""
        self.notes: list[str] = []
        """What passes want the user to know."""

    def replace_uses(self, old: Value, new: Value) -> None:
        """Every reader of `old`, graph outputs included, reads `new`."""
        for node, slot in list(old.uses):
            node.set_input(slot, new)
        self.outputs = [new if v is old else v for v in self.outputs]

    def is_output(self, value: Value) -> bool:
        return any(v is value for v in self.outputs)

    def single_use(self, value: Value) -> bool:
        """Read by exactly one input slot and not a graph output."""
        return len(value.uses) == 1 and not self.is_output(value)

    def remove(self, node: Node) -> None:
        """Take a node out; its outputs must have no readers left."""
        node.detach()
        self.nodes.remove(node)

    def insert_before(self, anchor: Node, node: Node) -> None:
        self.nodes.insert(self.nodes.index(anchor), node)

    def insert_after(self, anchor: Node, node: Node) -> None:
        self.nodes.insert(self.nodes.index(anchor) + 1, node)

    def values(self) -> Iterator[Value]:
        """Every value once: inputs, constants at first reading, node outputs."""
        seen: set[int] = set()
        for group in (self.inputs, *((*n.inputs, *n.outputs) for n in self.nodes), self.outputs):
            for value in group:
                if id(value) not in seen:
                    seen.add(id(value))
                    yield value

    def sort(self) -> None:
        """Restore topological order (stable)."""
        order: list[Node] = []
        done: set[int] = set()
        for start in self.nodes:
            stack: list[tuple[Node, bool]] = [(start, False)]
            while stack:
                node, ready = stack.pop()
                if id(node) in done:
                    continue
                if ready:
                    done.add(id(node))
                    order.append(node)
                    continue
                stack.append((node, True))
                for value in reversed(node.inputs):
                    if value.producer is not None and id(value.producer) not in done:
                        stack.append((value.producer, False))
        self.nodes = order
