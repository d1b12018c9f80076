"""One function per operator: an IR node and its operands as a kernel family's problem."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from enginesmith.errors import Problem, UnsupportedError
from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Expr, call, rewrite_args
from enginesmith.ir.graph import Node, Value
from enginesmith.ir.ops import (
    AttentionAttrs,
    ConvAttrs,
    ConvTransposeAttrs,
    CumSumAttrs,
    GatherAttrs,
    HostAttrs,
    MatMulAttrs,
    NormalizationAttrs,
    PadAttrs,
    PointwiseAttrs,
    PoolAttrs,
    RangeAttrs,
    ReduceAttrs,
    ResizeAttrs,
    ScatterAttrs,
    ShapeAttrs,
    SliceAttrs,
    SoftmaxAttrs,
    TransposeAttrs,
    prologue_extras,
)
from enginesmith.ir.strides import Stride
from enginesmith.kernels.argmax.problem import ArgMaxProblem
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cumsum.problem import CumSumProblem
from enginesmith.kernels.gather.problem import GatherProblem
from enginesmith.kernels.halo.problem import HaloProblem
from enginesmith.kernels.host.problem import HostProblem
from enginesmith.kernels.layout.problem import LayoutProblem
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.normalization.problem import NormalizationProblem
from enginesmith.kernels.pad.problem import PadProblem
from enginesmith.kernels.pointwise.problem import PointwiseProblem
from enginesmith.kernels.pool.problem import PoolProblem
from enginesmith.kernels.range.problem import RangeProblem
from enginesmith.kernels.reduce.problem import ReduceProblem
from enginesmith.kernels.resize.problem import ResizeProblem
from enginesmith.kernels.sizes.problem import SizesProblem
from enginesmith.kernels.softmax.problem import SoftmaxProblem
from enginesmith.planner.lower import Lowered, Lowering, held_data
from enginesmith.planner.storage import ClearHalo, Move, View, expanded, sliced


def lower_halo(lowering: Lowering, step: ClearHalo) -> Lowered:
    storage = step.storage
    view = lowering.plan.root_view(storage)
    lowering.view(view, storage.shape, storage.block)
    return lowering.done("halo", HaloProblem, "clear_halo", step.sources)


def lower_move(lowering: Lowering, step: Move) -> Lowered:
    source, block = step.source, step.target.type.layout.block
    if source.data is not None and block:
        lowering.blocked_constant(source.data, source.shape)
    else:
        lowering.value(source)
    fields: dict[str, int] = {}
    shape = source.shape
    if step.channel:
        fields = {"channels": int(shape[1]), "target_channel": step.channel}
        shape = step.target.shape
    lowering.view(step.view, shape, block)
    sources = source.producer.sources if source.producer else ()
    return lowering.done("layout", LayoutProblem, "copy", sources, **fields)


def _copy(lowering: Lowering, node: Node) -> Lowered:
    """A conversion between layouts."""
    lowering.value(node.inputs[0])
    lowering.value(node.output)
    return lowering.done("layout", LayoutProblem, node.op, node.sources)


def _extras(lowering: Lowering, node: Node, first: int) -> None:
    for value in node.inputs[first:]:
        lowering.extra(value, node.output)


def _conv(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, ConvAttrs | ConvTransposeAttrs)
    x, weight, *extras = node.inputs
    prologue = attrs.prologue if isinstance(attrs, ConvAttrs) else None
    own = len(extras) - prologue_extras(attrs)
    lowering.value(x)
    lowering.value(weight)
    for value in extras[:own]:
        lowering.extra(value, node.output)
    for value in extras[own:]:
        lowering.extra(value, x)
    lowering.value(node.output)
    if prologue is not None:
        # The IR counts the prologue's operands from 1 again, the problem after the epilogue's.
        prologue = rewrite_args(prologue, lambda i: Arg(i + own if i else 0))
    return lowering.done(
        "conv", ConvProblem, node.op, node.sources,
        strides=attrs.strides, pads=attrs.pads, dilations=attrs.dilations, groups=attrs.groups,
        transposed=isinstance(attrs, ConvTransposeAttrs), epilogue=attrs.epilogue or Arg(0),
        prologue=prologue, tf32=lowering.tf32,
    )  # fmt: skip


def _pointwise(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, PointwiseAttrs)
    _extras(lowering, node, 0)
    lowering.value(node.output)
    return lowering.done("pointwise", PointwiseProblem, node.op, node.sources, expr=attrs.expr)


def _pool(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, PoolAttrs)
    lowering.value(node.inputs[0])
    _extras(lowering, node, 1)
    lowering.value(node.output)
    return lowering.done(
        "pool", PoolProblem, node.op, node.sources,
        kind={"max": "max", "avg": "average"}[attrs.kind], kernel=attrs.kernel,
        strides=attrs.strides, pads=attrs.pads, dilations=attrs.dilations,
        count_include_pad=attrs.count_include_pad, epilogue=attrs.epilogue,
    )  # fmt: skip


def _strided_copy(lowering: Lowering, node: Node) -> Lowered:
    """A transpose, slice or expand that could not be a view: the source is seen as the result."""
    x, y, attrs = node.inputs[0], node.output, node.attrs
    if x.is_constant:
        if node.op != "expand":
            raise unsupported(
                node, f"a {node.op} of a constant by symbolic sizes has no kernel yet"
            )
        lowering.broadcast(x, y.shape)
        lowering.value(y)
        return lowering.done("layout", LayoutProblem, node.op, node.sources)
    view = lowering.plan.views[id(x)]
    if isinstance(attrs, TransposeAttrs):
        seen = View(view.storage, view.offset, tuple(view.strides[p] for p in attrs.perm))
    elif isinstance(attrs, SliceAttrs):
        seen = sliced(view, x, attrs.starts, attrs.steps)
    else:
        seen = View(view.storage, view.offset, expanded(view.strides, x.shape, y.shape))
    lowering.view(seen, y.shape, y.type.layout.block)
    lowering.value(y)
    return lowering.done("layout", LayoutProblem, node.op, node.sources)


def _matmul(lowering: Lowering, node: Node) -> Lowered:
    attrs, y = node.attrs, node.output
    assert isinstance(attrs, MatMulAttrs)
    a, b = node.inputs[:2]
    rank = max(a.type.rank, b.type.rank, 2)
    _factor(lowering, a, rank, attrs.transpose_a, column=False)
    _factor(lowering, b, rank, attrs.transpose_b, column=True)
    # The axes that vectors drop from the result are put back with size 1.
    dropped = [rank - 2] * (a.type.rank == 1) + [rank - 1] * (b.type.rank == 1)
    view = lowering.plan.views[id(y)]
    shape, strides = list(y.shape), list(view.strides)
    for axis in dropped:
        shape.insert(axis, 1)
        strides.insert(axis, (1,))
    for value in node.inputs[2:]:
        lowering.broadcast(value, tuple(shape), dropped)
    lowering.view(View(view.storage, view.offset, tuple(strides)), tuple(shape), 0)
    return lowering.done(
        "matmul", MatMulProblem, node.op, node.sources,
        epilogue=attrs.epilogue or Arg(0), tf32=lowering.tf32,
    )  # fmt: skip


def _factor(lowering: Lowering, value: Value, rank: int, swap: bool, column: bool) -> None:
    """A matrix operand: vectors become one row or column, missing batch axes repeat."""
    if value.data is not None:
        data = held_data(value)
        if data.ndim == 1:
            data = data[:, None] if column else data[None, :]
        elif swap:
            data = data.swapaxes(-1, -2)
        data = np.ascontiguousarray(data.reshape((1,) * (rank - data.ndim) + data.shape))
        lowering.constant(data, broadcast=rank - 2)
        return
    view = lowering.plan.views[id(value)]
    shape, strides = list(value.shape), list(view.strides)
    if len(shape) == 1:
        shape.insert(1 if column else 0, 1)
        strides.insert(1 if column else 0, (1,))
    elif swap:
        shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
    missing = rank - len(shape)
    lead = [(0,) if d == 1 else s for d, s in zip(shape[:-2], strides[:-2], strict=True)]
    whole: list[Stride] = [*[(0,)] * missing, *lead, *strides[-2:]]
    seen = View(view.storage, view.offset, tuple(whole))
    lowering.view(seen, (*[1] * missing, *shape), 0)


def _argmax(lowering: Lowering, node: Node, attrs: ReduceAttrs) -> Lowered:
    if len(attrs.axes) != 1 or attrs.epilogue is not None:
        raise unsupported(node, "argmax and argmin have kernels for one axis only")
    lowering.value(node.inputs[0])
    lowering.value(node.output)
    minimum = attrs.kind == "argmin"
    return lowering.done(
        "argmax", ArgMaxProblem, node.op, node.sources, axis=attrs.axes[0], minimum=minimum
    )


_REDUCTIONS: dict[str, tuple[str, Expr, Expr]] = {
    "sumsq": ("sum", call("mul", Arg(0), Arg(0)), Arg(0)),
    "l1": ("sum", call("abs", Arg(0)), Arg(0)),
    "l2": ("sum", call("mul", Arg(0), Arg(0)), call("sqrt", Arg(0))),
}
"""Kinds the family has no name for: kind, prologue, epilogue."""


def _reduce(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, ReduceAttrs)
    if attrs.kind in ("argmax", "argmin"):
        return _argmax(lowering, node, attrs)
    kind, prologue, inner = _REDUCTIONS.get(attrs.kind, (attrs.kind, Arg(0), Arg(0)))
    epilogue = attrs.epilogue or Arg(0)
    if len(node.inputs) > 1:
        raise unsupported(node, "a reduction's epilogue with operands has no kernel")
    lowering.value(node.inputs[0])
    lowering.value(node.output)
    return lowering.done(
        "reduce", ReduceProblem, node.op, node.sources,
        kind=kind, axes=attrs.axes, prologue=prologue,
        epilogue=rewrite_args(epilogue, lambda _: inner),
    )  # fmt: skip


def _resize(lowering: Lowering, node: Node) -> Lowered:
    attrs, x, y = node.attrs, node.inputs[0], node.output
    assert isinstance(attrs, ResizeAttrs)
    if attrs.exclude_outside:
        raise unsupported(node, "exclude_outside has no kernel yet")
    axes = tuple(
        i for i in range(x.type.rank)
        if not dims.equal(x.shape[i], y.shape[i]) or attrs.scales[i] not in (None, 1.0)
    )  # fmt: skip
    lowering.value(x)
    _extras(lowering, node, 1)
    lowering.value(y)
    return lowering.done(
        "resize", ResizeProblem, node.op, node.sources,
        axes=axes, scales=tuple(attrs.scales[i] for i in axes), mode=attrs.mode,
        coordinates=attrs.coordinates, rounding=attrs.nearest, cubic_a=attrs.cubic_coeff_a,
        epilogue=attrs.epilogue or Arg(0),
    )  # fmt: skip


def _softmax(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, SoftmaxAttrs)
    lowering.value(node.inputs[0])
    lowering.value(node.output)
    return lowering.done(
        "softmax", SoftmaxProblem, node.op, node.sources, axis=attrs.axis, log=attrs.log
    )


def _normalization(lowering: Lowering, node: Node) -> Lowered:
    attrs, y = node.attrs, node.output
    assert isinstance(attrs, NormalizationAttrs)
    lowering.value(node.inputs[0])
    for value in node.inputs[1:]:
        lowering.broadcast(value, y.shape)
    lowering.value(y)
    scaled = call("mul", Arg(0), Arg(1))
    return lowering.done(
        "normalization", NormalizationProblem, node.op, node.sources,
        axes=tuple(range(attrs.axis, y.type.rank)), eps=attrs.epsilon, rms=attrs.rms,
        epilogue=call("add", scaled, Arg(2)) if len(node.inputs) > 2 else scaled,
    )  # fmt: skip


def _attention(lowering: Lowering, node: Node) -> Lowered:
    attrs, y = node.attrs, node.output
    assert isinstance(attrs, AttentionAttrs)
    q, k, v = node.inputs[:3]
    for value in (q, k, v):
        lowering.value(value)
    for mask in node.inputs[3:]:
        lowering.broadcast(mask, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
    lowering.value(y)
    return lowering.done(
        "attention", AttentionProblem, node.op, node.sources,
        scale=attrs.scale, causal=attrs.causal,
    )  # fmt: skip


def _gather(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, GatherAttrs | ScatterAttrs)
    kinds = {"axis": "gather", "elements": "gather_elements", "nd": "gather_nd"}
    fields: dict[str, int | str] = {"axis": attrs.axis}
    if isinstance(attrs, ScatterAttrs):
        fields |= {"kind": f"scatter_{attrs.kind}", "reduction": attrs.reduction}
    else:
        fields |= {"kind": kinds[attrs.kind], "batch_dims": attrs.batch_dims}
    for value in (*node.inputs, node.output):
        lowering.value(value)
    return lowering.done("gather", GatherProblem, node.op, node.sources, **fields)


def _pad(lowering: Lowering, node: Node) -> Lowered:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, PadAttrs)
    lowering.value(x)
    lowering.value(node.output)
    before = lowering.shape(attrs.pads[: x.type.rank])
    return lowering.done(
        "pad", PadProblem, node.op, node.sources, mode=attrs.mode, before=before, value=attrs.value
    )


def _range(lowering: Lowering, node: Node) -> Lowered:
    attrs, y = node.attrs, node.output
    assert isinstance(attrs, RangeAttrs)
    if not isinstance(attrs.start, int | float):
        raise unsupported(node, "a range that starts at a symbolic size has no kernel yet")
    for scalar in (attrs.start, attrs.step):
        lowering.constant(np.asarray(scalar, y.dtype))
    lowering.value(y)
    return lowering.done("range", RangeProblem, node.op, node.sources)


def _cumsum(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, CumSumAttrs)
    lowering.value(node.inputs[0])
    lowering.value(node.output)
    return lowering.done(
        "cumsum", CumSumProblem, node.op, node.sources,
        axis=attrs.axis, exclusive=attrs.exclusive, reverse=attrs.reverse,
    )  # fmt: skip


def _shape(lowering: Lowering, node: Node) -> Lowered:
    assert isinstance(node.attrs, ShapeAttrs)
    lowering.value(node.output)
    values = lowering.shape(node.attrs.dims)
    return lowering.done("sizes", SizesProblem, node.op, node.sources, values=values)


def _host(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, HostAttrs)
    for value in (*node.inputs, *node.outputs):
        lowering.value(value)
    return lowering.done(
        "host", HostProblem, f"host {attrs.operator}", node.sources, outputs=len(node.outputs),
        operator=attrs.operator, node=attrs.node, opset=attrs.opset,
    )  # fmt: skip


def unsupported(node: Node, reason: str) -> UnsupportedError:
    """The error for a form of an operator that no kernel serves."""
    where = f"node {', '.join(node.sources) or node.op}"
    return UnsupportedError("no kernel serves some nodes of the model", [Problem(where, reason)])


LOWERINGS: dict[str, Callable[[Lowering, Node], Lowered]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "pointwise": _pointwise,
    "pool": _pool,
    "layout": _copy,
    "matmul": _matmul,
    "reduce": _reduce,
    "attention": _attention,
    "gather": _gather,
    "scatter": _gather,
    "pad": _pad,
    "range": _range,
    "cumsum": _cumsum,
    "shape": _shape,
    "resize": _resize,
    "softmax": _softmax,
    "normalization": _normalization,
    "transpose": _strided_copy,
    "slice": _strided_copy,
    "expand": _strided_copy,
    "host": _host,
}
"""By IR operator. Views need none; concat, and reshapes that copy, are moves."""
