"""Simplification of expression trees: fewer and cheaper operations for the same function.

Floating-point results may differ by rounding: constants are combined (in double), x / c becomes
x * (1/c), a constant factor moves into sums (x*c + k*c instead of (x + k)*c). Each keeps the error
within a few ulp of the largest intermediate. The sign of zero is not kept; NaN and infinity are.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite, isnan

import numpy as np

from enginesmith.ir.expr import OPS, Call, Cast, Const, Expr, args_of, count_ops, dtype_of

_FLOATS = ("float32", "float64", "float16")
_COMMUTATIVE = frozenset(("add", "mul", "max", "min", "eq", "and", "or", "xor"))
_WIDER = {
    "float16": ("float32", "float64"),
    "float32": ("float64",),
    "int32": ("int64",),
    "int8": ("int32", "int64"),
    "uint8": ("int32", "int64"),
    "bool": ("uint8", "int8", "int32", "int64", "float16", "float32", "float64"),
}
"""Types that hold every value of a type."""


@lru_cache(maxsize=1 << 14)
def simplify(expr: Expr, dtypes: tuple[str, ...]) -> Expr:
    """The simplest equivalent of `expr` over operands of types `dtypes`."""
    match expr:
        case Cast(dtype, x):
            return _cast(dtype, simplify(x, dtypes), dtypes)
        case Call(op, operands):
            return _call(op, tuple(simplify(o, dtypes) for o in operands), dtypes)
    return expr


def _cast(dtype: str, x: Expr, dtypes: tuple[str, ...]) -> Expr:
    given = dtype_of(x, dtypes)
    if given == dtype:
        return x
    if isinstance(x, Const) and not (isinstance(x.value, float) and not isfinite(x.value)):
        return Const(np.asarray(x.value, x.dtype).astype(dtype).item(), dtype)
    if isinstance(x, Cast):
        inner = dtype_of(x.x, dtypes)
        if given in _WIDER.get(inner, ()):  # the first cast lost nothing
            return _cast(dtype, x.x, dtypes)
    return Cast(dtype, x)


def _call(op: str, x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr:
    """The simplest form of a call whose operands are simple already."""
    if all(isinstance(o, Const) for o in x):
        folded = _fold(op, x, dtypes)
        if folded is not None:
            return folded
    if op in _COMMUTATIVE and _rank(x[1]) < _rank(x[0]):
        x = (x[1], x[0])
    rules = _RULES.get(op)
    is_float = dtype_of(x[-1], dtypes) in _FLOATS
    if rules is not None and (is_float or op in _ANY_TYPE):
        result = rules(x, dtypes)
        if result is not None:
            return result
    return Call(op, x)


def _rank(x: Expr) -> tuple[int, int]:
    """The place of an operand whose order is free: constants last, else first read first."""
    used = args_of(x)
    return (min(used), count_ops(x)) if used else (1 << 30, 0)


def _fold(op: str, x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Const | None:
    dtype = dtype_of(Call(op, x), dtypes)
    with np.errstate(all="ignore"):
        try:
            value = np.asarray(OPS[op].numpy(*(np.asarray(c.value, c.dtype) for c in x)))  # type: ignore[union-attr]
        except ZeroDivisionError:
            return None
    number = value.astype(dtype).item()
    return None if isinstance(number, float) and isnan(number) else Const(number, dtype)


def _combined(op: str, a: Const, b: Const) -> Const | None:
    """a op b computed in double and rounded once; None if that over- or underflows."""
    with np.errstate(all="ignore"):
        value = OPS[op].numpy(np.float64(a.value), np.float64(b.value))
        number = np.asarray(value).astype(a.dtype)
    if not np.isfinite(number) or (value != 0 and abs(number) < np.finfo(a.dtype).tiny):
        return None
    return Const(number.item(), a.dtype)


def _is(x: Expr, value: float) -> bool:
    return isinstance(x, Const) and x.value == value


def _add(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, Const() as c) if _is(c, 0):
            return a
        case (Call("add", (a, Const() as c)), Const() as d) if e := _combined("add", c, d):
            return _call("add", (a, e), dtypes)
        case (Call("add", (a, Const() as c)), b) if not isinstance(b, Const):
            return _call("add", (_call("add", (a, b), dtypes), c), dtypes)
        case (a, Call("add", (b, Const() as c))) if not isinstance(a, Const):
            return _call("add", (_call("add", (a, b), dtypes), c), dtypes)
        case (a, Call("neg", (b,))):
            return _call("sub", (a, b), dtypes)
        case (Call("neg", (a,)), b) if not isinstance(b, Const):
            return _call("sub", (b, a), dtypes)
    return None


def _sub(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, Const() as c):
            return _call("add", (a, Const(-c.value, c.dtype)), dtypes)
        case (Const() as c, Call("sub", (Const() as d, a))) if e := _combined("sub", c, d):
            return _call("add", (a, e), dtypes)
        case (a, Call("neg", (b,))):
            return _call("add", (a, b), dtypes)
        case (Const() as c, a) if _is(c, 0):
            return _call("neg", (a,), dtypes)
    return None


def _mul(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, Const() as c):
            if _is(c, 1):
                return a
            if _is(c, -1):
                return _call("neg", (a,), dtypes)
            return _scaled(a, c, dtypes)
        case (Call("mul", (a, Const() as c)), b) | (b, Call("mul", (a, Const() as c))):
            # A constant factor goes into the other operand if it is free there, else outwards.
            if (inner := _scaled(b, c, dtypes)) is not None:
                return _call("mul", (a, inner), dtypes)
            return _call("mul", (_call("mul", (a, b), dtypes), c), dtypes)
        case (a, Call("div", (Const() as c, b))) | (Call("div", (Const() as c, b)), a):
            divided = _call("div", (a, b), dtypes)
            return _call("mul", (divided, c), dtypes)
        case (Call("neg", (a,)), Call("neg", (b,))):
            return _call("mul", (a, b), dtypes)
    return None


def _scaled(x: Expr, c: Const, dtypes: tuple[str, ...]) -> Expr | None:
    """x * c, if that costs no operation more than x."""
    match x:
        case Const() as d:
            return _combined("mul", d, c)
        case Call("mul", (a, Const() as d)):
            e = _combined("mul", d, c)
            return None if e is None else _call("mul", (a, e), dtypes)
        case Call("add", (Call("tanh", (a,)), Const() as d)) if _is(d, 1) and _is(c, 0.5):
            # (tanh(a) + 1) / 2, the heart of the tanh form of GELU
            return Call("sigmoid", (_call("mul", (a, Const(2.0, c.dtype)), dtypes),))
        case Call("add", (a, Const() as d)):  # a multiply-add is one instruction
            e = _combined("mul", d, c)
            return None if e is None else _call("add", (_call("mul", (a, c), dtypes), e), dtypes)
        case Call("max" | "min" as op, (a, Const() as d)) if c.value > 0 and isfinite(c.value):
            inner = _scaled(a, c, dtypes)
            e = d if not isfinite(d.value) else _combined("mul", d, c)
            return None if inner is None or e is None else _call(op, (inner, e), dtypes)
        case Call("mul", (a, b)):
            for one, other in ((b, a), (a, b)):
                if (inner := _scaled(one, c, dtypes)) is not None:
                    return _call("mul", (other, inner), dtypes)
        case Call("div", (Const() as d, a)):
            e = _combined("mul", d, c)
            return None if e is None else _call("div", (e, a), dtypes)
        case Call("neg", (a,)):
            return _call("mul", (a, Const(-c.value, c.dtype)), dtypes)
    return None


def _div(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, Const() as c):
            inverse = _combined("div", Const(1.0, c.dtype), c) if c.value != 0 else None
            return None if inverse is None else _call("mul", (a, inverse), dtypes)
        case (a, Call("add", (Call("exp", (Call("neg", (b,)),)), Const() as one))) if _is(one, 1):
            return _call("mul", (a, Call("sigmoid", (b,))), dtypes)
        case (a, Call("div", (b, c))) if _is(b, 1):
            return _call("mul", (a, c), dtypes)
    return None


def _max(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, b) if a == b:
            return a
        case (Call("max", (a, Const() as c)), Const() as d):
            return _call("max", (a, c if c.value >= d.value else d), dtypes)
        # Clips are written min(max(x, low), high) throughout.
        case (Call("min", (a, Const() as high)), Const() as low) if low.value <= high.value:
            return _call("min", (_call("max", (a, low), dtypes), high), dtypes)
        case (a, Const() as c) if c.value == float("-inf"):
            return a
        case (Call("abs" | "sigmoid" | "exp" | "sqrt", _) as a, Const() as c) if c.value <= 0:
            return a
    return None


def _min(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, b) if a == b:
            return a
        case (Call("min", (a, Const() as c)), Const() as d):
            return _call("min", (a, c if c.value <= d.value else d), dtypes)
        case (a, Const() as c) if c.value == float("inf"):
            return a
        case (Call("sigmoid", _) as a, Const() as c) if c.value >= 1:
            return a
    return None


def _pow(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    base, exponent = x
    dtype = dtype_of(base, dtypes)
    if not isinstance(exponent, Const) or dtype_of(exponent, dtypes) != dtype:
        return None
    if exponent.value == 1:
        return base
    if exponent.value == 2:
        return _call("mul", (base, base), dtypes)
    if exponent.value == 3:
        return _call("mul", (_call("mul", (base, base), dtypes), base), dtypes)
    if exponent.value == 0.5:
        return Call("sqrt", (base,))
    if exponent.value == -1:
        return _call("div", (Const(1.0, dtype), base), dtypes)
    if exponent.value == -0.5:
        return Call("div", (Const(1.0, dtype), Call("sqrt", (base,))))
    return None


def _neg(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (Call("neg", (a,)),):
            return a
        case (Call("sub", (a, b)),):
            return _call("sub", (b, a), dtypes)
        case (Call("mul", (a, Const() as c)),):
            return _call("mul", (a, Const(-c.value, c.dtype)), dtypes)
    return None


def _where(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (Const(value), then, otherwise):
            return then if value else otherwise
        case (_, then, otherwise) if then == otherwise:
            return then
        case (Call("not", (condition,)), then, otherwise):
            return _call("where", (condition, otherwise, then), dtypes)
    return None


def _not(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (Call("not", (a,)),):
            return a
    return None


def _and(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, Const(value)):
            return a if value else Const(False, "bool")
    return x[0] if x[0] == x[1] else None


def _or(x: tuple[Expr, ...], dtypes: tuple[str, ...]) -> Expr | None:
    match x:
        case (a, Const(value)):
            return Const(True, "bool") if value else a
    return x[0] if x[0] == x[1] else None


_RULES = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "max": _max,
    "min": _min,
    "pow": _pow,
    "neg": _neg,
    "where": _where,
    "not": _not,
    "and": _and,
    "or": _or,
}
"""Per operator: operands and dtypes to a simpler tree, or None."""

_ANY_TYPE = frozenset(("where", "not", "and", "or"))
"""Rules that hold for every element type; the others are for floating point."""
