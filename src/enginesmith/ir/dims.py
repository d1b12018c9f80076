"""Symbolic dimensions: an int, or a sympy expression over named, non-negative integer symbols.

Floor division is `floordiv`, a function of its own: sympy's floor() of a rational prints badly and
simplifies slowly. Text form (`to_text`) is Python integer syntax, the one plans store.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from math import gcd
from typing import Any, TypeAlias

import sympy

Dim: TypeAlias = int | sympy.Expr
Shape: TypeAlias = tuple[Dim, ...]


class FloorDiv(sympy.Function):  # type: ignore[misc]
    """floor(a / b) for integer a and positive integer constant or symbolic b."""

    nargs = (2,)
    is_integer = True

    @classmethod
    def eval(cls, a: Any, b: Any) -> Any:
        if b == 1:
            return a
        if a.is_Integer and b.is_Integer and b != 0:
            return sympy.Integer(int(a) // int(b))
        if b.is_Integer:
            if isinstance(a, FloorDiv) and a.args[1].is_Integer and a.args[1] > 0 and b > 0:
                return FloorDiv(a.args[0], a.args[1] * b)
            if a.is_Add and len(a.args) == 2 and b > 0:  # ((p // m) + c) // b = (p + c*m) // (m*b)
                c, inner = a.args
                if c.is_Integer and isinstance(inner, FloorDiv) and inner.args[1].is_Integer:
                    return FloorDiv(inner.args[0] + c * inner.args[1], inner.args[1] * b)
            whole, rest = _split_multiple(sympy.expand(a), int(b))
            if whole != 0:
                return whole + FloorDiv(rest, b) if rest != 0 else whole
        elif a != 0 and sympy.cancel(a / b).is_integer:
            return sympy.cancel(a / b)
        return None

    def _eval_is_nonnegative(self) -> bool | None:
        a, b = self.args
        return True if a.is_nonnegative and b.is_positive else None


def _split_multiple(a: sympy.Expr, b: int) -> tuple[sympy.Expr, sympy.Expr]:
    """a as b * whole + rest, moving every term whose coefficient b divides (and whole multiples of
    the integer term) into `whole`."""
    whole, rest = sympy.Integer(0), sympy.Integer(0)
    for term in sympy.Add.make_args(a):
        coefficient, factor = term.as_coeff_Mul()
        if not coefficient.is_Integer or (factor != 1 and not factor.is_integer):
            rest += term
        elif factor == 1:
            whole += int(coefficient) // b
            rest += int(coefficient) % b
        elif int(coefficient) % b == 0:
            whole += int(coefficient) // b * factor
        else:
            rest += term
    return whole, rest


@cache
def symbol(name: str) -> sympy.Symbol:
    """The dimension symbol called `name`; equal names are the same symbol."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def _normal(value: Any) -> Dim:
    value = sympy.expand(value)
    return int(value) if value.is_Integer else value


def simplify(dim: Dim) -> Dim:
    """The normal form: an int where possible, else an expanded sum."""
    return dim if isinstance(dim, int) else _normal(dim)


