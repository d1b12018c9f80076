"""Importers of quantization as plain arithmetic, per tensor or per axis."""

from __future__ import annotations

import numpy as np

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.elementwise_ops import scalar
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported, dtype_name
from enginesmith.ir.expr import Arg, Call, Cast, Expr
from enginesmith.ir.graph import Value


def dequantize(b: GraphBuilder, n: OnnxNode) -> Value:
    """(x - zero point) * scale, in the scale's type."""
    x, scale, zero = n.value(0), n.value(1), n.optional(2)
    dtype = scale.dtype
    operands = [x, _along(b, n, scale, x)]
    tree: Expr = Cast(dtype, Arg(0))
    if zero is not None:
        tree = Call("sub", (tree, Cast(dtype, Arg(2))))
        operands.append(_along(b, n, zero, x))
    return b.pointwise(Call("mul", (tree, Arg(1))), *operands)


def quantize(b: GraphBuilder, n: OnnxNode) -> Value:
    """round(x / scale) + zero point, kept within the integer type."""
    x, scale, zero = n.value(0), n.value(1), n.optional(2)
    if zero is not None:
        dtype = zero.dtype
    elif n.integer("output_dtype", 0):
        dtype = dtype_name(n.integer("output_dtype"), "the result")
    else:
        dtype = "uint8"
    if dtype not in ("int8", "uint8"):
        raise Unsupported(f"quantization to {dtype}", "supported: int8, uint8")
    operands = [x, _along(b, n, scale, x)]
    tree: Expr = Call("round", (Call("div", (Arg(0), Arg(1))),))
    if zero is not None:
        tree = Call("add", (tree, Cast(x.dtype, Arg(2))))
        operands.append(_along(b, n, zero, x))
    info = np.iinfo(dtype)
    low, high = scalar(int(info.min), x.dtype), scalar(int(info.max), x.dtype)
    return b.pointwise(Cast(dtype, Call("min", (Call("max", (tree, low)), high))), *operands)


def _along(b: GraphBuilder, n: OnnxNode, value: Value, x: Value) -> Value:
    """A scalar, or a vector along the attribute's axis, shaped to broadcast to x."""
    if n.integer("block_size", 0):
        raise Unsupported("blocked quantization")
    if value.type.rank == 0 or value.shape == (1,):
        return b.reshape(value, ())
    if value.type.rank != 1:
        raise Invalid(f"a scale or zero point of rank {value.type.rank}")
    axis = n.axis(x.type.rank, 1)
    return b.reshape(value, (value.shape[0], *(1,) * (x.type.rank - axis - 1)))
