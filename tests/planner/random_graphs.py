"""Random small graphs, rich in what the planner must get right: concats of concats, slices and
reshapes of them, values read in two layouts, outputs that are views."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from hypothesis import strategies as st
from tests.passes.graphs import Builder

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.expr import Arg, call
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.infer import window_output
from enginesmith.ir.ops import (
    AttentionAttrs,
    ConcatAttrs,
    ConvAttrs,
    ConvTransposeAttrs,
    ExpandAttrs,
    GatherAttrs,
    MatMulAttrs,
    NormalizationAttrs,
    PadAttrs,
    PoolAttrs,
    ReduceAttrs,
    ResizeAttrs,
    SoftmaxAttrs,
)

N, H, W = (dims.symbol(name) for name in "nhw")
SIZES: tuple[dict[str, int], ...] = ({"n": 1, "h": 6, "w": 7}, {"n": 3, "h": 9, "w": 5})
"""Where graphs are run; every value has elements at both, and not too many."""

CHANNELS = (1, 3, 8, 16, 20, 32)
LARGEST = 20000


class Sketch:
    """A graph being drawn."""

    def __init__(self, draw: Callable[..., object]) -> None:
        self.draw = draw
        self.builder = Builder()
        self.values: list[Value] = []

    def pick(self, options: object) -> object:
        return self.draw(st.sampled_from(list(options)))  # type: ignore[call-overload]

    def any(self, fits: Callable[[Value], bool] = lambda _: True) -> Value | None:
        """One of the values made so far, or None if none fits."""
        found = [v for v in self.values if fits(v)]
        return self.pick(found) if found else None  # type: ignore[return-value]

    def weight(self, *shape: int) -> Value:
        scale = 1.7 / np.sqrt(max(1, prod(shape[1:])))
        data = self.builder.rng.uniform(-scale, scale, shape).astype(np.float32)
        return constant("w", data)

    def add(self, op: str, inputs: list[Value], attrs: object, shape: Shape | None = None) -> None:
        """Add the node, unless its result is too small or too large at the sizes we run."""
        value = self.builder.emit(op, inputs, attrs, shape)  # type: ignore[arg-type]
        for sizes in SIZES:
            counts = [dims.evaluate(d, sizes) for d in value.shape]
            if min(counts, default=1) < 1 or prod(counts) > LARGEST:
                node = self.builder.graph.nodes.pop()
                node.detach()
                return
        self.values.append(value)


def is_image(value: Value) -> bool:
    """Rank 4 with a static number of channels."""
    return value.type.rank == 4 and isinstance(value.shape[1], int)


def conv(s: Sketch) -> None:
    x = s.any(is_image)
    if x is None:
        return
    c, out = x.shape[1], s.pick(CHANNELS)
    kernel, stride = s.pick([(1, 1), (3, 3), (1, 3)]), s.pick([1, 1, 2])
    groups = s.pick([1, 1, 1, c])
    if groups == c:
        out = c
    pad = s.pick([0, 1]) if kernel != (1, 1) else 0
    attrs = ConvAttrs((stride, stride), (pad, pad, pad, pad), (1, 1), groups)
    s.add("conv", [x, s.weight(out, c // groups, *kernel)], attrs)


def gated_conv(s: Sketch) -> None:
    """A 1x1 convolution of a value times a gate, as squeeze-and-excitation has."""
    x = s.any(is_image)
    if x is None:
        return
    b, c = s.builder, x.shape[1]
    if s.pick([True, False]):
        gate = b.call("sigmoid", b.reduce("mean", x, 2, 3))
    else:
        gate = b.const(1, c, 1, 1)
    gated = b.call("mul", x, gate)
    s.add("conv", [gated, s.weight(s.pick(CHANNELS), c, 1, 1)], ConvAttrs((1, 1), (0,) * 4, (1, 1)))


def heads(s: Sketch) -> None:
    """Attention whose operands are transposed by any permutation."""
    x = s.any(lambda v: v.type.rank == 4)
    if x is not None:
        perm = s.pick([(0, 2, 1, 3), (0, 1, 3, 2), (3, 2, 1, 0)])
        q, k, v = (s.builder.transpose(x, *perm) for _ in range(3))
        s.add("attention", [q, k, v], AttentionAttrs(0.5))


def conv_transpose(s: Sketch) -> None:
    x = s.any(is_image)
    if x is not None:
        attrs = ConvTransposeAttrs((2, 2), (0,) * 4, (1, 1), (0, 0))
        s.add("conv_transpose", [x, s.weight(x.shape[1], s.pick([3, 16]), 2, 2)], attrs)


def unary(s: Sketch) -> None:
    x = s.any()
    expr = s.pick([call("max", Arg(0), 0.1), call("tanh", Arg(0)), call("abs", Arg(0))])
    s.values.append(s.builder.pointwise(expr, x))


def binary(s: Sketch) -> None:
    """Two values of one shape, or one and something that broadcasts to it."""
    a = s.any()
    assert a is not None
    shape = a.shape
    b = s.any(lambda v: v is not a and broadcasts(v.shape, shape))
    if b is None or s.pick([True, False, False]):
        kept = [s.pick([True, False]) and isinstance(d, int) for d in shape]
        own = [d if keep else 1 for d, keep in zip(shape, kept, strict=True)]
        b = s.builder.const(*own)
    s.values.append(s.builder.call(s.pick(["add", "mul", "sub"]), a, b))


def broadcasts(small: Shape, large: Shape) -> bool:
    lead = len(large) - len(small)
    return lead >= 0 and all(d == 1 or dims.equal(d, large[lead + i]) for i, d in enumerate(small))


def pool(s: Sketch) -> None:
    x = s.any(is_image)
    if x is None:
        return
    kernel, stride, pad = s.pick([(2, 2, 0), (3, 1, 1), (3, 2, 1)])
    n, c, *plane = x.shape
    shape = (n, c, *(window_output(d, kernel, stride, 2 * pad, 1) for d in plane))
    attrs = PoolAttrs(s.pick(["max", "avg"]), (kernel,) * 2, (stride,) * 2, (pad,) * 4)
    s.add("pool", [x], attrs, shape)


def reduce(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 1)
    if x is None:
        return
    if x.type.rank == 4 and s.pick([True, True, False]):
        axes: tuple[int, ...] = (2, 3)
    else:
        axes = (s.pick(range(x.type.rank)),)
    kind, keep = s.pick(["mean", "max", "sumsq"]), s.pick([True, False])
    s.add("reduce", [x], ReduceAttrs(kind, axes, keep))


def resize(s: Sketch) -> None:
    x = s.any(is_image)
    if x is not None:
        n, c, h, w = x.shape
        mode = s.pick(["nearest", "linear"])
        attrs = ResizeAttrs(mode, "half_pixel", "round_prefer_floor", (1.0, 1.0, 2.0, 2.0))
        s.add("resize", [x], attrs, (n, c, dims.simplify(2 * h), dims.simplify(2 * w)))


def concat(s: Sketch) -> None:
    first = s.any(lambda v: v.type.rank > 0)
    if first is None:
        return
    rank = first.type.rank
    axis = 1 if rank == 4 and s.pick([True, True, False]) else s.pick(range(rank))
    rest = [d for i, d in enumerate(first.shape) if i != axis]

    def fits(v: Value) -> bool:
        own = [d for i, d in enumerate(v.shape) if i != axis]
        return v.type.rank == rank and dims.same_shape(own, rest)

    inputs = [first, *(s.any(fits) for _ in range(s.pick([1, 1, 2])))]
    if s.pick([False] * 5 + [True]) and all(isinstance(d, int) for d in first.shape):
        inputs.append(s.builder.const(*first.shape))
    s.add("concat", inputs, ConcatAttrs(axis))  # type: ignore[arg-type]


def grow(s: Sketch) -> None:
    """A concat of an earlier concat's inputs and one more, as dense blocks have."""
    concats = [n for n in s.builder.graph.nodes if n.op == "concat"]
    if not concats:
        return
    node = s.pick(concats)
    axis, shape = node.attrs.axis, node.output.shape  # type: ignore[attr-defined]
    more = s.any(
        lambda v: (
            v.type.rank == len(shape)
            and all(i == axis or dims.equal(d, shape[i]) for i, d in enumerate(v.shape))
        )
    )
    if more is not None:
        s.add("concat", [*node.inputs, more], ConcatAttrs(axis))  # type: ignore[attr-defined]


