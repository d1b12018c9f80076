"""Importers of gathers, scatters, ranges and masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.elementwise_ops import scalar
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported, dtype_name, normal_axis
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.expr import Arg, Call, Const
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import CumSumAttrs, GatherAttrs, ScatterAttrs

Importer = Callable[[GraphBuilder, OnnxNode], Value]


def gather(b: GraphBuilder, n: OnnxNode) -> Value:
    """One constant index is a slice; constant negative indices are counted from the front."""
    x, indices = n.value(0), n.value(1)
    axis = n.axis(x.type.rank, 0)
    size = x.shape[axis]
    if indices.data is None:
        return b.emit("gather", [x, indices], GatherAttrs("axis", axis))
    if indices.data.size == 1:
        index: Dim = int(indices.data.item())
        if isinstance(index, int) and isinstance(size, int) and not -size <= index < size:
            raise Invalid(f"index {index} of an axis of size {size}")
        start = dims.simplify(size + index) if index < 0 else index
        one = b.slice_axis(x, axis, start, 1)
        return b.reshape(one, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    if isinstance(size, int) and (indices.data < 0).any():
        indices = b.constant(np.where(indices.data < 0, indices.data + size, indices.data))
    return b.emit("gather", [x, indices], GatherAttrs("axis", axis))


def gather_elements(b: GraphBuilder, n: OnnxNode) -> Value:
    axis = n.axis(n.value(0).type.rank, 0)
    return b.emit("gather", [n.value(0), n.value(1)], GatherAttrs("elements", axis))


FIX = "fix the size with shapes={...}"


def gather_nd(b: GraphBuilder, n: OnnxNode) -> Value:
    attrs = GatherAttrs("nd", batch_dims=n.integer("batch_dims", 0))
    data, indices = n.value(0), n.value(1)
    if indices.type.rank and not isinstance(indices.shape[-1], int):
        raise Unsupported("GatherND with index tuples of symbolic length", FIX)
    return b.emit("gather", [data, indices], attrs)


def scatter(kind: str) -> Importer:
    """ScatterND and ScatterElements."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        operands = [n.value(i) for i in range(3)]
        axis = n.axis(operands[0].type.rank, 0) if kind == "elements" else 0
        reduction = n.text("reduction", "none")
        if reduction not in ("none", "add", "mul", "max", "min"):
            raise Invalid(f"the attribute reduction is {reduction!r}")
        return b.emit("scatter", operands, ScatterAttrs(kind, axis, reduction))

    return importer


def cumulative_sum(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    (axis,) = b.ints(n.value(1), "the axis")
    attrs = CumSumAttrs(
        normal_axis(axis, x.type.rank),
        bool(n.integer("exclusive", 0)),
        bool(n.integer("reverse", 0)),
    )
    return b.emit("cumsum", [x], attrs)


def range_(b: GraphBuilder, n: OnnxNode) -> Value:
    start, limit, delta = (n.value(i) for i in range(3))
    if start.dtype != limit.dtype or start.dtype != delta.dtype:
        raise Invalid("operands of different element types")
    if all(v.data is not None for v in (start, limit, delta)):
        s, e, d = (v.data.item() for v in (start, limit, delta) if v.data is not None)
        if d == 0:
            raise Invalid("a Range with delta 0")
        count = max(int(np.ceil((e - s) / d)), 0)
        return b.constant((s + np.arange(count) * d).astype(start.dtype))
    (first,) = b.dims(start, "the range's start")
    (last,) = b.dims(limit, "the range's limit")
    (step,) = b.ints(delta, "the range's delta")
    if step == 0:
        raise Invalid("a Range with delta 0")
    distance = last - first if step > 0 else first - last
    length = dims.ceildiv(dims.simplify(distance), abs(step))
    if isinstance(length, int) or not length.is_nonnegative:
        length = dims.dim_max(length, 0)
    return b.range(first, step, length, start.dtype)


def _grid(b: GraphBuilder, rows: Dim, columns: Dim) -> tuple[Value, Value]:
    """Row numbers (rows, 1) and column numbers (columns,) int64."""
    down = b.reshape(b.range(0, 1, rows, "int64"), (rows, 1))
    return down, b.range(0, 1, columns, "int64")


def trilu(b: GraphBuilder, n: OnnxNode) -> Value:
    """The triangle above or below diagonal k, the rest zero."""
    x, diagonal = n.value(0), n.optional(1)
    if x.type.rank < 2:
        raise Invalid(f"Trilu of a tensor of rank {x.type.rank}")
    k = 0 if diagonal is None else b.ints(diagonal, "the diagonal")[0]
    rows, columns = _grid(b, *x.shape[-2:])
    edge = Call("add", (Arg(0), Const(k, "int64")))
    kept = Call("le", (edge, Arg(1)) if n.integer("upper", 1) else (Arg(1), edge))
    mask = b.pointwise(kept, rows, columns)
    zero = b.constant(np.zeros((), x.dtype))
    return b.call("where", mask, x, zero)


def eye_like(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    if x.type.rank != 2:
        raise Invalid(f"EyeLike of a tensor of rank {x.type.rank}")
    dtype = dtype_name(n.integer("dtype")) if n.has("dtype") else x.dtype
    rows, columns = _grid(b, *x.shape)
    edge = Call("add", (Arg(0), Const(n.integer("k", 0), "int64")))
    return b.cast(b.pointwise(Call("eq", (edge, Arg(1))), rows, columns), dtype)


def one_hot(b: GraphBuilder, n: OnnxNode) -> Value:
    """on where the index (negative ones counted from the end) meets the new axis, else off."""
    indices = b.cast(n.value(0), "int64")
    (depth,) = b.dims(b.cast(n.value(1), "int64"), "the depth")
    values = n.value(2)
    axis = normal_axis(n.integer("axis", -1), indices.type.rank + 1)
    wide = b.reshape(indices, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    positions = b.reshape(
        b.range(0, 1, depth, "int64"), (depth, *(1,) * (indices.type.rank - axis))
    )
    if isinstance(depth, int):
        wrapped = Call(
            "where",
            (Call("lt", (Arg(0), scalar(0, "int64"))),
             Call("add", (Arg(0), scalar(depth, "int64"))), Arg(0)),
        )  # fmt: skip
        wide = b.pointwise(wrapped, wide)
    hit = b.call("eq", wide, positions)
    return b.call("where", hit, b.take(values, 1), b.take(values, 0))


def random(b: GraphBuilder, n: OnnxNode) -> Value:
    raise Unsupported(f"{n.proto.op_type} draws random numbers", "pass them as an input")
