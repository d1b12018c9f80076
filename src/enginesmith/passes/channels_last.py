"""Chooses memory layouts for GPUs: values of convolutional regions lie channels last.

One forward walk. Convolutions read and write [n][h][w][c] (tensor cores want channels together);
poolings, resizes, pointwise work, concats and the like follow their inputs; the rest is row-major.
Where a reader wants another order a `layout` node is inserted, once per value and order. Transposes
between (n, c, h, w) and (n, h, w, c) then move nothing: they become views (planner/storage.py).

    %y = conv(%x, %w)   %t = transpose(%y) {perm=[0, 2, 3, 1]}
becomes
    %y@nhwc = conv(%x_nhwc, %w)   %t = transpose(%y) {perm=[0, 2, 3, 1]}    (a view)
"""

from __future__ import annotations

from dataclasses import replace

from enginesmith.ir import dims
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import ConvAttrs, ConvTransposeAttrs, LayoutAttrs, TransposeAttrs
from enginesmith.ir.strides import natural, reshaped
from enginesmith.ir.types import PLAIN, Layout

CHANNELS_LAST = Layout(channels_last=True)

STEM_CHANNELS = 4
"""A convolution of a graph input with at most this many channels reads it as it is, and one that
makes a graph's result of so few writes it as it shall be."""

FOLLOWERS = frozenset({"pool", "resize", "concat", "slice", "pointwise", "reduce", "pad", "expand"})
"""Operators that read and write either order equally well."""


def assign_channels_last(graph: Graph) -> bool:
    """Set the layout of every value. Always changes the graph's types; returns True."""
    _Walk(graph).run()
    return True


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.converted: dict[tuple[int, Layout], Value] = {}
        self.nodes: list[Node] = []

    def run(self) -> None:
        for node in list(self.graph.nodes):
            self.place(node)
            self.nodes.append(node)
        names = [value.name for value in self.graph.outputs]
        for position, value in enumerate(self.graph.outputs):
            plain = self.want(value, PLAIN)
            if plain.name != names[position]:  # the caller's name stays with the output
                plain.name, value.name = value.name, plain.name
            self.graph.outputs[position] = plain
        self.graph.nodes = self.nodes

    def place(self, node: Node) -> None:
        """Decide the layout of the node's outputs and convert its inputs."""
        if isinstance(node.attrs, ConvAttrs | ConvTransposeAttrs):
            self.convert(node, CHANNELS_LAST, skip=(0, 1) if self.is_stem(node) else (1,))
            if not self.writes_planes(node):
                self.set_outputs(node)
        elif node.op in FOLLOWERS and node.outputs[0].type.rank == 4 and self.leads(node):
            self.convert(node, CHANNELS_LAST)
            if not self.writes_planes(node):
                self.set_outputs(node)
        elif isinstance(node.attrs, TransposeAttrs):
            self.place_transpose(node, node.attrs)
        elif node.op == "reshape" and self.is_free_reshape(node):
            return
        elif node.op == "reduce" and node.inputs[0].type.layout.channels_last:
            return  # a reduction of any strides writes a row-major result
        else:
            self.convert(node, PLAIN)

    def leads(self, node: Node) -> bool:
        """Does an input of full size (or, for what changes sizes, the first) lie channels last?"""
        out = node.outputs[0].shape
        if node.op == "pointwise":
            return any(
                v.type.layout.channels_last and dims.same_shape(v.shape, out) for v in node.inputs
            )
        if node.op == "concat":
            return any(v.type.layout.channels_last for v in node.inputs)
        return bool(node.inputs[0].type.layout.channels_last)

    def writes_planes(self, node: Node) -> bool:
        """Does it make a result of the graph, which is row-major, at no cost? Resizes write any
        order as well as another, and so do convolutions of a few channels."""
        y = node.outputs[0]
        channels = y.shape[1] if y.type.rank == 4 else None
        few = node.op == "conv" and isinstance(channels, int) and channels <= STEM_CHANNELS
        return (few or node.op == "resize") and self.graph.is_output(y) and not y.uses

    def place_transpose(self, node: Node, attrs: TransposeAttrs) -> None:
        """A view if the result then lies in one of the two orders, else row-major from row-major.

        Channels-last (n, c, h, w) to (n, h, w, c), and back."""
        x, y = node.inputs[0], node.output
        if x.type.layout.channels_last and attrs.perm == (0, 2, 3, 1):
            return
        if not x.type.layout.channels_last and attrs.perm == (0, 3, 1, 2):
            y.type = replace(y.type, layout=CHANNELS_LAST)
            return
        self.convert(node, PLAIN)

    def is_free_reshape(self, node: Node) -> bool:
        """A reshape of a channels-last value that needs no copy, such as (n, c, h, w) to
        (n, c, h*w)."""
        x, y = node.inputs[0], node.output
        if not x.type.layout.channels_last:
            return False
        return reshaped(natural(x.shape, True), x.shape, y.shape) is not None

    def is_stem(self, node: Node) -> bool:
        x = node.inputs[0]
        few = isinstance(x.shape[1], int) and x.shape[1] <= STEM_CHANNELS
        return node.op == "conv" and few and x.producer is None

    def set_outputs(self, node: Node) -> None:
        for output in node.outputs:
            output.type = replace(output.type, layout=CHANNELS_LAST)

    def convert(self, node: Node, layout: Layout, skip: tuple[int, ...] = ()) -> None:
        """Let the node read its inputs in `layout`."""
        for slot, value in enumerate(node.inputs):
            if slot not in skip:
                node.set_input(slot, self.want(value, layout))

    def want(self, value: Value, layout: Layout) -> Value:
        """`value` in `layout`, through a conversion if need be."""
        if value.is_constant or value.type.rank != 4 or value.type.layout == layout:
            return value
        key = (id(value), layout)
        if key not in self.converted:
            suffix = "nhwc" if layout.channels_last else "plain"
            result = Value(f"{value.name}_{suffix}", replace(value.type, layout=layout))
            sources = value.producer.sources if value.producer else ()
            self.nodes.append(Node("layout", [value], [result], LayoutAttrs(), sources))
            self.converted[key] = result
        return self.converted[key]