def slice_(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 0)
    if x is None:
        return
    axis = 1 if is_image(x) and s.pick([True, False]) else s.pick(range(x.type.rank))
    shape, starts, steps = list(x.shape), [0] * x.type.rank, [1] * x.type.rank
    size: Dim = shape[axis]
    if s.pick([False] * 5 + [True]):  # backwards
        step = s.pick([-1, -2])
        starts[axis], steps[axis] = dims.simplify(size - 1), step
        shape[axis] = dims.ceildiv(size, -step)
        s.values.append(s.builder.slice(x, starts, shape, *steps))
        return
    start, cut = s.pick([0, 1, 8, 16]), s.pick([0, 1, 4, 16])
    if "n" in dims.symbols_of(size):  # a batch of 0 would leave a negative size
        start = cut = 0
    size = dims.simplify(size - start - cut)
    step = s.pick([1, 1, 1, 2])
    starts[axis], steps[axis], shape[axis] = start, step, dims.ceildiv(size, step)
    if isinstance(size, int) and size < 1:
        return
    value = s.builder.slice(x, starts, shape, *steps)
    enough = all(dims.evaluate(size, at) > 0 for at in SIZES)
    if enough:
        s.values.append(value)
    else:
        s.builder.graph.nodes.pop().detach()


def reshape(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 0)
    if x is None:
        return
    shape = list(x.shape)
    if s.pick([True, False]) and len(shape) > 1:  # merge two axes
        axis = s.pick(range(len(shape) - 1))
        shape[axis : axis + 2] = [dims.product(shape[axis : axis + 2])]
    else:  # split one
        options = [
            (i, f) for i, d in enumerate(shape) for f in (1, 2, 4, 8) if dims.divisible(d, f)
        ]
        axis, factor = s.pick(options)
        shape[axis : axis + 1] = s.pick(
            [
                [factor, dims.floordiv(shape[axis], factor)],
                [dims.floordiv(shape[axis], factor), factor],
            ]
        )
    if len(shape) <= 5:
        s.values.append(s.builder.reshape(x, *shape))


