"""Importers of reductions, softmax and normalizations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.elementwise_ops import scalar
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported, normal_axes
from enginesmith.frontend.shape_ops import padded
from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Call, Const, Expr
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import NormalizationAttrs, ReduceAttrs, SliceAttrs, SoftmaxAttrs

Importer = Callable[[GraphBuilder, OnnxNode], Value]


def reduced_axes(b: GraphBuilder, n: OnnxNode) -> tuple[int, ...]:
    """Axes are an attribute, or (opset 13 for ReduceSum, 18 for the others) operand 1."""
    operand, rank = n.optional(1), n.value(0).type.rank
    given = n.integers("axes", ()) if operand is None else b.ints(operand, "the list of axes")
    if not given and n.integer("noop_with_empty_axes", 0):
        return ()
    return normal_axes(given or range(rank), rank)


def reduce(kind: str) -> Importer:
    """A reduction of the IR. Over no axes, its pointwise part still happens."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        x = n.value(0)
        axes = reduced_axes(b, n)
        if not axes and kind in ("sum", "mean", "max", "min", "prod"):
            return x
        return b.emit("reduce", [x], ReduceAttrs(kind, axes, bool(n.integer("keepdims", 1))))

    return importer


def _only_floats(n: OnnxNode) -> None:
    if "float" not in n.value(0).dtype:
        raise Unsupported(f"{n.proto.op_type} of {n.value(0).dtype}")


def reduce_log_sum(b: GraphBuilder, n: OnnxNode) -> Value:
    _only_floats(n)
    return b.call("log", reduce("sum")(b, n))


def reduce_log_sum_exp(b: GraphBuilder, n: OnnxNode) -> Value:
    """log(sum(exp(x - top))) + top, where top is the largest element if that is finite, else 0."""
    _only_floats(n)
    x = n.value(0)
    axes = reduced_axes(b, n)
    if not axes:
        return x
    top = b.emit("reduce", [x], ReduceAttrs("max", axes, True))
    infinite = Call("eq", (Call("abs", (Arg(0),)), Const(float("inf"), x.dtype)))
    top = b.pointwise(Call("where", (infinite, scalar(0, x.dtype), Arg(0))), top)
    powers = b.pointwise(Call("exp", (Call("sub", (Arg(0), Arg(1))),)), x, top)
    total = b.emit("reduce", [powers], ReduceAttrs("sum", axes, True))
    result = b.pointwise(Call("add", (Call("log", (Arg(0),)), Arg(1))), total, top)
    if n.integer("keepdims", 1):
        return result
    return b.reshape(result, [d for i, d in enumerate(x.shape) if i not in axes])


def arg_reduce(kind: str) -> Importer:
    """The index of the first extreme element along one axis."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        x = n.value(0)
        axis = n.axis(x.type.rank, 0)
        attrs = ReduceAttrs(kind, (axis,), bool(n.integer("keepdims", 1)))
        if not n.integer("select_last_index", 0):
            return b.emit("reduce", [x], attrs)
        size = x.shape[axis]
        if not isinstance(size, int):
            raise Unsupported("select_last_index along an axis of symbolic size", "fix the size")
        starts, steps = [0] * x.type.rank, [1] * x.type.rank
        starts[axis], steps[axis] = size - 1, -1
        flipped = b.emit("slice", [x], SliceAttrs(tuple(starts), tuple(steps)), x.shape)
        found = b.emit("reduce", [flipped], attrs)
        return b.pointwise(Call("sub", (scalar(size - 1, "int64"), Arg(0))), found)

    return importer


def softmax(log: bool) -> Importer:
    """Opset 13: over one axis."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        x = n.value(0)
        return b.emit("softmax", [x], SoftmaxAttrs(n.axis(x.type.rank, -1), log))

    return importer


