"""Small graphs for the tests of passes, and what a pass must keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from enginesmith.ir import dims, reference
from enginesmith.ir.expr import Arg, Call, Expr
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.infer import infer
from enginesmith.ir.ops import (
    Attrs,
    ConvAttrs,
    ConvTransposeAttrs,
    MatMulAttrs,
    PointwiseAttrs,
    ReduceAttrs,
    ReshapeAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from enginesmith.ir.types import TensorType


class Builder:
    """Builds a graph; every method returns the value it adds. Names count up: v0, v1, ..."""

    def __init__(self, seed: int = 0) -> None:
        self.graph = Graph("test")
        self.rng = np.random.default_rng(seed)

    def input(self, *shape: Any, dtype: str = "float32") -> Value:
        value = Value(f"x{len(self.graph.inputs)}", TensorType(dtype, shape))
        self.graph.inputs.append(value)
        return value

    def const(self, *shape: int, low: float = 0.5, high: float = 1.5) -> Value:
        """Random, away from zero."""
        return constant("c", self.rng.uniform(low, high, shape).astype(np.float32))

    def emit(
        self, op: str, inputs: Sequence[Value], attrs: Attrs, shape: Sequence[Any] | None = None
    ) -> Value:
        chosen = None if shape is None else TensorType(inputs[0].dtype, tuple(shape))
        type_ = infer(op, attrs, [v.type for v in inputs], chosen)
        name = f"v{len(self.graph.nodes)}"
        value = Value(name, type_)
        self.graph.nodes.append(Node(op, inputs, [value], attrs, [f"n{name[1:]}"]))
        return value

    def pointwise(self, tree: Expr, *inputs: Value) -> Value:
        return self.emit("pointwise", inputs, PointwiseAttrs(tree))

    def call(self, op: str, *inputs: Value) -> Value:
        return self.pointwise(Call(op, tuple(Arg(i) for i in range(len(inputs)))), *inputs)

    def conv(
        self, x: Value, out: int, kernel: int = 1, pad: int = 0, stride: int = 1, groups: int = 1
    ) -> Value:
        w = self.const(out, x.shape[1] // groups, kernel, kernel, low=-1, high=1)
        attrs = ConvAttrs((stride, stride), (pad,) * 4, (1, 1), groups)
        return self.emit("conv", [x, w], attrs)

    def conv_transpose(self, x: Value, out: int, groups: int = 1) -> Value:
        w = self.const(x.shape[1], out // groups, 2, 2, low=-1, high=1)
        attrs = ConvTransposeAttrs((2, 2), (0,) * 4, (1, 1), (0, 0), groups)
        return self.emit("conv_transpose", [x, w], attrs)

    def matmul(self, a: Value, b: Value, **flags: bool) -> Value:
        return self.emit("matmul", [a, b], MatMulAttrs(**flags))

    def reduce(self, kind: str, x: Value, *axes: int, keepdims: bool = True) -> Value:
        return self.emit("reduce", [x], ReduceAttrs(kind, axes, keepdims))

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.emit("transpose", [x], TransposeAttrs(perm))

    def reshape(self, x: Value, *shape: Any) -> Value:
        return self.emit("reshape", [x], ReshapeAttrs(), shape)

    def slice(self, x: Value, starts: Sequence[Any], shape: Sequence[Any], *steps: int) -> Value:
        attrs = SliceAttrs(tuple(starts), steps or (1,) * len(shape))
        return self.emit("slice", [x], attrs, shape)

    def result(self, *outputs: Value) -> Graph:
        """The graph, with outputs y0, y1, ..."""
        for i, value in enumerate(outputs):
            value.name = f"y{i}"
        self.graph.outputs = list(outputs)
        return self.graph


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def feeds_of(graph: Graph, seed: int = 1, **symbols: int) -> dict[str, np.ndarray]:
    """Random feeds, with these sizes for symbols."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in graph.inputs:
        shape = tuple(dims.evaluate(d, symbols) for d in value.shape)
        data = rng.normal(0, 1.5, shape)
        feeds[value.name] = (data > 0 if value.dtype == "bool" else data).astype(value.dtype)
    return feeds


def check(graph: Graph) -> None:
    """The node list is in topological order and edges agree with uses."""
    ready = {id(v) for v in graph.inputs}
    for node in graph.nodes:
        for slot, value in enumerate(node.inputs):
            assert value.is_constant or id(value) in ready, f"{node} reads {value} too early"
            assert (node, slot) in value.uses
        for value in node.outputs:
            assert value.producer is node
            ready.add(id(value))
            assert all(reader in graph.nodes for reader, _ in value.uses)
    assert all(v.is_constant or id(v) in ready for v in graph.outputs)
    for node in graph.nodes:
        chosen = node.output.type
        found = infer(node.op, node.attrs, [v.type for v in node.inputs], chosen)
        assert dims.same_shape(found.shape, chosen.shape), f"{node}: {found}"
        assert found.dtype == chosen.dtype


def preserves(
    graph: Graph,
    rewrite: Callable[[Graph], Any],
    tolerance: float = 1e-5,
    least: float = 0.0,
    **symbols: int,
) -> bool:
    """Apply `rewrite` and assert that the outputs, in double, are the same before and after: the
    tolerance is of the largest element, or of `least` where all cancel each other out and what is
    left is how constants were rounded. Returns what the pass returned."""
    feeds = feeds_of(graph, **symbols)
    before = reference.run_graph(graph, feeds, "float64")
    changed = rewrite(graph)
    check(graph)
    after = reference.run_graph(graph, feeds, "float64")
    assert list(before) == list(after)
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        scale = np.abs(expected).max(initial=least) if expected.dtype != bool else 1
        np.testing.assert_allclose(after[name], expected, rtol=tolerance, atol=tolerance * scale)
    return bool(changed)
