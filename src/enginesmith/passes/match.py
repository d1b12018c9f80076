"""Matching operations written out as several one-call pointwise nodes, from a result backwards."""

from __future__ import annotations

from typing import TypeAlias

from enginesmith.ir.expr import Arg, Call, Const
from enginesmith.ir.graph import Node, Value
from enginesmith.ir.ops import PointwiseAttrs

Operand: TypeAlias = Value | Const


def operands(value: Operand, op: str) -> tuple[Operand, ...] | None:
    """The operands of the pointwise node that computes `value` as one call of `op`; None if another
    node computes it."""
    return None if isinstance(value, Const) else _call(value.producer, op)


def _call(node: Node | None, op: str) -> tuple[Operand, ...] | None:
    if node is None or not isinstance(node.attrs, PointwiseAttrs):
        return None
    expr = node.attrs.expr
    if not isinstance(expr, Call) or expr.op != op:
        return None
    found: list[Operand] = []
    for part in expr.args:
        if isinstance(part, Arg):
            found.append(node.inputs[part.index])
        elif isinstance(part, Const):
            found.append(part)
        else:
            return None
    return tuple(found)


def operand_and_constant(value: Operand, op: str) -> tuple[Value, float] | None:
    """(x, c) of op(x, c), or op(c, x) for add and mul, with a number c."""
    match operands(value, op):
        case (Value() as x, Const(c)):
            return x, float(c)
        case (Const(c), Value() as x) if op in ("add", "mul"):
            return x, float(c)
    return None


def square_of(value: Operand) -> Value | None:
    """x where the value is x * x (or x to the power of 2)."""
    match operands(value, "mul"):
        case (Value() as x, Value() as y) if x is y:
            return x
    match operands(value, "pow"):
        case (Value() as x, Const(2)):
            return x
    return None


def readers(value: Value) -> list[Node]:
    """Each node that reads `value`, once."""
    return list(dict.fromkeys(node for node, _ in value.uses))