def softmax_flattening(log: bool) -> Importer:
    """Before opset 13: over all axes from `axis` on, flattened."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        x = n.value(0)
        axis = n.axis(x.type.rank, 1)
        if all(d == 1 for d in x.shape[axis + 1 :]):
            return b.emit("softmax", [x], SoftmaxAttrs(axis, log))
        flat = b.reshape(x, (*x.shape[:axis], dims.product(x.shape[axis:])))
        return b.reshape(b.emit("softmax", [flat], SoftmaxAttrs(axis, log)), x.shape)

    return importer


def _channels(b: GraphBuilder, value: Value, x: Value) -> Value:
    """A vector of per-channel numbers that broadcasts to x (n, c, ...)."""
    channels = x.shape[1] if x.type.rank > 1 else None
    if channels is not None and value.type.rank == 1:
        b.fix(channels, value.shape[0])
    if value.type.rank != 1 or channels is None or not dims.equal(value.shape[0], channels):
        raise Invalid(f"parameters of type {value.type} for an input of type {x.type}")
    return b.reshape(value, (value.shape[0], *(1,) * (x.type.rank - 2)))


def batch_normalization(b: GraphBuilder, n: OnnxNode) -> Value:
    """x * scale + shift; with constant parameters both are constants of shape (c, 1, ...)."""
    if n.integer("training_mode", 0) or n.outputs > 1:
        raise Unsupported("BatchNormalization in training mode", "export the model for inference")
    if not n.integer("spatial", 1):
        raise Unsupported("BatchNormalization with spatial=0")
    x = n.value(0)
    gamma, beta, mean, variance = (_channels(b, n.value(i), x) for i in range(1, 5))
    epsilon = n.number("epsilon", 1e-5)
    data = [v.data for v in (gamma, beta, mean, variance)]
    if all(d is not None for d in data):
        g, s, m, v = (np.asarray(d, np.float64) for d in data)
        factor = g / np.sqrt(v + epsilon)
        scale = b.constant(factor.astype(x.dtype), f"{b.hint}.scale")
        shift = b.constant((s - m * factor).astype(x.dtype), f"{b.hint}.shift")
        tree: Expr = Call("add", (Call("mul", (Arg(0), Arg(1))), Arg(2)))
        return b.pointwise(tree, x, scale, shift)
    root = Call("sqrt", (Call("add", (Arg(4), scalar(epsilon, x.dtype))),))
    centred = Call("sub", (Arg(0), Arg(3)))
    scaled = Call("mul", (centred, Call("div", (Arg(1), root))))
    return b.pointwise(Call("add", (scaled, Arg(2))), x, gamma, beta, mean, variance)


def layer_normalization(b: GraphBuilder, n: OnnxNode) -> tuple[Value, ...]:
    """The result and, if they are read, mean and 1 / standard deviation."""
    result = _normalized(b, n, rms=False)
    if n.outputs == 1:
        return (result,)
    x = n.value(0)
    axes = tuple(range(n.axis(x.type.rank, -1), x.type.rank))
    mean = b.emit("reduce", [x], ReduceAttrs("mean", axes, True))
    difference = Call("sub", (Arg(0), Arg(1)))
    squares = b.pointwise(Call("mul", (difference, difference)), x, mean)
    variance = b.emit("reduce", [squares], ReduceAttrs("mean", axes, True))
    epsilon = scalar(n.number("epsilon", 1e-5), x.dtype)
    deviation = Call("sqrt", (Call("add", (Arg(0), epsilon)),))
    inverse = b.pointwise(Call("div", (scalar(1, x.dtype), deviation)), variance)
    return result, mean, inverse


def rms_normalization(b: GraphBuilder, n: OnnxNode) -> Value:
    return _normalized(b, n, rms=True)


def _normalized(b: GraphBuilder, n: OnnxNode, rms: bool) -> Value:
    x = n.value(0)
    axis = n.axis(x.type.rank, -1)
    parameters = [v for v in (n.value(1), n.optional(2)) if v is not None]
    fitted = []
    for value in parameters:
        excess = max(value.type.rank - (x.type.rank - axis), 0)
        fits = all(dims.equal(d, 1) for d in value.shape[:excess])
        if fits:
            fitted.append(b.expand(b.reshape(value, value.shape[excess:]), x.shape[axis:]))
        else:
            raise Unsupported(
                f"a scale of type {value.type} that reaches beyond the axes normalised"
            )
    return b.emit(
        "normalization", [x, *fitted], NormalizationAttrs(axis, n.number("epsilon", 1e-5), rms)
    )


def _standardized(
    b: GraphBuilder, x: Value, axes: tuple[int, ...], epsilon: float, *affine: Value
) -> Value:
    """(x - mean) / sqrt(variance + epsilon), then times and plus the operands in `affine`."""
    mean = b.emit("reduce", [x], ReduceAttrs("mean", axes, True))
    centred = b.call("sub", x, mean)
    square = b.pointwise(Call("mul", (Arg(0), Arg(0))), centred)
    variance = b.emit("reduce", [square], ReduceAttrs("mean", axes, True))
    root = Call("sqrt", (Call("add", (Arg(1), scalar(epsilon, x.dtype))),))
    tree: Expr = Call("div", (Arg(0), root))
    if affine:
        tree = Call("add", (Call("mul", (tree, Arg(2))), Arg(3)))
    return b.pointwise(tree, centred, variance, *affine)


def instance_normalization(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    scale, bias = (_channels(b, n.value(i), x) for i in (1, 2))
    return _standardized(b, x, tuple(range(2, x.type.rank)), n.number("epsilon", 1e-5), scale, bias)


def group_normalization(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 21: scale and bias per channel; opset 18: per group."""
    x, groups = n.value(0), n.integer("num_groups")
    batch, channels = x.shape[:2]
    if not isinstance(channels, int):
        remedy = "fix the size with shapes={...}"
        raise Unsupported("GroupNormalization over a symbolic number of channels", remedy)
    if groups < 1 or channels % groups:
        raise Invalid(f"{channels} channels in {groups} groups")
    width = channels // groups
    grouped = b.reshape(x, (batch, groups, width, *x.shape[2:]))
    scale, bias = n.value(1), n.value(2)
    tail = (1,) * (x.type.rank - 2)
    per_group = n.opset < 21 or scale.shape[0] != channels
    scale, bias = (b.reshape(v, (groups, 1 if per_group else width, *tail)) for v in (scale, bias))
    axes = tuple(range(2, x.type.rank + 1))
    result = _standardized(b, grouped, axes, n.number("epsilon", 1e-5), scale, bias)
    return b.reshape(result, x.shape)


