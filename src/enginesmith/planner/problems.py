"""One function per operator: an IR node and its operands as a kernel family's problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginesmith.ir.expr import Arg
from enginesmith.ir.graph import Node, Value
from enginesmith.ir.ops import (
    ConvAttrs,
    ConvTransposeAttrs,
    PointwiseAttrs,
    PoolAttrs,
)
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.halo.problem import HaloProblem
from enginesmith.kernels.layout.problem import LayoutProblem
from enginesmith.kernels.pointwise.problem import PointwiseProblem
from enginesmith.kernels.pool.problem import PoolProblem
from enginesmith.planner.lower import Lowered, Lowering
from enginesmith.planner.storage import ClearHalo, Move


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
    lowering.value(node.inputs[0])
    lowering.value(node.inputs[1])
    _extras(lowering, node, 2)
    lowering.value(node.output)
    return lowering.done(
        "conv", ConvProblem, node.op, node.sources,
        strides=attrs.strides, pads=attrs.pads, dilations=attrs.dilations, groups=attrs.groups,
        transposed=isinstance(attrs, ConvTransposeAttrs), epilogue=attrs.epilogue or Arg(0),
    )  # fmt: skip


def _pointwise(lowering: Lowering, node: Node) -> Lowered:
    attrs = node.attrs
    assert isinstance(attrs, PointwiseAttrs)
    _extras(lowering, node, 0)
    lowering.value(node.output)
    return lowering.done(
        "pointwise", PointwiseProblem, node.op, node.sources, expr=attrs.expr
    )


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


LOWERINGS: dict[str, Callable[[Lowering, Node], Lowered]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "pointwise": _pointwise,
    "pool": _pool,
    "layout": _copy,
}
"""By IR operator. Views need none; concat, and reshapes that copy, are moves."""
