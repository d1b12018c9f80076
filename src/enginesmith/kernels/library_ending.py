"""What a library's call can do after its sums: scale them, add operands, apply an activation.

However a model writes an activation, it is known by its values (ir/activations.py).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from enginesmith.ir.activations import activation_of, subtrees, without
from enginesmith.ir.expr import Arg, Call, Const, Expr


class Unfit(Exception):  # noqa: N818 - says why, is no error
    """Why a problem isn't a library's."""


@dataclass(frozen=True, slots=True)
class Ending:
    """activation(scale * $0 + the extras)."""

    activation: str
    scale: float
    extras: tuple[int, ...]


def ending_of(epilogue: Expr, extras: int, activations: Set[str]) -> Ending:
    """The epilogue as an `Ending` that adds each of `extras` operands once and has one of the
    activations, or Unfit."""
    for inner in subtrees(epilogue):
        linear = _linear(inner)
        if linear is None or sorted(linear[1]) != list(range(1, extras + 1)):
            continue
        activation = activation_of(without(epilogue, inner), activations)
        if activation is not None:
            return Ending(activation, linear[0], tuple(linear[1]))
    raise Unfit("its epilogue is none of the library's")


def _linear(expr: Expr) -> tuple[float, list[int]] | None:
    """(scale, extras) if the tree is scale * $0 + $k + ..., else None."""
    match expr:
        case Arg(0):
            return 1.0, []
        case Call("mul", (inner, Const(value, "float32")) | (Const(value, "float32"), inner)):
            scaled = _linear(inner)
            return None if scaled is None or scaled[1] else (scaled[0] * float(value), [])
        case Call("div", (inner, Const(value, "float32"))) if value:
            scaled = _linear(inner)
            return None if scaled is None or scaled[1] else (scaled[0] / float(value), [])
        case Call("add", (inner, Arg(k))) | Call("add", (Arg(k), inner)) if k:
            rest = _linear(inner)
            return None if rest is None else (rest[0], [*rest[1], k])
        case Call("add", (Arg(k), Arg(0))):
            return 1.0, [k]
    return None
