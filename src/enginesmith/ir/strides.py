"""Strides of symbolic arrays: the natural ones, and those of reshaped views."""

from __future__ import annotations

import sympy

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim, Shape

Stride = tuple[Dim, ...]
"""A stride in elements as factors, so that lowering can write it over the sizes it already has."""


def dense(shape: Shape) -> tuple[Stride, ...]:
    """Row-major strides."""
    return tuple(tuple(shape[i + 1 :]) for i in range(len(shape)))


def natural(shape: Shape, channels_last: bool) -> tuple[Stride, ...]:
    """Strides without gaps: row-major, or those of (n, c, h, w) that lies as [n][h][w][c]."""
    if not channels_last:
        return dense(shape)
    _, c, h, w = shape
    return ((h, w, c), (1,), (w, c), (c,))


def reshaped(strides: tuple[Stride, ...], old: Shape, new: Shape) -> tuple[Stride, ...] | None:
    """Strides of the same memory seen with the shape `new`, or None if it can't be: axes that are
    merged must lie one within the other (numpy's reshape without a copy)."""
    left = [(d, s) for d, s in zip(old, strides, strict=True) if d != 1]
    right = [(i, d) for i, d in enumerate(new) if d != 1]
    result: list[Stride] = [(1,)] * len(new)
    while left and right:
        (size, stride), (_, wide) = left.pop(0), right[0]
        group = [right.pop(0)]
        while not dims.equal(size, wide):
            if _exceeds(wide, size) and left:
                inner, inner_stride = left.pop(0)
                outer = dims.product(stride)
                if not dims.equal(outer, dims.product((inner, *inner_stride))):
                    return None
                size, stride = dims.product((size, inner)), inner_stride
            elif _exceeds(size, wide) and right:
                group.append(right.pop(0))
                wide = dims.product((wide, group[-1][1]))
            else:
                return None
        for index, dim in reversed(group):
            result[index] = stride
            stride = (dim, *stride)
    for i in reversed(range(len(new) - 1)):
        if new[i] == 1:  # never used, but as aligned as the others
            result[i] = (new[i + 1], *result[i + 1])
    return None if left or right else tuple(result)


def _exceeds(a: Dim, b: Dim) -> bool:
    """Is `a` larger than `b`, or a multiple of it whatever the symbols are?"""
    if isinstance(a, int) and isinstance(b, int):
        return a > b
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    return bool(sympy.denom(quotient) == 1)
