"""Types of nodes' outputs: the one place where shapes follow from operands.

`infer` serves the importers' builder, passes that make nodes, and the verifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from enginesmith.ir import dims, expr
from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.ops import (
    OPS,
    Attrs,
    ConcatAttrs,
    ConvAttrs,
    ConvTransposeAttrs,
    GatherAttrs,
    MatMulAttrs,
    PadAttrs,
    PointwiseAttrs,
    ReduceAttrs,
    ShapeAttrs,
    TransposeAttrs,
    epilogue_of,
)
from enginesmith.ir.types import TensorType, broadcast

CHOSEN_SHAPE = frozenset(
    {"slice", "pool", "resize", "reshape", "expand", "range", "layout", "host"}
)
"""Operators whose output shape is a choice of the node (stored in its output's type), not a
consequence of its operands. `range` chooses its dtype too, `host` the types of all its outputs."""


def infer(
    op: str, attrs: Attrs, inputs: Sequence[TensorType], chosen: TensorType | None = None
) -> TensorType:
    """The output's type, plain layout. `chosen`: the type picked, for operators in CHOSEN_SHAPE.

    ValueError if the operands don't fit each other or the attributes.
    """
    if op == "pointwise":
        return _pointwise(attrs, inputs)
    if op == "host":
        raise ValueError("the outputs' types of a host step are the importer's to infer")
    own = inputs[: OPS[op].inputs + OPS[op].optional] if OPS[op].inputs >= 0 else inputs
    if op in CHOSEN_SHAPE:
        if chosen is None:
            raise ValueError(f"the output shape of {op} must be given")
        dtype = own[0].dtype if own else chosen.dtype
        result = TensorType(dtype, chosen.shape)
    else:
        result = _RULES[op](attrs, *own)
    epilogue = epilogue_of(attrs)
    if epilogue is None:
        return result
    extras = inputs[OPS[op].inputs :]
    return TensorType(
        expr.dtype_of(epilogue, [result.dtype, *(e.dtype for e in extras)]), result.shape
    )


def _pointwise(attrs: Attrs, inputs: Sequence[TensorType]) -> TensorType:
    assert isinstance(attrs, PointwiseAttrs)
    dtype = expr.dtype_of(attrs.expr, [t.dtype for t in inputs])
    return TensorType(dtype, broadcast(*(t.shape for t in inputs)))


def window_output(
    size: Dim, kernel: Dim, stride: int, pad: Dim, dilation: int, ceil: bool = False
) -> Dim:
    """Output length of a sliding window over `size` elements plus `pad` in all (ONNX's formula)."""
    room = dims.simplify(size + pad - dilation * (kernel - 1) - 1)
    return dims.simplify((dims.ceildiv if ceil else dims.floordiv)(room, stride) + 1)


def _conv(attrs: ConvAttrs, x: TensorType, w: TensorType) -> TensorType:
    _rank(x, 4)
    _rank(w, 4)
    if not dims.equal(x.shape[1], w.shape[1] * attrs.groups):
        raise ValueError(
            f"the input has {dims.to_text(x.shape[1])} channels, the weights are for "
            f"{dims.to_text(dims.simplify(w.shape[1] * attrs.groups))}"
        )
    top, left, bottom, right = attrs.pads
    spatial = tuple(
        window_output(x.shape[2 + i], w.shape[2 + i], attrs.strides[i], pad, attrs.dilations[i])
        for i, pad in enumerate((top + bottom, left + right))
    )
    return TensorType(x.dtype, (x.shape[0], w.shape[0], *spatial))


def _conv_transpose(attrs: ConvTransposeAttrs, x: TensorType, w: TensorType) -> TensorType:
    _rank(x, 4)
    _rank(w, 4)
    if not dims.equal(x.shape[1], w.shape[0]):
        raise ValueError(
            f"the input has {dims.to_text(x.shape[1])} channels, the weights are for "
            f"{dims.to_text(w.shape[0])}"
        )
    top, left, bottom, right = attrs.pads
    spatial = tuple(
        dims.simplify(
            attrs.strides[i] * (x.shape[2 + i] - 1)
            + attrs.dilations[i] * (w.shape[2 + i] - 1)
            + 1
            + attrs.output_padding[i]
            - pad
        )
        for i, pad in enumerate((top + bottom, left + right))
    )
    return TensorType(x.dtype, (x.shape[0], dims.simplify(w.shape[1] * attrs.groups), *spatial))


def _matmul(attrs: MatMulAttrs, a: TensorType, b: TensorType) -> TensorType:
    a_shape = _swapped(a.shape) if attrs.transpose_a else a.shape
    b_shape = _swapped(b.shape) if attrs.transpose_b else b.shape
    if not a_shape or not b_shape:
        raise ValueError("a matrix product of a scalar")
    inner_a, inner_b = a_shape[-1], b_shape[-2 if len(b_shape) > 1 else -1]
    if isinstance(inner_a, int) and isinstance(inner_b, int) and inner_a != inner_b:
        raise ValueError(f"the inner sizes of the matrix product differ: {inner_a} and {inner_b}")
    batch = broadcast(a_shape[:-2], b_shape[:-2])
    rows = a_shape[-2:-1]
    columns = b_shape[-1:] if len(b_shape) > 1 else ()
    return TensorType(a.dtype, (*batch, *rows, *columns))


def _swapped(shape: Shape) -> Shape:
    if len(shape) < 2:
        raise ValueError("a transposed operand of a matrix product needs two axes")
    return (*shape[:-2], shape[-1], shape[-2])


def _attention(attrs: Attrs, q: TensorType, k: TensorType, v: TensorType, *_: Any) -> TensorType:
    return TensorType(q.dtype, (*q.shape[:-1], v.shape[-1]))


def _reduce(attrs: ReduceAttrs, x: TensorType) -> TensorType:
    if any(not 0 <= axis < x.rank for axis in attrs.axes):
        raise ValueError(f"axes {list(attrs.axes)} of a tensor of rank {x.rank}")
    shape = tuple(
        1 if axis in attrs.axes else d
        for axis, d in enumerate(x.shape)
        if attrs.keepdims or axis not in attrs.axes
    )
    return TensorType("int64" if attrs.kind.startswith("arg") else x.dtype, shape)


def _same(attrs: Attrs, x: TensorType, *_: TensorType) -> TensorType:
    return TensorType(x.dtype, x.shape)


def _concat(attrs: ConcatAttrs, *inputs: TensorType) -> TensorType:
    first = inputs[0]
    shape: list[Dim] = []
    for axis in range(first.rank):
        column = []
        for x in inputs:
            _rank(x, first.rank)
            column.append(x.shape[axis])
        if axis == attrs.axis:
            shape.append(dims.simplify(sum(column)))
            continue
        fixed = {d for d in column if isinstance(d, int)}
        if len(fixed) > 1:
            raise ValueError(f"sizes {sorted(fixed)} meet on axis {axis} of a concatenation")
        shape.append(next(iter(fixed), column[0]))
    return TensorType(first.dtype, tuple(shape))


def _transpose(attrs: TransposeAttrs, x: TensorType) -> TensorType:
    if sorted(attrs.perm) != list(range(x.rank)):
        raise ValueError(f"permutation {list(attrs.perm)} of a tensor of rank {x.rank}")
    return TensorType(x.dtype, tuple(x.shape[axis] for axis in attrs.perm))


def _pad(attrs: PadAttrs, x: TensorType) -> TensorType:
    if len(attrs.pads) != 2 * x.rank:
        raise ValueError(f"{len(attrs.pads)} pads for a tensor of rank {x.rank}")
    return TensorType(
        x.dtype,
        tuple(
            dims.simplify(d + attrs.pads[axis] + attrs.pads[x.rank + axis])
            for axis, d in enumerate(x.shape)
        ),
    )


def _gather(attrs: GatherAttrs, data: TensorType, indices: TensorType) -> TensorType:
    if attrs.kind == "elements":
        return TensorType(data.dtype, indices.shape)
    if attrs.kind == "axis":
        before, after = data.shape[: attrs.axis], data.shape[attrs.axis + 1 :]
        return TensorType(data.dtype, (*before, *indices.shape, *after))
    depth = indices.shape[-1]
    if not isinstance(depth, int) or attrs.batch_dims + depth > data.rank:
        raise ValueError(f"{dims.to_text(depth)} indices each into a tensor of rank {data.rank}")
    return TensorType(data.dtype, (*indices.shape[:-1], *data.shape[attrs.batch_dims + depth :]))


def _shape(attrs: ShapeAttrs) -> TensorType:
    return TensorType("int64", (len(attrs.dims),))


def _rank(x: TensorType, rank: int) -> None:
    if x.rank != rank:
        raise ValueError(f"a tensor of rank {x.rank} where rank {rank} is needed")


_RULES: dict[str, Callable[..., TensorType]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "matmul": _matmul,
    "attention": _attention,
    "reduce": _reduce,
    "softmax": _same,
    "normalization": _same,
    "concat": _concat,
    "transpose": _transpose,
    "pad": _pad,
    "gather": _gather,
    "scatter": _same,
    "shape": _shape,
    "cumsum": _same,
}
