"""Importers of operators that move elements without computing: reshape, transpose, slice, concat,
..."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported, normal_axes, normal_axis
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import ConcatAttrs, PadAttrs

FAR = 2**31 - 1
"""Slice bounds at or beyond this mean "to the end"."""


def shape(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 15 adds start and end."""
    x = n.value(0)
    rank = x.type.rank
    end = n.integer("end", rank)
    return b.known(list(x.shape[slice(n.integer("start", 0), end)]))


def size(b: GraphBuilder, n: OnnxNode) -> Value:
    return b.known(dims.product(n.value(0).shape))


def reshape(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    wanted = list(b.dims(n.value(1), "the target shape"))
    if not n.integer("allowzero", 0):
        for axis, d in enumerate(wanted):
            if isinstance(d, int) and d == 0:
                if axis >= x.type.rank:
                    raise Invalid(
                        f"the target shape copies axis {axis} of a rank {x.type.rank} input"
                    )
                wanted[axis] = x.shape[axis]
    return b.reshape(x, resolved(x.shape, wanted))


def resolved(old: Sequence[Dim], wanted: Sequence[Dim]) -> tuple[Dim, ...]:
    """The target shape with its -1 (at most one) computed from the number of elements."""
    holes = [axis for axis, d in enumerate(wanted) if isinstance(d, int) and d == -1]
    if any(isinstance(d, int) and d < -1 for d in wanted) or len(holes) > 1:
        raise Invalid(f"the target shape ({', '.join(map(dims.to_text, wanted))})")
    if not holes:
        return tuple(wanted)
    # Factors on both sides cancel before dividing: exact for symbols, and right for sizes of zero.
    have = list(old)
    divisors = []
    for axis, d in enumerate(wanted):
        if axis in holes:
            continue
        match = next((i for i, o in enumerate(have) if dims.equal(o, d)), None)
        if match is None:
            divisors.append(d)
        else:
            del have[match]
    total, divisor = dims.product(have), dims.product(divisors)
    if divisor == 0:
        raise Invalid("the target shape divides by zero")
    if isinstance(total, int) and isinstance(divisor, int) and total % divisor:
        raise Invalid(f"{total} elements can't be divided by {divisor}")
    result = list(wanted)
    result[holes[0]] = dims.floordiv(total, divisor)
    return tuple(result)


def flatten(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    axis = n.integer("axis", 1)
    axis = axis if axis == x.type.rank else normal_axis(axis, x.type.rank)
    return b.reshape(x, (dims.product(x.shape[:axis]), dims.product(x.shape[axis:])))


def _axes(b: GraphBuilder, n: OnnxNode, rank: int) -> tuple[int, ...] | None:
    """Axes from the attribute (before opset 13) or from operand 1."""
    operand = n.optional(1)
    if operand is not None:
        return normal_axes(b.ints(operand, "the list of axes"), rank)
    return normal_axes(n.integers("axes"), rank) if n.has("axes") else None


def squeeze(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    axes = _axes(b, n, x.type.rank)
    if axes is None:
        axes = tuple(a for a, d in enumerate(x.shape) if isinstance(d, int) and d == 1)
    for axis in axes:
        if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
            raise Invalid(f"axis {axis} of size {x.shape[axis]} can't be squeezed")
    return b.reshape(x, [d for a, d in enumerate(x.shape) if a not in axes])


def unsqueeze(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    operand = n.optional(1)
    given = n.integers("axes") if operand is None else b.ints(operand, "the list of axes")
    axes = normal_axes(given, x.type.rank + len(given))
    sizes = iter(x.shape)
    rank = x.type.rank + len(axes)
    return b.reshape(x, [1 if axis in axes else next(sizes) for axis in range(rank)])


def transpose(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    return b.transpose(x, n.integers("perm", tuple(reversed(range(x.type.rank)))))


def expand(b: GraphBuilder, n: OnnxNode) -> Value:
    return b.expand(n.value(0), b.dims(n.value(1), "the target shape"))


def tile(b: GraphBuilder, n: OnnxNode) -> Value:
    """(a, b) becomes (1, a, 1, b), is expanded to (r0, a, r1, b) and flattened again."""
    x = n.value(0)
    repeats = b.dims(n.value(1), "the repeats")
    if len(repeats) != x.type.rank:
        raise Invalid(f"{len(repeats)} repeats for a tensor of rank {x.type.rank}")
    pairs = list(zip(repeats, x.shape, strict=True))
    spread = b.reshape(x, [d for _, size in pairs for d in (1, size)])
    repeated = b.expand(spread, [d for pair in pairs for d in pair])
    return b.reshape(repeated, [r * size for r, size in pairs])


def concat(b: GraphBuilder, n: OnnxNode) -> Value:
    values = [n.value(i) for i in range(len(n.inputs))]
    axis = n.axis(values[0].type.rank)
    if len({v.dtype for v in values}) > 1:
        raise Invalid("operands of different element types")
    if len(values) == 1:
        return values[0]
    return b.emit("concat", values, ConcatAttrs(axis))


def split(b: GraphBuilder, n: OnnxNode) -> list[Value]:
    """Sizes from the attribute (before opset 13), operand 1, or equal parts."""
    x = n.value(0)
    axis = n.axis(x.type.rank, 0)
    total = x.shape[axis]
    operand = n.optional(1)
    sizes: list[Dim]
    if operand is not None:
        sizes = list(b.dims(operand, "the split sizes"))
    elif n.has("split"):
        sizes = list(n.integers("split"))
    else:
        count = n.integer("num_outputs", len(n.proto.output))
        part = dims.ceildiv(total, count)
        sizes = [part] * (count - 1)
        sizes.append(dims.simplify(total - part * (count - 1)))
    if len(sizes) < n.outputs:
        raise Invalid(f"{len(sizes)} split sizes for {n.outputs} outputs")
    if isinstance(total, int) and all(isinstance(s, int) for s in sizes) and sum(sizes) != total:
        raise Invalid(f"split sizes {sizes} of an axis of size {total}")
    parts: list[Value] = []
    start: Dim = 0
    for part in sizes:
        parts.append(b.slice_axis(x, axis, start, part))
        start = dims.simplify(start + part)
    return parts


def slice_attributes(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 1: starts, ends and axes are attributes."""
    starts, ends = n.integers("starts"), n.integers("ends")
    axes = n.integers("axes", range(len(starts)))
    return _slice(b, n.value(0), starts, ends, axes, [1] * len(starts))


def slice_operands(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 10: starts, ends, axes and steps are operands."""
    starts, ends = b.dims(n.value(1), "the slice's start"), b.dims(n.value(2), "the slice's end")
    axes, steps = n.optional(3), n.optional(4)
    return _slice(
        b,
        n.value(0),
        starts,
        ends,
        range(len(starts)) if axes is None else b.ints(axes, "the list of axes"),
        [1] * len(starts) if steps is None else b.ints(steps, "the slice's step"),
    )


def _slice(
    b: GraphBuilder,
    x: Value,
    starts: Sequence[Dim],
    ends: Sequence[Dim],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Value:
    if len({len(starts), len(ends), len(axes), len(steps)}) > 1:
        raise Invalid("starts, ends, axes and steps of different lengths")
    firsts: list[Dim] = [0] * x.type.rank
    strides = [1] * x.type.rank
    lengths = list(x.shape)
    positions = [normal_axis(axis, x.type.rank) for axis in axes]
    for start, end, axis, step in zip(starts, ends, positions, steps, strict=True):
        if step == 0:
            raise Invalid("a slice with step 0")
        strides[axis] = step
        firsts[axis], lengths[axis] = slice_bounds(start, end, step, x.shape[axis])
    return b.slice(x, firsts, strides, lengths)


def slice_bounds(start: Dim, end: Dim, step: int, size: Dim) -> tuple[Dim, Dim]:
    """(first index, length) of one axis, clamped by ONNX's rules.

    A symbolic bound that would be negative for small sizes counts as 0: it can't also mean "from
    the end".
    """
    if step > 0:
        first, last = _clamped(start, size, 0), _clamped(end, size, 0)
        length = _non_negative(dims.ceildiv(last - first, step))
        return first, length
    top = dims.simplify(size - 1)
    first, last = _clamped(start, size, -1), _clamped(end, size, -1)
    if isinstance(start, int) and start >= FAR:
        first = top
    return _non_negative(first), _non_negative(dims.ceildiv(first - last, -step))


def _clamped(bound: Dim, size: Dim, lowest: int) -> Dim:
    """`bound` within lowest .. size + lowest; negative numbers count from the end."""
    highest = dims.simplify(size + lowest)
    if isinstance(bound, int) and bound >= FAR:
        return highest
    if isinstance(bound, int) and bound <= -FAR:
        return lowest
    if isinstance(bound, int) and bound < 0:
        return _larger(dims.simplify(size + bound), lowest)
    return _smaller(_larger(bound, lowest), highest)


def _larger(a: Dim, b: Dim) -> Dim:
    difference = dims.simplify(a - b)
    if not isinstance(difference, int) and difference.is_nonnegative:
        return a
    return dims.dim_max(a, b)


def _smaller(a: Dim, b: Dim) -> Dim:
    difference = dims.simplify(b - a)
    if not isinstance(difference, int):
        if difference.is_nonnegative:
            return a
        if difference.is_nonpositive:
            return b
    return dims.dim_min(a, b)


def _non_negative(dim: Dim) -> Dim:
    return _larger(dim, 0)


def pad_attributes(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 2: the pads are an attribute."""
    return padded(
        b, n.value(0), n.integers("pads"), n.text("mode", "constant"), n.number("value", 0)
    )


def pad_operands(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 11: operands; opset 18 adds axes."""
    x = n.value(0)
    pads = b.dims(n.value(1), "the padding")
    value, axes = n.optional(2), n.optional(3)
    if axes is not None:
        chosen = [normal_axis(a, x.type.rank) for a in b.ints(axes, "the list of axes")]
        if len(pads) != 2 * len(chosen):
            raise Invalid(f"{len(pads)} pads for {len(chosen)} axes")
        spread: list[Dim] = [0] * (2 * x.type.rank)
        for i, axis in enumerate(chosen):
            spread[axis], spread[x.type.rank + axis] = pads[i], pads[len(chosen) + i]
        pads = tuple(spread)
    fill = 0.0 if value is None else float(b.numbers(value, "the padding's value").item())
    return padded(b, x, pads, n.text("mode", "constant"), fill)


def padded(b: GraphBuilder, x: Value, pads: Sequence[Dim], mode: str, fill: float) -> Value:
    """Negative pads cut off: they become a slice first."""
    rank = x.type.rank
    if mode not in ("constant", "reflect", "edge"):
        raise Unsupported(f"padding mode {mode}", "supported: constant, reflect, edge")
    if len(pads) != 2 * rank:
        raise Invalid(f"{len(pads)} pads for a tensor of rank {rank}")
    cut = [max(-p, 0) if isinstance(p, int) else 0 for p in pads]
    if any(cut):
        sizes = [dims.simplify(d - cut[axis] - cut[rank + axis]) for axis, d in enumerate(x.shape)]
        x = b.slice(x, cut[:rank], [1] * rank, sizes)
    grow = tuple(max(p, 0) if isinstance(p, int) else p for p in pads)
    if all(isinstance(p, int) and p == 0 for p in grow):
        return x
    return b.emit("pad", [x], PadAttrs(grow, mode, fill))


def depth_to_space(b: GraphBuilder, n: OnnxNode) -> Value:
    x, block = n.value(0), n.integer("blocksize")
    batch, channels, height, width = _rank4(x)
    depth = dims.floordiv(channels, block * block)
    if n.text("mode", "DCR") == "DCR":
        split_shape, perm = (batch, block, block, depth, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split_shape, perm = (batch, depth, block, block, height, width), (0, 1, 4, 2, 5, 3)
    moved = b.transpose(b.reshape(x, split_shape), perm)
    return b.reshape(moved, (batch, depth, height * block, width * block))


def space_to_depth(b: GraphBuilder, n: OnnxNode) -> Value:
    x, block = n.value(0), n.integer("blocksize")
    batch, channels, height, width = _rank4(x)
    rows, columns = dims.floordiv(height, block), dims.floordiv(width, block)
    spread = b.reshape(x, (batch, channels, rows, block, columns, block))
    channels_last = n.text("mode", "DCR") == "DCR"
    moved = b.transpose(spread, (0, 3, 5, 1, 2, 4) if channels_last else (0, 1, 3, 5, 2, 4))
    return b.reshape(moved, (batch, channels * block * block, rows, columns))


def _rank4(x: Value) -> tuple[Dim, ...]:
    if x.type.rank != 4:
        raise Invalid(f"a tensor of rank {x.type.rank} where rank 4 is needed")
    return x.shape


def constant_of_shape(b: GraphBuilder, n: OnnxNode) -> Value:
    from onnx import numpy_helper

    sizes = b.dims(n.value(0), "the shape")
    fill = numpy_helper.to_array(n.tensor("value")) if n.has("value") else np.zeros(1, np.float32)
    return b.expand(b.constant(fill.reshape(())), sizes)
