"""Importers of Resize and Upsample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported, normal_axis
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import ResizeAttrs

_MODES = ("nearest", "linear", "cubic")
_COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
)  # fmt: skip


def upsample_attributes(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 7: the scales are an attribute."""
    scales = b.constant(np.array(n.numbers("scales"), np.float32))
    return _simple(b, n, n.value(0), scales)


def upsample_operands(b: GraphBuilder, n: OnnxNode) -> Value:
    """Upsample 9 and Resize 10: the scales are operand 1."""
    return _simple(b, n, n.value(0), n.value(1))


def _simple(b: GraphBuilder, n: OnnxNode, x: Value, scales: Value) -> Value:
    """The rules before opset 11: coordinates divided by the scale, rounded down."""
    mode = {"bilinear": "linear"}.get(n.text("mode", "nearest"), n.text("mode", "nearest"))
    shape, factors = _scaled(b, x, range(x.type.rank), scales)
    return _resized(b, x, shape, ResizeAttrs(mode, "asymmetric", "floor", factors))


def resize(b: GraphBuilder, n: OnnxNode) -> Value:
    """Opset 11: operands roi (unused), scales or sizes; opset 18 adds axes and policies."""
    x, scales, sizes = n.value(0), n.optional(2), n.optional(3)
    if n.integer("antialias", 0):
        raise Unsupported("Resize with antialias=1")
    axes = [normal_axis(a, x.type.rank) for a in n.integers("axes", range(x.type.rank))]
    if sizes is not None and sizes.shape != (0,):
        policy = n.text("keep_aspect_ratio_policy", "stretch")
        shape = _sized(x, axes, b.dims(sizes, "the output size"), policy)
        factors: tuple[float | None, ...] = (None,) * x.type.rank
    elif scales is not None:
        shape, factors = _scaled(b, x, axes, scales)
    else:
        raise Invalid("Resize has neither scales nor sizes")
    attrs = ResizeAttrs(
        n.text("mode", "nearest"),
        n.text("coordinate_transformation_mode", "half_pixel"),
        n.text("nearest_mode", "round_prefer_floor"),
        factors,
        n.number("cubic_coeff_a", -0.75),
        bool(n.integer("exclude_outside", 0)),
    )
    return _resized(b, x, shape, attrs)


def _resized(b: GraphBuilder, x: Value, shape: Sequence[Dim], attrs: ResizeAttrs) -> Value:
    if attrs.mode not in _MODES:
        raise Invalid(f"the attribute mode is {attrs.mode!r}")
    if attrs.coordinates not in _COORDINATES:
        raise Unsupported(
            f"coordinate_transformation_mode {attrs.coordinates}",
            f"supported: {', '.join(_COORDINATES)}",
        )
    if dims.same_shape(x.shape, shape) and all(s in (None, 1.0) for s in attrs.scales):
        return x
    return b.emit("resize", [x], attrs, tuple(shape))


def _scaled(
    b: GraphBuilder, x: Value, axes: Sequence[int], scales: Value
) -> tuple[list[Dim], tuple[float | None, ...]]:
    """(output shape, scale per axis): floor(size * scale)."""
    factors = b.contents(scales)
    if factors is None:
        raise Unsupported("the scales are computed from data", "make them a constant of the model")
    if len(factors) != len(axes):
        raise Invalid(f"{len(factors)} scales for {len(axes)} axes")
    shape: list[Dim] = list(x.shape)
    kept: list[float | None] = [1.0] * x.type.rank
    for axis, factor in zip(axes, factors, strict=True):
        shape[axis] = _floor_product(x.shape[axis], factor)
        kept[axis] = float(factor) if sympy.sympify(factor).is_number else None
    return shape, tuple(kept)


def _floor_product(size: Dim, factor: Any) -> Dim:
    product = sympy.cancel(sympy.sympify(size) * factor)
    top, bottom = sympy.fraction(sympy.together(product))
    return dims.floordiv(dims.simplify(top), dims.simplify(bottom))


def _sized(x: Value, axes: Sequence[int], sizes: Sequence[Dim], policy: str) -> list[Dim]:
    if len(sizes) != len(axes):
        raise Invalid(f"{len(sizes)} sizes for {len(axes)} axes")
    shape: list[Dim] = list(x.shape)
    if policy == "stretch":
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        return shape
    if policy not in ("not_larger", "not_smaller"):
        raise Invalid(f"the attribute keep_aspect_ratio_policy is {policy!r}")
    pairs = [(s, x.shape[a]) for s, a in zip(sizes, axes, strict=True)]
    if not all(isinstance(s, int) and isinstance(d, int) for s, d in pairs):
        raise Unsupported("keep_aspect_ratio_policy with symbolic sizes", "fix the input's size")
    choose = min if policy == "not_larger" else max
    scale = choose(s / d for s, d in pairs)
    for axis in axes:
        shape[axis] = int(np.floor(scale * x.shape[axis] + 0.5))
    return shape
