"""Small graphs for the planner's tests."""

from __future__ import annotations

import numpy as np

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.expr import Arg, Call, Expr, call
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.ops import (
    Attrs,
    ConcatAttrs,
    ConvAttrs,
    PointwiseAttrs,
    ReshapeAttrs,
    SliceAttrs,
)
from enginesmith.ir.types import TensorType


class Sketch:
    """Builds a graph node by node."""

    def __init__(self, *shape: Dim) -> None:
        self.graph = Graph("sketch")
        self.x = Value("x", TensorType("float32", shape))
        self.graph.inputs = [self.x]
        self.rng = np.random.default_rng(0)

    def node(self, op: str, inputs: list[Value], shape: tuple[Dim, ...], attrs: Attrs) -> Value:
        index = len(self.graph.nodes)
        y = Value(f"{op}{index}", TensorType("float32", shape))
        self.graph.nodes.append(Node(op, inputs, [y], attrs, [f"onnx_{op}{index}"]))
        return y

    def conv(self, x: Value, channels: int, kernel: int = 1, stride: int = 1) -> Value:
        n, c, h, w = x.shape
        pad = kernel // 2
        weight = self.rng.standard_normal((channels, c, kernel, kernel)).astype(np.float32)
        oh, ow = (dims.floordiv(s + 2 * pad - kernel, stride) + 1 for s in (h, w))
        attrs = ConvAttrs((stride, stride), (pad,) * 4, (1, 1))
        return self.node("conv", [x, constant("w", weight)], (n, channels, oh, ow), attrs)

    def pointwise(self, expr: Expr, *inputs: Value) -> Value:
        return self.node("pointwise", list(inputs), inputs[0].shape, PointwiseAttrs(expr))

    def relu(self, x: Value) -> Value:
        return self.pointwise(call("max", Arg(0), 0.0), x)

    def add(self, a: Value, b: Value) -> Value:
        return self.pointwise(Call("add", (Arg(0), Arg(1))), a, b)

    def concat(self, axis: int, *inputs: Value) -> Value:
        shape = list(inputs[0].shape)
        shape[axis] = dims.simplify(sum((v.shape[axis] for v in inputs[1:]), shape[axis]))
        return self.node("concat", list(inputs), tuple(shape), ConcatAttrs(axis))

    def reshape(self, x: Value, *shape: Dim) -> Value:
        return self.node("reshape", [x], shape, ReshapeAttrs())

    def slice(self, x: Value, axis: int, start: int, stop: int) -> Value:
        shape, starts = list(x.shape), [0] * x.type.rank
        shape[axis], starts[axis] = stop - start, start
        attrs = SliceAttrs(tuple(starts), (1,) * x.type.rank)
        return self.node("slice", [x], tuple(shape), attrs)

    def done(self, *outputs: Value) -> Graph:
        self.graph.outputs = list(outputs)
        return self.graph