def transpose(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 1)
    if x is not None:
        perm = s.draw(st.permutations(range(x.type.rank)))
        s.values.append(s.builder.transpose(x, *perm))  # type: ignore[misc]


def expand(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 0 and 1 in v.shape)
    if x is not None:
        known = {d for v in s.builder.graph.inputs for d in v.shape if not isinstance(d, int)}
        sizes = [1, 3, *sorted(known, key=str)]
        shape = tuple(s.pick(sizes) if d == 1 else d for d in x.shape)
        s.add("expand", [x], ExpandAttrs(), shape)


def matmul(s: Sketch) -> None:
    """With a constant matrix or vector, on either side, or with a value transposed by strides."""
    a = s.any(lambda v: v.type.rank > 1)
    if a is None:
        return
    inner, kind = a.shape[-1], s.pick(["matrix", "vector", "left", "value"])
    if isinstance(inner, int) and kind in ("matrix", "vector"):
        shape = (inner,) if kind == "vector" else (inner, s.pick([1, 5, 24]))
        s.add("matmul", [a, s.weight(*shape)], MatMulAttrs())
        return
    if isinstance(a.shape[-2], int) and kind == "left":
        s.add("matmul", [s.weight(a.shape[-2]), a], MatMulAttrs())
        return
    b = s.any(
        lambda v: (
            v.type.rank == a.type.rank
            and dims.equal(v.shape[-1], a.shape[-1])
            and dims.same_shape(v.shape[:-2], a.shape[:-2])
        )
    )
    s.add("matmul", [a, b], MatMulAttrs(transpose_b=True))  # type: ignore[list-item]


def softmax(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 0)
    if x is not None:
        s.add("softmax", [x], SoftmaxAttrs(s.pick(range(x.type.rank))))


def attention(s: Sketch) -> None:
    """Of values that may lie in memory in any order."""
    q = s.any(lambda v: v.type.rank == 4)
    if q is None:
        return
    k = s.any(lambda v: v.type.rank == 4 and dims.same_shape(v.shape, q.shape))
    assert k is not None
    s.add("attention", [q, k, s.pick([q, k])], AttentionAttrs(0.5, s.pick([True, False])))


def normalization(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 1 and isinstance(v.shape[-1], int))
    if x is not None:
        width = x.shape[-1]
        constants = [s.builder.const(width) for _ in range(2)]
        s.add("normalization", [x, *constants], NormalizationAttrs(x.type.rank - 1, 0.1))


def gather(s: Sketch) -> None:
    x = s.any(lambda v: any(isinstance(d, int) for d in v.shape))
    if x is not None:
        axis = s.pick([i for i, d in enumerate(x.shape) if isinstance(d, int)])
        indices = s.draw(st.lists(st.integers(0, x.shape[axis] - 1), min_size=1, max_size=4))
        value = constant("i", np.asarray(indices, np.int64))
        s.add("gather", [x, value], GatherAttrs("axis", axis))


def pad(s: Sketch) -> None:
    x = s.any(lambda v: v.type.rank > 1)
    if x is not None:
        widths = [s.pick([0, 0, 1, 2]) for _ in range(2 * x.type.rank)]
        s.add("pad", [x], PadAttrs(tuple(widths), "constant", 0.5))


STEPS = (
    conv, conv, conv, conv_transpose, unary, binary, binary, pool, reduce, resize, concat, concat,
    concat, grow, slice_, slice_, reshape, reshape, transpose, expand, matmul, softmax, pad,
    attention, normalization, gather, gated_conv, heads,
)  # fmt: skip
"""What may come next; more often where the planner has more to decide."""


@st.composite
def random_graphs(draw: Callable[..., object], longest: int = 12) -> Graph:
    """A graph of up to `longest` nodes on one or two inputs. Outputs: all that nothing reads, and
    some that something does."""
    s = Sketch(draw)
    shapes: list[Shape] = [(N, s.pick(CHANNELS), H, W), (N, 16, H, W), (2, 24, 6, 6), (N, 32)]
    for _ in range(s.pick([1, 1, 2])):
        s.values.append(s.builder.input(*s.pick(shapes)))
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=longest)):
        step(s)
    made = [v for v in s.values if v.producer is not None]
    outputs = [v for v in made if not v.uses or s.pick([False] * 4 + [True])]
    if not outputs:
        outputs = [s.builder.call("abs", s.values[0])]
    return s.builder.result(*outputs)
