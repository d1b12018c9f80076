"""Interpolation weights of resize, per axis: ONNX's coordinate, rounding and cubic rules.

Kernels can use `axis_taps` too: it says which input elements an output element reads, and how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from enginesmith.ir.ops import ResizeAttrs

Array: TypeAlias = "np.ndarray[Any, Any]"


def coordinates(kind: str, size_in: int, size_out: int, scale: float) -> Array:
    """The input coordinate (float64) of each output element along one axis."""
    x = np.arange(size_out, dtype=np.float64)
    if kind == "asymmetric":
        return x / scale
    if kind == "align_corners":
        return x * ((size_in - 1) / (size_out - 1)) if size_out > 1 else np.zeros(size_out)
    if kind == "pytorch_half_pixel" and size_out <= 1:
        return np.zeros(size_out)
    if kind == "half_pixel_symmetric":
        adjustment = size_out / (scale * size_in)
        return size_in / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


_ROUND: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def axis_taps(attrs: ResizeAttrs, size_in: int, size_out: int, scale: float) -> tuple[Array, Array]:
    """Indices (size_out, taps) int64 within the input and their weights (float64): 1 tap for
    nearest, 2 for linear, 4 for cubic."""
    x = coordinates(attrs.coordinates, size_in, size_out, scale)
    if attrs.mode == "nearest":
        index = _ROUND[attrs.nearest](x)
        return np.clip(index, 0, size_in - 1).astype(np.int64)[:, None], np.ones((size_out, 1))
    if attrs.mode == "linear":
        x = np.clip(x, 0, size_in - 1)
    base = np.floor(x)
    t = x - base
    if attrs.mode == "linear":
        offsets, weights = np.array([0, 1]), np.stack([1 - t, t], 1)
    else:
        offsets, weights = np.arange(-1, 3), _cubic(t, attrs.cubic_coeff_a)
    index = base[:, None].astype(np.int64) + offsets
    if attrs.exclude_outside:
        weights = np.where((index < 0) | (index >= size_in), 0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(index, 0, size_in - 1), weights


def _cubic(t: Array, a: float) -> Array:
    """Keys' kernel at distances 1+t, t, 1-t, 2-t."""
    near = [t, 1 - t]
    far = [1 + t, 2 - t]
    inner = [((a + 2) * d - (a + 3)) * d * d + 1 for d in near]
    outer = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in far]
    return np.stack([outer[0], inner[0], inner[1], outer[1]], 1)


def resize(x: Array, shape: Sequence[int], attrs: ResizeAttrs) -> Array:
    """`x` resampled to `shape`, one axis after the other, in double."""
    result = x
    for axis, size_out in enumerate(shape):
        size_in = x.shape[axis]
        scale = attrs.scales[axis]
        if size_in == size_out and scale in (None, 1.0):
            continue
        if size_in == 0 or size_out == 0:
            return np.zeros(tuple(shape), x.dtype)
        index, weights = axis_taps(attrs, size_in, size_out, scale or size_out / size_in)
        taps = np.moveaxis(result, axis, -1)[..., index]
        if attrs.mode == "nearest":
            result = taps[..., 0]
        else:
            result = (taps * weights).sum(-1)
        result = np.moveaxis(result, -1, axis)
    return result.astype(x.dtype)
