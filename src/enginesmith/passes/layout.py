"""Chooses memory layouts: convolutional regions become channel-blocked (NCHWc), the rest stays
plain.

One forward walk. Convolutions, poolings and resizes want blocked operands; pointwise, concat and
slice follow their inputs; everything else is plain. Where a reader wants another layout a `layout`
node is inserted, once per value and layout, and conversions that would undo each other never arise.

    %y = conv(%x, %w)   %r = reshape(%y)
becomes
    %y@c16 = conv(%x, %w)   %p = layout(%y)   %r = reshape(%p)
"""

from __future__ import annotations

from dataclasses import replace

from enginesmith.ir import dims
from enginesmith.ir.dims import Shape
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import (
    OPS,
    ConcatAttrs,
    ConvAttrs,
    ConvTransposeAttrs,
    ExpandAttrs,
    LayoutAttrs,
    ReduceAttrs,
    ReshapeAttrs,
    ResizeAttrs,
    SliceAttrs,
    prologue_extras,
)
from enginesmith.ir.types import PLAIN, Layout, TensorType

STEM_CHANNELS = 4
"""A convolution of a plain graph input with at most this many channels reads it as it is."""

FEW_CHANNELS = 4
"""A convolution to at most this many channels may write a plain result."""

BLOCKED_OPERATORS = frozenset(
    {"conv", "conv_transpose", "pool", "resize", "concat", "slice", "pointwise", "reduce"}
)
"""Operators that may read or write blocked values."""


def assign_layouts(graph: Graph, block: int) -> bool:
    """Set the layout of every value for channel blocks of `block` lanes. Always changes the graph's
    types; returns True."""
    _Walk(graph, block).run()
    return True


