"""Importers of convolutions and pools. One spatial axis is imported as two, with height 1."""

from __future__ import annotations

from collections.abc import Sequence

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported
from enginesmith.frontend.shape_ops import padded
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.expr import Arg, Call
from enginesmith.ir.graph import Value
from enginesmith.ir.infer import window_output
from enginesmith.ir.ops import ConvAttrs, ConvTransposeAttrs, PoolAttrs, ReduceAttrs

Pair = tuple[int, int]
ADD = Call("add", (Arg(0), Arg(1)))


def _spatial(n: OnnxNode, x: Value) -> int:
    """How many spatial axes: 1 or 2."""
    count = x.type.rank - 2
    if count == 3:
        raise Unsupported(f"{n.proto.op_type} over 3 spatial axes", "only 1 and 2 are supported")
    if count not in (1, 2):
        raise Invalid(f"{n.proto.op_type} of a tensor of rank {x.type.rank}")
    return count


def _pair(values: Sequence[int], count: int, what: str, first: int = 1) -> Pair:
    """Two axes' values; a single one is the width's."""
    if len(values) != count:
        raise Invalid(f"{len(values)} {what} for {count} spatial axes")
    return (first, values[0]) if count == 1 else (values[0], values[1])


def _widened(b: GraphBuilder, x: Value) -> Value:
    """(n, c, l) as (n, c, 1, l); rank 4 as it is."""
    return x if x.type.rank == 4 else b.reshape(x, (*x.shape[:2], 1, x.shape[2]))


def _narrowed(b: GraphBuilder, x: Value, count: int) -> Value:
    return x if count == 2 else b.reshape(x, (*x.shape[:2], x.shape[3]))


