"""Resampling along some axes."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Problem
from enginesmith.kernels.nest import RESULT


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeProblem(Problem):
    """operands: x, what the epilogue reads besides, y; plain of one rank, or all blocked with
    `axes` among 2 and 3. ONNX's Resize without antialiasing, tf_crop_and_resize and
    exclude_outside.

    axes: those that are resampled; scales: output over input size per axis of `axes`, None where it
    is that of the sizes at run time. mode: nearest (any dtype), linear or cubic (float32).
    coordinates, rounding: coordinate_transformation_mode and nearest_mode. epilogue: Arg(0) is the
    result, Arg(k) operand k.
    """

    axes: tuple[int, ...]
    scales: tuple[float | None, ...]
    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    epilogue: Expr = RESULT
