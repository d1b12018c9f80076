"""Importers of arithmetic, comparisons, logic and casts: pointwise trees over numpy
broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported, dtype_name
from enginesmith.ir.expr import OPS, Arg, Call, Const, Expr
from enginesmith.ir.graph import Value

Importer = Callable[[GraphBuilder, OnnxNode], Value]


FLOAT_MOD = 28
"""Since this opset Mod of floats may have fmod=0: the sign of the divisor."""


def scalar(value: float, dtype: str) -> Const:
    """A constant leaf of `dtype`."""
    return Const(float(value) if "float" in dtype else int(value), dtype)


def same_dtypes(*values: Value) -> None:
    """Invalid unless all values have one element type."""
    dtypes = sorted({v.dtype for v in values})
    if len(dtypes) > 1:
        raise Invalid(f"operands of element types {' and '.join(dtypes)}")


def pair(b: GraphBuilder, n: OnnxNode) -> tuple[Value, Value]:
    """Both operands of a binary operator. Before opset 7 the second one's axes were those of the
    first from `axis` on, if that was given."""
    left, right = n.value(0), n.value(1)
    if n.opset < 7 and n.has("axis"):
        trailing = left.type.rank - n.axis(left.type.rank) - right.type.rank
        if trailing < 0:
            raise Invalid(f"axis {n.integer('axis')} leaves no room for {right.type}")
        right = b.reshape(right, (*right.shape, *(1,) * trailing))
    return left, right


def operator(op: str) -> Importer:
    """An ONNX operator that is one pointwise operator with the same operands."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        operands = pair(b, n) if OPS[op].arity == 2 else (n.value(0),)
        same_dtypes(*operands)
        return b.call(op, *operands)

    return importer


def swapped(op: str) -> Importer:
    """A comparison as the opposite one of the swapped operands."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        left, right = pair(b, n)
        same_dtypes(left, right)
        return b.call(op, right, left)

    return importer


def chained(op: str) -> Importer:
    """An ONNX operator over any number of operands."""

    def importer(b: GraphBuilder, n: OnnxNode) -> Value:
        operands = [n.value(i) for i in range(len(n.inputs))]
        same_dtypes(*operands)
        tree: Expr = Arg(0)
        for i in range(1, len(operands)):
            tree = Call(op, (tree, Arg(i)))
        return b.pointwise(tree, *operands)

    return importer


def mean(b: GraphBuilder, n: OnnxNode) -> Value:
    total = chained("add")(b, n)
    count = scalar(len(n.inputs), total.dtype)
    return b.pointwise(Call("div", (Arg(0), count)), total)


def power(b: GraphBuilder, n: OnnxNode) -> Value:
    """Small constant exponents become products and roots."""
    base, exponent = pair(b, n)
    if "int" in base.dtype and "float" in exponent.dtype:
        widened = b.pointwise(Call("pow", (Arg(0), Arg(1))), b.cast(base, exponent.dtype), exponent)
        return b.cast(widened, base.dtype)
    exponent = b.cast(exponent, base.dtype)
    if exponent.data is not None and exponent.data.size == 1:
        tree = _power_tree(float(exponent.data.item()), base.dtype)
        if tree is not None and exponent.type.rank <= base.type.rank:
            return b.pointwise(tree, base)
    return b.call("pow", base, exponent)


def _power_tree(exponent: float, dtype: str) -> Expr | None:
    x = Arg(0)
    square = Call("mul", (x, x))
    one = scalar(1, dtype)
    whole: dict[float, Expr] = {1: x, 2: square, 3: Call("mul", (square, x))}
    if exponent in whole:
        return whole[exponent]
    if "float" not in dtype:
        return None
    root = Call("sqrt", (x,))
    fractional: dict[float, Expr] = {
        0.5: root,
        -0.5: Call("div", (one, root)),
        -1: Call("div", (one, x)),
        -2: Call("div", (one, square)),
    }
    return fractional.get(exponent)


def modulo(b: GraphBuilder, n: OnnxNode) -> Value:
    same_dtypes(n.value(0), n.value(1))
    is_c = n.integer("fmod", 0)
    if not is_c and "float" in n.value(0).dtype and n.opset < FLOAT_MOD:
        raise Invalid(f"Mod of floats needs fmod=1 before opset {FLOAT_MOD}")
    return b.call("fmod" if is_c else "mod", n.value(0), n.value(1))


def where(b: GraphBuilder, n: OnnxNode) -> Value:
    condition, then, other = (n.value(i) for i in range(3))
    same_dtypes(then, other)
    if condition.dtype != "bool":
        raise Invalid(f"a condition of element type {condition.dtype}")
    return b.call("where", condition, then, other)


def cast(b: GraphBuilder, n: OnnxNode) -> Value:
    return b.cast(n.value(0), dtype_name(n.integer("to"), "the result"))


def cast_like(b: GraphBuilder, n: OnnxNode) -> Value:
    return b.cast(n.value(0), n.value(1).dtype)


def is_infinite(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    infinity = Const(float("inf"), x.dtype)
    positive, negative = n.integer("detect_positive", 1), n.integer("detect_negative", 1)
    if not positive and not negative:
        return b.pointwise(Call("and", (Call("isnan", (Arg(0),)), Const(False, "bool"))), x)
    if positive and negative:
        inside: Expr = Call("abs", (Arg(0),))
    else:
        inside = Arg(0) if positive else Call("neg", (Arg(0),))
    return b.pointwise(Call("eq", (inside, infinity)), x)


def reciprocal(b: GraphBuilder, n: OnnxNode) -> Value:
    x = n.value(0)
    return b.pointwise(Call("div", (scalar(1, x.dtype), Arg(0))), x)


def clip_attributes(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 6: the limits are attributes."""
    x = n.value(0)
    tree: Expr = Arg(0)
    if n.has("min"):
        tree = Call("max", (tree, scalar(n.number("min"), x.dtype)))
    if n.has("max"):
        tree = Call("min", (tree, scalar(n.number("max"), x.dtype)))
    return b.pointwise(tree, x)


def clip(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 11: the limits are operands."""
    operands = [n.value(0)]
    tree: Expr = Arg(0)
    for slot, op in ((1, "max"), (2, "min")):
        limit = n.optional(slot)
        if limit is not None:
            same_dtypes(operands[0], limit)
            tree = Call(op, (tree, Arg(len(operands))))
            operands.append(limit if limit.type.rank == 0 else b.reshape(limit, ()))
    return b.pointwise(tree, *operands)


def identity(b: GraphBuilder, n: OnnxNode) -> Value:
    return n.value(0)


def dropout(b: GraphBuilder, n: OnnxNode) -> tuple[Value, ...]:
    """Inference: the input, and a mask of all true."""
    x = n.value(0)
    training = n.optional(2)
    if training is not None and (training.data is None or training.data.any()):
        raise Unsupported("Dropout in training mode", "export the model for inference")
    if n.outputs == 1:
        return (x,)
    mask = b.expand(b.constant(np.array(True)), x.shape)
    return x, b.cast(mask, "bool" if n.opset >= 10 else x.dtype)
