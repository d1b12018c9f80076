"""Per-channel affine functions a * x + b inside expression trees, as vectors in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from enginesmith.ir import expr as expressions
from enginesmith.ir.dims import Shape
from enginesmith.ir.expr import Arg, Call, Expr, args_of
from enginesmith.ir.graph import Value

Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


@dataclass(frozen=True, slots=True)
class Affine:
    """scale * x + shift, each a number per channel (or one for all)."""

    scale: Vector
    shift: Vector

    def after(self, inner: Affine) -> Affine:
        """self(inner(x))."""
        return Affine(self.scale * inner.scale, self.scale * inner.shift + self.shift)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def scales(self) -> bool:
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        return bool((self.shift != 0).any())


IDENTITY = Affine(np.ones(()), np.zeros(()))


def channel_vector(value: Value, shape: Shape, axis: int) -> Vector | None:
    """A float32 constant that varies along `axis` of `shape` only, as a vector along it (or ())."""
    if value.data is None or value.dtype != "float32" or value.type.rank > len(shape):
        return None
    own = (1,) * (len(shape) - value.type.rank) + value.data.shape
    if any(d != 1 for i, d in enumerate(own) if i != axis) or own[axis] not in (1, shape[axis]):
        return None
    vector = value.data.reshape(-1).astype(np.float64)
    return vector.reshape(()) if vector.size == 1 else vector


def affine_of(expr: Expr, slot: int, constants: Mapping[int, Vector]) -> Affine | None:
    """`expr` as an affine function of Arg(slot); None if it isn't one. constants: the values of all
    other operands."""
    used = args_of(expr)
    if slot not in used:
        if not used <= set(constants) or _dtype(expr) != "float32":
            return None
        args = [constants.get(i, np.float64(0)) for i in range(max(used, default=-1) + 1)]
        with np.errstate(all="ignore"):
            return Affine(np.zeros(()), np.asarray(expressions.evaluate(expr, args), np.float64))
    match expr:
        case Arg():
            return IDENTITY
        case Call("neg", (x,)):
            inner = affine_of(x, slot, constants)
            return None if inner is None else Affine(-inner.scale, -inner.shift)
        case Call("add" | "sub" | "mul" | "div" as op, (x, y)):
            a, b = affine_of(x, slot, constants), affine_of(y, slot, constants)
            if a is None or b is None:
                return None
            return _combine(op, a, b, slot in args_of(x), slot in args_of(y))
    return None


def _combine(op: str, a: Affine, b: Affine, in_a: bool, in_b: bool) -> Affine | None:
    if op == "add":
        return Affine(a.scale + b.scale, a.shift + b.shift)
    if op == "sub":
        return Affine(a.scale - b.scale, a.shift - b.shift)
    if op == "mul" and not in_a:
        a, b, in_b = b, a, False
    if in_b:
        return None
    with np.errstate(all="ignore"):
        factor = b.shift if op == "mul" else 1 / b.shift
        return Affine(a.scale * factor, a.shift * factor)


def _dtype(expr: Expr) -> str:
    return expressions.dtype_of(expr, ["float32"] * (max(args_of(expr), default=-1) + 1))