def floordiv(a: Dim, b: Dim) -> Dim:
    """floor(a / b)."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return _normal(FloorDiv(sympy.sympify(a), sympy.sympify(b)))


def ceildiv(a: Dim, b: Dim) -> Dim:
    """ceil(a / b)."""
    return floordiv(a + b - 1, b)


def mod(a: Dim, b: Dim) -> Dim:
    """a modulo b, with the sign of b (Python's)."""
    return simplify(a - b * floordiv(a, b))


def dim_max(a: Dim, b: Dim) -> Dim:
    """The larger of two dimensions."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else simplify(sympy.Max(a, b))


def dim_min(a: Dim, b: Dim) -> Dim:
    """The smaller of two dimensions."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else simplify(sympy.Min(a, b))


def product(dims: Sequence[Dim]) -> Dim:
    """The product of all dims (1 for none)."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return simplify(total)


def equal(a: Dim, b: Dim) -> bool:
    """True if both are provably the same for all values of their symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(a == b) or simplify(a - b) == 0


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Equal rank and provably equal dims."""
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def is_static(shape: Sequence[Dim]) -> bool:
    """True if every dim is an int."""
    return all(isinstance(d, int) for d in shape)


def divisible(a: Dim, b: int) -> bool:
    """True if b provably divides a."""
    if isinstance(a, int):
        return a % b == 0
    return all(
        t.as_coeff_Mul()[0].is_Integer and gcd(int(t.as_coeff_Mul()[0]), b) == b
        for t in sympy.Add.make_args(sympy.expand(a))
    )


def symbols_of(dim: Dim) -> frozenset[str]:
    """Names of the symbols in `dim`."""
    return frozenset() if isinstance(dim, int) else frozenset(s.name for s in dim.free_symbols)


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced."""
    if isinstance(dim, int):
        return dim
    return _normal(dim.subs({symbol(k): v for k, v in values.items()}, simultaneous=True))


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The number `dim` is for these symbol values; KeyError names a missing symbol."""
    return dim if isinstance(dim, int) else _evaluate(dim, tuple(sorted(values.items())))


@lru_cache(maxsize=1 << 14)
def _evaluate(dim: Dim, values: tuple[tuple[str, int], ...]) -> int:
    """Remembered, since substitution is slow and the same few sizes are asked for all the time."""
    result = substitute(dim, dict(values))
    if not isinstance(result, int):
        raise KeyError(f"no value for {sorted(symbols_of(result))} in {to_text(dim)}")
    return result


def to_text(dim: Dim) -> str:
    """Python integer syntax with + - * // max min: `(h - 1)//2 + 1`."""
    if isinstance(dim, int):
        return str(dim)
    return _text(dim, 0)


def _text(e: sympy.Expr, level: int) -> str:
    """level 0: sum context, 1: product context (sums get parentheses)."""
    if e.is_Symbol:
        return str(e.name)
    if e.is_Integer:
        return str(int(e)) if level == 0 or e >= 0 else f"({int(e)})"
    if isinstance(e, FloorDiv):
        over, under = (_text(a, 1) for a in e.args)
        if e.args[1].is_Mul or e.args[1].is_Pow:
            under = f"({under})"  # a//b*c would be (a//b)*c
        return f"({over}//{under})"
    if isinstance(e, sympy.Max | sympy.Min):
        name = "max" if isinstance(e, sympy.Max) else "min"
        return f"{name}({', '.join(_text(a, 0) for a in sorted(e.args, key=str))})"
    if e.is_Add:
        terms = [_text(t, 1) for t in e.as_ordered_terms()]
        text = " + ".join(terms)
        return f"({text})" if level else text
    if e.is_Mul:
        return "*".join(_text(f, 1) for f in e.as_ordered_factors())
    if e.is_Pow and e.exp.is_Integer and e.exp > 0:
        return "*".join([_text(e.base, 1)] * int(e.exp))
    raise ValueError(f"no integer text for {e!r}")


def parse(text: str) -> Dim:
    """The inverse of `to_text`; ValueError on anything else than its syntax."""
    return _parse(ast.parse(text, mode="eval").body)


def _parse(node: ast.expr) -> Dim:
    match node:
        case ast.Constant(value=int(v)):
            return v
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return -_parse(x)
        case ast.BinOp(left=a, op=op, right=b):
            left, right = _parse(a), _parse(b)
            if isinstance(op, ast.Add):
                return simplify(left + right)
            if isinstance(op, ast.Sub):
                return simplify(left - right)
            if isinstance(op, ast.Mult):
                return simplify(left * right)
            if isinstance(op, ast.FloorDiv):
                return floordiv(left, right)
        case ast.Call(func=ast.Name(id=("max" | "min") as name), args=args) if args:
            dims = [_parse(a) for a in args]
            total = dims[0]
            for d in dims[1:]:
                total = dim_max(total, d) if name == "max" else dim_min(total, d)
            return total
    raise ValueError(f"not a dimension expression: {ast.unparse(node)}")