class _Walk:
    def __init__(self, graph: Graph, block: int) -> None:
        self.graph = graph
        self.blocked = Layout(block)
        self.block = block
        self.converted: dict[tuple[int, Layout], Value] = {}
        self.nodes: list[Node] = []

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "reduce" and self.spatial_reduce(node):
                self.keep_dims(node)
            else:
                self.place(node)
        names = [value.name for value in self.graph.outputs]
        for position, value in enumerate(self.graph.outputs):
            plain = self.want(value, PLAIN)
            if plain.name != names[position]:  # the caller's name stays with the output
                plain.name, value.name = value.name, plain.name
            self.graph.outputs[position] = plain
        self.graph.nodes = self.nodes

    def place(self, node: Node) -> None:
        """Decide the node's layout and convert its inputs to it."""
        if self.writes_plain(node):
            node.set_input(0, self.want(node.inputs[0], self.blocked))
            self.nodes.append(node)
            return
        if not self.wants_blocked(node):
            for slot, value in enumerate(node.inputs):
                node.set_input(slot, self.want(value, PLAIN))
            self.nodes.append(node)
            return
        keep_plain = {0} if self.is_stem(node) else set()
        weights = {1} if node.op in ("conv", "conv_transpose") else set()
        for slot, value in enumerate(node.inputs):
            if slot in keep_plain:
                node.set_input(slot, self.want(value, PLAIN))
            elif slot not in weights:
                readable = self.broadcastable(node, slot)
                if not readable.is_constant and readable.type.rank == 4:
                    readable = self.want(readable, self.blocked)
                if readable is not value:
                    node.set_input(slot, readable)
        for output in node.outputs:
            output.type = replace(output.type, layout=self.blocked)
        self.nodes.append(node)

    # -- what a node wants ------------------------------------------------------------------------

    def wants_blocked(self, node: Node) -> bool:
        out = node.outputs[0].type
        if out.rank != 4 or out.dtype != "float32":
            return False
        if node.op in ("conv", "conv_transpose"):
            return True
        return (
            node.op in BLOCKED_OPERATORS and self.has_blocked_input(node) and self.can_block(node)
        )

    def writes_plain(self, node: Node) -> bool:
        """A convolution to so few channels that a blocked result would be mostly zeros, read by
        plain operators only. See `kernels/conv/few.py` for the forms it serves."""
        attrs, y = node.attrs, node.outputs[0]
        if not isinstance(attrs, ConvAttrs | ConvTransposeAttrs) or self.is_stem(node):
            return False
        if isinstance(attrs, ConvTransposeAttrs):
            simple = node.inputs[1].shape[2:] == attrs.strides and not any(attrs.output_padding)
            simple = simple and not any(attrs.pads) and attrs.dilations == (1, 1)
        else:
            simple = attrs.strides[1] <= 3 and attrs.prologue is None
        extras = all(v.is_constant and v.shape[-2:] in ((), (1,), (1, 1)) for v in node.inputs[2:])
        readers = all(n.op not in BLOCKED_OPERATORS for n, _ in y.uses)
        few = isinstance(y.shape[1], int) and y.shape[1] <= FEW_CHANNELS
        return few and simple and extras and readers and attrs.groups == 1

    def has_blocked_input(self, node: Node) -> bool:
        """A blocked input of full size (a gate's 1x1 plane alone decides nothing)."""
        out = node.outputs[0].type.shape
        return any(
            v.type.layout.block and (node.op != "pointwise" or dims.same_shape(v.shape, out))
            for v in node.inputs
        )

    def can_block(self, node: Node) -> bool:
        attrs = node.attrs
        if any(v.dtype != "float32" for v in node.inputs):
            return False
        match attrs:
            case ResizeAttrs():
                same = dims.same_shape(node.inputs[0].shape[:2], node.outputs[0].shape[:2])
                return same and attrs.mode != "cubic"
            case ConcatAttrs():
                channels = [v.shape[1] for v in node.inputs]
                aligned = all(dims.divisible(c, self.block) for c in channels[:-1])
                # Misaligned pieces cost a copy, which pays if a blocked operator reads the result.
                static = all(isinstance(c, int) for c in channels)
                return attrs.axis == 1 and (aligned or (static and self.read_blocked(node.output)))
            case SliceAttrs():
                return self.channel_slice(node, attrs)
            case ReduceAttrs():
                return self.spatial_reduce(node)
        return True

    def read_blocked(self, value: Value) -> bool:
        """Is there a reader that wants blocked operands whatever its other inputs are?"""
        return any(n.op in ("conv", "conv_transpose", "pool", "resize") for n, _ in value.uses)

    def channel_slice(self, node: Node, attrs: SliceAttrs) -> bool:
        """Whole channel blocks of all pixels."""
        x, y = node.inputs[0].shape, node.outputs[0].shape
        whole = all(dims.equal(x[i], y[i]) for i in (0, 2, 3))
        start, size = attrs.starts[1], y[1]
        aligned = dims.divisible(start, self.block) and dims.divisible(size, self.block)
        return whole and aligned and all(step == 1 for step in attrs.steps)

    def spatial_reduce(self, node: Node) -> bool:
        """A sum, mean, max or min over (h, w) of a blocked value."""
        attrs = node.attrs
        assert isinstance(attrs, ReduceAttrs)
        x = node.inputs[0].type
        known = attrs.kind in ("sum", "mean", "max", "min") and x.dtype == "float32"
        return bool(x.layout.block) and known and attrs.axes == (2, 3) and not node.inputs[1:]

    def is_stem(self, node: Node) -> bool:
        if node.op != "conv":
            return False
        x = node.inputs[0]
        few = isinstance(x.shape[1], int) and x.shape[1] <= STEM_CHANNELS
        assert isinstance(node.attrs, ConvAttrs)
        return few and not x.type.layout.block and node.attrs.groups == 1

    # -- rewriting --------------------------------------------------------------------------------

    def keep_dims(self, node: Node) -> None:
        """reduce(keepdims=False) over (h, w) becomes reduce(keepdims) -> plain -> reshape."""
        attrs = node.attrs
        assert isinstance(attrs, ReduceAttrs)
        if attrs.keepdims:
            self.place(node)
            return
        old = node.output
        shape: Shape = (*old.shape, 1, 1)
        kept = Value(f"{old.name}_kept", TensorType(old.dtype, shape, self.blocked))
        reduce = Node("reduce", node.inputs, [kept], replace(attrs, keepdims=True), node.sources)
        node.detach()
        self.nodes.append(reduce)
        flat = Value(old.name, TensorType(old.dtype, old.shape))
        plain = self.want(kept, PLAIN)
        self.nodes.append(Node("reshape", [plain], [flat], ReshapeAttrs(), node.sources))
        self.graph.replace_uses(old, flat)

    def broadcastable(self, node: Node, slot: int) -> Value:
        """An operand a blocked kernel can read: full size, per channel, or one scalar. Others, such
        as a (1, 1, h, w) mask, are expanded to full size first."""
        of_prologue = slot >= len(node.inputs) - prologue_extras(node.attrs)
        out = node.inputs[0].shape if of_prologue else node.outputs[0].shape
        value = node.inputs[slot]
        if slot < OPS[node.op].inputs:
            return value
        if node.op in ("concat", "slice"):
            return value
        shape = (1,) * (4 - value.type.rank) + tuple(value.shape)
        # A symbolic dim that isn't provably the result's is assumed to be (see ir.types.broadcast).
        full = all(
            dims.equal(a, b) or not (isinstance(a, int) or isinstance(b, int))
            for a, b in zip(shape, out, strict=True)
        )
        channel = dims.equal(shape[1], out[1]) and shape[2:] == (1, 1)
        scalar = all(d == 1 for d in shape)
        if full or scalar or (channel and (shape[0] == 1 or dims.equal(shape[0], out[0]))):
            if value.is_constant or value.type.rank == 4:
                return value
            return self.reshaped(value, shape)
        plain = self.want(value, PLAIN)
        expanded = Value(f"{value.name}_expanded", TensorType(value.dtype, out))
        self.nodes.append(Node("expand", [plain], [expanded], ExpandAttrs(), node.sources))
        return expanded

    def reshaped(self, value: Value, shape: Shape) -> Value:
        plain = self.want(value, PLAIN)
        result = Value(f"{value.name}_4d", TensorType(value.dtype, shape))
        self.nodes.append(Node("reshape", [plain], [result], ReshapeAttrs(), ()))
        return result

    def want(self, value: Value, layout: Layout) -> Value:
        """`value` in `layout`, through a conversion if need be."""
        if value.type.layout == layout or value.is_constant:
            return value
        key = (id(value), layout)
        if key not in self.converted:
            suffix = f"c{layout.block}" if layout.block else "plain"
            result = Value(f"{value.name}_{suffix}", replace(value.type, layout=layout))
            sources = value.producer.sources if value.producer else ()
            self.nodes.append(Node("layout", [value], [result], LayoutAttrs(), sources))
            self.converted[key] = result
        return self.converted[key]