def mean_variance_normalization(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    axes = normal_axes(n.integers("axes", (0, 2, 3)), x.type.rank)
    return _standardized(b, x, axes, 1e-9)


def lp_normalization(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    p = n.integer("p", 2)
    if p not in (1, 2):
        raise Invalid(f"LpNormalization with p={p}")
    norm = b.emit("reduce", [x], ReduceAttrs(f"l{p}", (n.axis(x.type.rank, -1),), True))
    zero = scalar(0, x.dtype)
    tree = Call("where", (Call("eq", (Arg(1), zero)), zero, Call("div", (Arg(0), Arg(1)))))
    return b.pointwise(tree, x, norm)


def local_response_normalization(b: GraphBuilder, n: OnnxNode) -> Value:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    x, size = n.value(0), n.integer("size")
    rank = x.type.rank
    pads = [0] * (2 * rank)
    pads[1], pads[rank + 1] = (size - 1) // 2, size // 2
    squares = b.pointwise(Call("mul", (Arg(0), Arg(0))), x)
    spread = padded(b, squares, pads, "constant", 0.0)
    shifted = [b.slice_axis(spread, 1, i, x.shape[1]) for i in range(size)]
    total: Expr = Arg(1)
    for i in range(1, size):
        total = Call("add", (total, Arg(1 + i)))
    scaled = Call("mul", (total, scalar(n.number("alpha", 1e-4) / size, x.dtype)))
    base = Call("add", (scaled, scalar(n.number("bias", 1.0), x.dtype)))
    norm = Call("pow", (base, scalar(n.number("beta", 0.75), x.dtype)))
    return b.pointwise(Call("div", (Arg(0), norm)), x, *shifted)