class Window:
    """Kernel, strides, dilations and pads of a convolution or pool, two axes each.

    `pads`: top, left, bottom, right. Where SAME padding depends on a symbolic size, `x` is padded
    by a node of its own with `fill` and `pads` are 0.
    """

    def __init__(
        self, b: GraphBuilder, n: OnnxNode, x: Value, kernel: Pair, count: int, fill: float = 0.0
    ) -> None:
        ones = (1,) * count
        self.kernel = kernel
        self.strides = _pair(n.integers("strides", ones), count, "strides")
        self.dilations = _pair(n.integers("dilations", ones), count, "dilations")
        if min(self.strides) < 1 or min(self.dilations) < 1 or min(kernel) < 1:
            raise Invalid("kernel sizes, strides and dilations are at least 1")
        self.x = x
        self.pads = (0, 0, 0, 0)
        auto = n.text("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            self._same(b, auto == "SAME_UPPER", fill)
        elif auto == "NOTSET":
            self.pads = _pads(n, count)
        elif auto != "VALID":
            raise Invalid(f"the attribute auto_pad is {auto!r}")

    def _same(self, b: GraphBuilder, upper: bool, fill: float) -> None:
        begins: list[Dim] = []
        ends: list[Dim] = []
        for axis in (0, 1):
            size, stride = self.x.shape[2 + axis], self.strides[axis]
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            steps = dims.ceildiv(size, stride)
            total = dims.dim_max(dims.simplify((steps - 1) * stride + reach - size), 0)
            half = dims.floordiv(total, 2)
            rest = dims.simplify(total - half)
            begins.append(half if upper else rest)
            ends.append(rest if upper else half)
        if all(isinstance(p, int) for p in (*begins, *ends)):
            self.pads = (begins[0], begins[1], ends[0], ends[1])
        else:
            self.x = padded(b, self.x, (0, 0, *begins, 0, 0, *ends), "constant", fill)


def _pads(n: OnnxNode, count: int) -> tuple[int, int, int, int]:
    pads = n.integers("pads", (0,) * (2 * count))
    if len(pads) != 2 * count:
        raise Invalid(f"{len(pads)} pads for {count} spatial axes")
    if min(pads) < 0:
        raise Unsupported("negative padding", "put a Slice before the node")
    return (0, pads[0], 0, pads[1]) if count == 1 else (pads[0], pads[1], pads[2], pads[3])


def _kernel_of(n: OnnxNode, w: Value, count: int) -> Pair:
    """From the weights (whose rank is 4 here); the attribute must agree."""
    sizes = w.shape[2:]
    if not all(isinstance(s, int) for s in sizes):
        raise Unsupported("weights of symbolic size", "fix the size")
    given = n.integers("kernel_shape", sizes[-count:])
    if tuple(given) != tuple(sizes[-count:]):
        raise Invalid(f"kernel_shape {list(given)} with weights of {list(sizes[-count:])}")
    return int(sizes[0]), int(sizes[1])


def _bias(b: GraphBuilder, n: OnnxNode, channels: Dim) -> list[Value]:
    """The bias as a (channels, 1, 1) epilogue extra, where there is one."""
    bias = n.optional(2)
    if bias is None:
        return []
    if bias.type.rank != 1 or not dims.equal(bias.shape[0], channels):
        raise Invalid(f"a bias of type {bias.type} for {dims.to_text(channels)} channels")
    return [b.reshape(bias, (channels, 1, 1))]


def conv(b: GraphBuilder, n: OnnxNode) -> Value:
    count = _spatial(n, n.value(0))
    if n.value(1).type.rank != count + 2:
        raise Invalid(f"weights of rank {n.value(1).type.rank} for {count} spatial axes")
    x, w = _widened(b, n.value(0)), _widened(b, n.value(1))
    groups = n.integer("group", 1)
    b.fix(x.shape[1], dims.simplify(w.shape[1] * groups))
    window = Window(b, n, x, _kernel_of(n, w, count), count)
    if groups < 1 or (isinstance(w.shape[0], int) and w.shape[0] % groups):
        raise Invalid(f"{dims.to_text(w.shape[0])} output channels in {groups} groups")
    bias = _bias(b, n, w.shape[0])
    attrs = ConvAttrs(
        window.strides, window.pads, window.dilations, groups, epilogue=ADD if bias else None
    )
    return _narrowed(b, b.emit("conv", [window.x, w, *bias], attrs), count)


def conv_transpose(b: GraphBuilder, n: OnnxNode) -> Value:
    count = _spatial(n, n.value(0))
    if n.value(1).type.rank != count + 2:
        raise Invalid(f"weights of rank {n.value(1).type.rank} for {count} spatial axes")
    x, w = _widened(b, n.value(0)), _widened(b, n.value(1))
    kernel, groups = _kernel_of(n, w, count), n.integer("group", 1)
    b.fix(x.shape[1], w.shape[0])
    ones = (1,) * count
    strides = _pair(n.integers("strides", ones), count, "strides")
    dilations = _pair(n.integers("dilations", ones), count, "dilations")
    extra = _pair(n.integers("output_padding", (0,) * count), count, "output paddings", 0)
    auto = n.text("auto_pad", "NOTSET")
    if n.has("output_shape") or auto.startswith("SAME"):
        wanted: tuple[Dim, Dim] | None = None
        if n.has("output_shape"):
            # The batch and channels may be given too; the spatial sizes come last.
            wanted = _pair(n.integers("output_shape")[-count:], count, "output sizes")
        pads = _transposed_pads(x, kernel, strides, dilations, extra, wanted, auto)
    else:
        pads = _pads(n, count) if auto == "NOTSET" else (0, 0, 0, 0)
    bias = _bias(b, n, dims.simplify(w.shape[1] * groups))
    attrs = ConvTransposeAttrs(strides, pads, dilations, extra, groups, ADD if bias else None)
    return _narrowed(b, b.emit("conv_transpose", [x, w, *bias], attrs), count)


def _transposed_pads(
    x: Value, kernel: Pair, strides: Pair, dilations: Pair, extra: Pair,
    wanted: tuple[Dim, Dim] | None, auto: str,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Pads that make the output as large as `wanted` (None: input size times stride)."""
    begins, ends = [], []
    for axis in (0, 1):
        size = x.shape[2 + axis]
        target = size * strides[axis] if wanted is None else wanted[axis]
        full = strides[axis] * (size - 1) + dilations[axis] * (kernel[axis] - 1) + 1 + extra[axis]
        total = dims.simplify(full - target)
        if not isinstance(total, int):
            raise Unsupported("output_shape with a symbolic input size", "fix the input's size")
        if total < 0:
            raise Unsupported("an output_shape larger than the whole transposed convolution")
        half = total // 2
        upper = auto != "SAME_LOWER" and (wanted is None or auto == "SAME_UPPER")
        begins.append(half if upper else total - half)
        ends.append(total - half if upper else half)
    return begins[0], begins[1], ends[0], ends[1]


def _pool(b: GraphBuilder, n: OnnxNode, kind: str) -> Value:
    count = _spatial(n, n.value(0))
    x = _widened(b, n.value(0))
    kernel = _pair(n.integers("kernel_shape"), count, "kernel sizes")
    window = Window(b, n, x, kernel, count, float("-inf") if kind == "max" else 0.0)
    include = bool(n.integer("count_include_pad", 0))
    if kind == "avg" and window.x is not x and not include:
        raise Unsupported("SAME padding of an average over a symbolic size", "fix the input's size")
    ceil = bool(n.integer("ceil_mode", 0))
    top, left, bottom, right = window.pads
    spatial = []
    for axis, (begin, end) in enumerate(((top, bottom), (left, right))):
        size, stride = window.x.shape[2 + axis], window.strides[axis]
        length = window_output(
            size, kernel[axis], stride, begin + end, window.dilations[axis], ceil
        )
        if ceil:  # windows that start beyond the input and its first padding don't count
            length = dims.dim_min(length, dims.ceildiv(size + begin, stride))
        spatial.append(length)
    attrs = PoolAttrs(kind, kernel, window.strides, window.pads, window.dilations, include)
    pooled = b.emit("pool", [window.x], attrs, (*x.shape[:2], *spatial))
    return _narrowed(b, pooled, count)


def max_pool(b: GraphBuilder, n: OnnxNode) -> Value:
    if n.outputs > 1:
        raise Unsupported("the Indices output of MaxPool")
    if n.integer("storage_order", 0):
        raise Unsupported("column-major storage_order of MaxPool")
    return _pool(b, n, "max")


def average_pool(b: GraphBuilder, n: OnnxNode) -> Value:
    return _pool(b, n, "avg")


def _global_pool(b: GraphBuilder, n: OnnxNode, kind: str) -> Value:
    x = n.value(0)
    if x.type.rank < 2:
        raise Invalid(f"{n.proto.op_type} of a tensor of rank {x.type.rank}")
    return b.emit("reduce", [x], ReduceAttrs(kind, tuple(range(2, x.type.rank)), True))


def global_average_pool(b: GraphBuilder, n: OnnxNode) -> Value:
    return _global_pool(b, n, "mean")


def global_max_pool(b: GraphBuilder, n: OnnxNode) -> Value:
    return _global_pool(b, n, "max")
